"""A process of its own for one exported model: the parent's side of `_runner_script.py`."""

import json
import select
import subprocess
import tempfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from keras_efficient._errors import InputError
from keras_efficient.runtime._run_script import bare_environment, python_command

_SCRIPT = Path(__file__).with_name("_runner_script.py")
#: kind: (module, name of the library, extra of this package, or None: it comes with it).
_NEEDS = {
    "saved_model": ("tensorflow", "TensorFlow", None),
    "litert": ("ai_edge_litert", "ai-edge-litert", "litert"),
    "onnx": ("onnxruntime", "onnxruntime", "benchmarks"),
}


class ChildError(RuntimeError):
    """The process failed or died. Its first line says why; `lines` has the last ones."""

    def __init__(self, message, lines):
        super().__init__(message)
        self.lines = lines


class Child:
    """One exported model in a process without Keras, on the CPU, idle until it is asked.

    A context manager: leaving it ends the process.

    Args:
        path: of a SavedModel's folder, a .tflite or an .onnx file.
        kind: "saved_model", "litert" or "onnx".
        threads: int, threads of one operation; operations run one after the other. Default 1.
        patience: float, seconds for one answer, after which the process is ended. Default 600.

    Attributes:
        inputs: {name: {"dtype", "shape"}}, None for any size.
        outputs: list of names.

    Raises:
        InputError: the runtime is not installed.
        ChildError: it does not load.
    """

    def __init__(self, path, kind, threads=1, patience=600.0):
        module, library, extra = _NEEDS[kind]
        if find_spec(module) is None:
            raise InputError(
                f"A {Path(path).suffix or 'SavedModel'} file needs {library} to run. Received: "
                f"{path}, and it is not installed. Install it: pip install "
                f"'keras_efficient[{extra}]'."
            )
        env = bare_environment()
        env |= {"OMP_NUM_THREADS": str(threads), "TF_NUM_INTRAOP_THREADS": str(threads)}
        env["TF_NUM_INTEROP_THREADS"] = "1"
        self._patience = patience
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            python_command(_SCRIPT),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=env,
        )
        try:
            told = self.ask(load=str(path), kind=kind, threads=threads)
        except BaseException:
            self.close()
            raise
        self.inputs, self.outputs = told["inputs"], told["outputs"]

    def ask(self, **request) -> dict:
        """The answer to one request.

        Raises:
            ChildError: it failed, died, or took longer than its patience.
        """
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._dead() from None
        if not select.select([self._process.stdout], [], [], self._patience)[0]:
            self.close()
            raise ChildError(f"no answer within {self._patience:g} seconds", [])
        line = self._process.stdout.readline()
        if not line:
            raise self._dead()
        answer = json.loads(line)
        if "error" in answer:
            raise ChildError(answer["error"], answer["lines"])
        return answer

    def _dead(self):
        code = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()[-12:]
        last = lines[-1] if lines else "it printed nothing"
        return ChildError(f"the process ended with code {code}: {last}", lines)

    def close(self):
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            with suppress(BrokenPipeError):
                stream.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
