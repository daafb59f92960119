"""`ModelProcess`: one exported model loaded in a separate process, which runs it on request."""

import json
import select
import subprocess
import tempfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from keras_efficient._errors import InputError
from keras_efficient.runtime._run_script import bare_environment, sandboxed_command

_SCRIPT = Path(__file__).with_name("_runner_script.py")
#: Module that each kind needs, name of its library, and extra of this package that installs it.
_REQUIREMENTS = {
    "saved_model": ("tensorflow", "TensorFlow", None),
    "litert": ("ai_edge_litert", "ai-edge-litert", "litert"),
    "onnx": ("onnxruntime", "onnxruntime", "onnx"),
    "openvino": ("openvino", "OpenVINO", "benchmarks"),
}


#: Kinds of files by suffix.
KINDS = {".tflite": "litert", ".onnx": "onnx", ".xml": "openvino"}


def model_in(folder: Path) -> tuple[Path, str] | None:
    """Return the path and the kind of the model that `ke.export` wrote into a folder, or None."""
    if (folder / "saved_model.pb").is_file():
        return folder, "saved_model"
    files = ((folder / f"model{suffix}", kind) for suffix, kind in KINDS.items())
    return next((found for found in files if found[0].is_file()), None)


class ModelProcessError(RuntimeError):
    """The process failed or died.

    Attributes:
        lines: list of str, the last lines that the process printed.
    """

    def __init__(self, message: str, lines: list[str]):
        super().__init__(message)
        self.lines = lines


class ModelProcess:
    """An exported model in a process without Keras, on the CPU, idle between requests.

    It is a context manager, which stops the process at its end. The process runs
    `_runner_script.py`, which describes the requests, confined by `_sandbox.py`.

    Args:
        path: path of a SavedModel's folder, or of a .tflite, .onnx or OpenVINO .xml file.
        kind: "saved_model", "litert", "onnx" or "openvino".
        threads: int, threads within one operation; operations run one after the other. Default: 1.
        timeout: float, seconds to wait for a response before the process is stopped.
            Default: 600.0.

    Attributes:
        inputs: {name: {"dtype", "shape"}}; None in a shape stands for any size.
        outputs: list of names.
        folder: path of the only folder in which the process may write; deleted at the end.

    Raises:
        InputError: the runtime is not installed.
        ModelProcessError: the model does not load.
    """

    def __init__(self, path, kind: str, threads: int = 1, timeout: float = 600.0):
        module, library, extra = _REQUIREMENTS[kind]
        if find_spec(module) is None:
            raise InputError(
                f"A {Path(path).suffix or 'SavedModel'} file needs {library} to run. Received: "
                f"{path}, and it is not installed. Install it: pip install "
                f"'keras_efficient[{extra}]'."
            )
        env = bare_environment()
        env |= {"OMP_NUM_THREADS": str(threads), "TF_NUM_INTRAOP_THREADS": str(threads)}
        env["TF_NUM_INTEROP_THREADS"] = "1"
        self._timeout = timeout
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._folder = tempfile.TemporaryDirectory(prefix="keras_efficient-")
        self.folder = Path(self._folder.name)
        self._process = subprocess.Popen(
            sandboxed_command(self.folder, _SCRIPT),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=env,
        )
        try:
            loaded = self.ask(load=str(path), kind=kind, threads=threads)
        except BaseException:
            self.close()
            raise
        self.inputs: dict[str, Any] = loaded["inputs"]
        self.outputs: list[str] = loaded["outputs"]

    def ask(self, **request) -> dict[str, Any]:
        """Send a request and return the response.

        Raises:
            ModelProcessError: the request failed, the process died, or the timeout passed.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        try:
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            raise self._died() from None
        if not select.select([stdout], [], [], self._timeout)[0]:
            self.close()
            raise ModelProcessError(f"no answer within {self._timeout:g} seconds", [])
        line = stdout.readline()
        if not line:
            raise self._died()
        response = json.loads(line)
        if "error" in response:
            raise ModelProcessError(response["error"], response["lines"])
        return response

    def close(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
        self._folder.cleanup()

    def _died(self):
        code = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()[-12:]
        last = lines[-1] if lines else "it printed nothing"
        return ModelProcessError(f"the process ended with code {code}: {last}", lines)

    def __enter__(self) -> "ModelProcess":
        return self

    def __exit__(self, *_) -> None:
        self.close()
