"""`server_command`: the command that starts TensorFlow Serving for an exported model."""

import csv
import io
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from keras_efficient._errors import InputError
from keras_efficient.exporters._destination import is_version
from keras_efficient.serving._check_graph import SAVED_MODEL
from keras_efficient.versions._check_manifest import check_manifest
from keras_efficient.versions._find_version import find_version

PROGRAM = "tensorflow_model_server"
IMAGE = "tensorflow/serving"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
#: Paths inside the container, and the ports that its image opens.
_MODELS, _CONFIG, _BATCHING = "/models", "/config", "/batching.config"
_GRPC, _REST = 8500, 8501


@dataclass(frozen=True)
class ServerCommand:
    """Command line and configuration files of a TensorFlow Serving process.

    Attributes:
        name: str, the model's name on the server.
        base: absolute path of the folder that holds the versions.
        version: int, the only version to serve; or None, the newest one, also when newer ones
            appear.
        rest_port: int, port of this machine for REST.
        grpc_port: int, port of this machine for gRPC.
        batching: absolute path of a file of batching parameters, or None.
        threads: int, threads within one operation, or None for one per processor. Default: None.

    Examples:
        >>> from pathlib import Path
        >>> command = ke.serving.ServerCommand("m", Path("/srv/m"), None, 8501, 8500, None)
        >>> command.program("/etc/m")[1:3]
        ['--port=8500', '--rest_api_port=8501']

    Reference:
        TensorFlow Serving, `Serving configuration
        <https://www.tensorflow.org/tfx/serving/serving_config>`_.
    """

    name: str
    base: Path
    version: int | None
    rest_port: int
    grpc_port: int
    batching: Path | None
    threads: int | None = None

    def program(self, config: Path | str, program: Path | str = PROGRAM) -> list[str]:
        """Return the command for an installed server whose configuration files are in `config`.

        Args:
            config: path of the folder with the configuration files.
            program: path of the server. Default: "tensorflow_model_server", found on PATH.
        """
        ports = [f"--port={self.grpc_port}", f"--rest_api_port={self.rest_port}"]
        return [str(program), *ports, *self._flags(self.base, config, self.batching)]

    def container(self, config: Path | str, docker: Path | str = "docker") -> list[str]:
        """Return the command for Docker, which mounts paths of this machine read-only.

        Args:
            config: path of the folder with the configuration files.
            docker: path of the client. Default: "docker", found on PATH.
        """
        base = f"{_MODELS}/{self.name}"
        command = [str(docker), "run", "--rm", "--init"]
        command += ["-p", f"{self.rest_port}:{_REST}", "-p", f"{self.grpc_port}:{_GRPC}"]
        command += _mount(self.base, base) + _mount(config, _CONFIG)
        if self.batching:
            command += _mount(self.batching, _BATCHING)
        # The image's entry point sets the ports, the name and the base path, then adds these.
        command += ["-e", f"MODEL_NAME={self.name}", IMAGE]
        flags = self._flags(base, _CONFIG, _BATCHING if self.batching else None)
        return command + [x for x in flags if not x.startswith(("--model_name", "--model_base"))]

    def files(self, container: bool = False) -> dict[str, str]:
        """Return the configuration files, text by file name.

        Args:
            container: whether they are for a container. Default: False.
        """
        files = {
            "monitoring.config": "prometheus_config {\n  enable: true\n"
            '  path: "/monitoring/prometheus/metrics"\n}\n'
        }
        if self.version is not None:
            base = f"{_MODELS}/{self.name}" if container else str(self.base)
            files["models.config"] = (
                "model_config_list {\n  config {\n"
                f"    name: {_quoted(self.name)}\n    base_path: {_quoted(base)}\n"
                '    model_platform: "tensorflow"\n'
                f"    model_version_policy {{ specific {{ versions: {self.version} }} }}\n"
                "  }\n}\n"
            )
        return files

    def script(self, config: Path | str, container: bool = False) -> str:
        """Return a shell script that writes the configuration files and starts the server.

        Args:
            config: path of the folder for the configuration files.
            container: whether to use Docker. Default: False.
        """
        lines = ["set -e", f"mkdir -p {shlex.quote(str(config))}"]
        for name, text in self.files(container).items():
            path = shlex.quote(str(Path(config) / name))
            lines += [f"cat > {path} <<'END'", text + "END"]
        command = self.container(config) if container else self.program(config)
        return "\n".join([*lines, shlex.join(command)]) + "\n"

    def _flags(self, base, config, batching):
        if self.version is None:
            flags = [f"--model_name={self.name}", f"--model_base_path={base}"]
        else:
            flags = [f"--model_config_file={config}/models.config"]
        flags.append(f"--monitoring_config_file={config}/monitoring.config")
        if batching:
            flags += ["--enable_batching=true", f"--batching_parameters_file={batching}"]
        if self.threads:
            flags.append(f"--tensorflow_intra_op_parallelism={self.threads}")
        return flags


def server_command(
    directory: str | os.PathLike,
    *,
    name: str | None = None,
    rest_port: int = _REST,
    grpc_port: int = _GRPC,
    batching: str | os.PathLike | None = None,
    threads: int | None = None,
) -> ServerCommand:
    """Return the command that serves an exported model. Nothing is started or written.

    Args:
        directory: path; ".../NAME" serves the newest version, also when newer ones appear,
            ".../NAME/3" only version 3.
        name: str, the model's name in requests. Default: None, the folder's name.
        rest_port: int, port for REST requests and for monitoring. Default: 8501.
        grpc_port: int, port for gRPC requests. Default: 8500.
        batching: path of a file of batching parameters. Default: None, no batching.
        threads: number of threads within one operation. With 1 the server answers the most requests
            per second, each on one processor; with more, a single request of many texts is answered
            sooner. Default: None, one per processor, which is TensorFlow's own choice.

    Returns:
        A `ServerCommand`.

    Raises:
        InputError: there is no version, or it does not match its manifest or is not a SavedModel;
            the name does not fit into a URL; a port is out of range or used twice; the file of
            batching parameters does not exist; or `threads` is not a positive integer.

    Examples:
        >>> command = ke.serving.server_command("saved_models/reviews")  # doctest: +SKIP
        >>> print(command.script("config"))  # doctest: +SKIP

    Reference:
        TensorFlow Serving, `with Docker <https://www.tensorflow.org/tfx/serving/docker>`_ and
        `configuration <https://www.tensorflow.org/tfx/serving/serving_config>`_.
    """
    version = find_version(directory)
    check_manifest(version)
    if not (version / SAVED_MODEL).is_file():
        raise InputError(
            f"TensorFlow Serving serves SavedModels. Received: {version}, without {SAVED_MODEL}. "
            "Export the model with format='saved_model'."
        )
    if not is_version(version):
        raise InputError(
            "TensorFlow Serving serves versions, which are folders named by numbers. Received: "
            f"{version}. Move it to a folder such as '{version.name}/1'."
        )
    pinned = Path(directory).expanduser().absolute() == version
    name = version.parent.name if name is None else name
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(
            "A model's name becomes part of a URL: letters, digits and '_', and except at the "
            f"start '.' and '-'. Received: {name!r}. Give one by --name."
        )
    ports = {"--rest-port": rest_port, "--grpc-port": grpc_port}
    for option, port in ports.items():
        if not isinstance(port, int) or isinstance(port, bool) or not 0 < port < 65536:
            raise InputError(f"{option} must be from 1 to 65535. Received: {port!r}. Give a port.")
    if rest_port == grpc_port:
        raise InputError(
            f"--rest-port and --grpc-port must differ. Received: {rest_port} for both. Change one."
        )
    if batching is not None:
        batching = Path(batching).expanduser().absolute()
        if not batching.is_file():
            state = "is not a file" if batching.exists() else "does not exist"
            raise InputError(
                f"--batching must name a file of batching parameters. Received: {batching}, which "
                f"{state}. Correct the path."
            )
    if threads is not None and (
        not isinstance(threads, int) or isinstance(threads, bool) or threads < 1
    ):
        raise InputError(
            f"--threads must be an integer of 1 or more. Received: {threads!r}. Give 1 for the "
            "most requests per second, or leave it out."
        )
    number = int(version.name) if pinned else None
    return ServerCommand(name, version.parent, number, rest_port, grpc_port, batching, threads)


def _mount(source, target):
    # Docker parses the option as a row of CSV, so a path with a comma must be quoted.
    row = io.StringIO()
    fields = ["type=bind", f"source={source}", f"target={target}", "readonly"]
    csv.writer(row, lineterminator="").writerow(fields)
    return ["--mount", row.getvalue()]


def _quoted(text):
    """Quote a string for the text format of protocol buffers."""
    return '"' + re.sub(r'(["\\])', r"\\\1", text).replace("\n", "\\n") + '"'
