"""How TensorFlow Serving is started for a model, as a program or as a container."""

import csv
import io
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
#: Where the container finds things, and the ports that its image opens.
_MODELS, _CONFIG, _BATCHING = "/models", "/config", "/batching.config"
_GRPC, _REST = 8500, 8501


@dataclass(frozen=True)
class ServerCommand:
    """What to start, and the configuration files it needs.

    Attributes:
        name: str, the model's name on the server.
        base: absolute path of the folder with the versions.
        version: int, the only version to serve; None, the newest, and each newer one that comes.
        rest_port, grpc_port: int, ports of this machine.
        batching: absolute path of a file of batching parameters, or None.
    """

    name: str
    base: Path
    version: int | None
    rest_port: int
    grpc_port: int
    batching: Path | None

    def program(self, config, program=PROGRAM) -> list[str]:
        """The command for an installed server; its configuration files are in `config`."""
        ports = [f"--port={self.grpc_port}", f"--rest_api_port={self.rest_port}"]
        return [str(program), *ports, *self._flags(self.base, config, self.batching)]

    def container(self, config, docker="docker") -> list[str]:
        """The command for Docker; paths of this machine are mounted, only to be read."""
        base = f"{_MODELS}/{self.name}"
        command = [str(docker), "run", "--rm", "--init"]
        command += ["-p", f"{self.rest_port}:{_REST}", "-p", f"{self.grpc_port}:{_GRPC}"]
        command += _mount(self.base, base) + _mount(config, _CONFIG)
        if self.batching:
            command += _mount(self.batching, _BATCHING)
        # The image starts the server with its own ports and MODEL_NAME, then what follows here.
        command += ["-e", f"MODEL_NAME={self.name}", IMAGE]
        flags = self._flags(base, _CONFIG, self.batching and _BATCHING)
        return command + [x for x in flags if not x.startswith(("--model_name", "--model_base"))]

    def files(self, container=False) -> dict[str, str]:
        """The configuration files: text by name."""
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

    def script(self, config, container=False) -> str:
        """A shell script that writes the files into `config` and starts the server."""
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
        return flags


def server_command(
    directory, *, name=None, rest_port=_REST, grpc_port=_GRPC, batching=None
) -> ServerCommand:
    """How to serve an exported model with TensorFlow Serving. Nothing is started or written.

    Args:
        directory: str or path. ".../NAME" serves its newest version, and each newer one that comes;
            ".../NAME/3" only version 3.
        name: str, the model's name in requests; default None, the folder's name.
        rest_port: int, the port for REST, and for what is monitored. Default 8501.
        grpc_port: int, the port for gRPC. Default 8500.
        batching: path of a file of batching parameters; default None, no batching.

    Returns:
        A `ServerCommand`.

    Raises:
        InputError: no version, one that is not as its manifest says or no SavedModel, a name that
            cannot stand in an address, unusable ports, or no such file.

    Example:
        >>> command = ke.serving.server_command("saved_models/reviews")  # doctest: +SKIP
        >>> print(command.script("config"))  # doctest: +SKIP
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
            "A model's name becomes part of an address: letters, digits, '_', '.' and '-', not at "
            f"the start. Received: {name!r}. Give one by --name."
        )
    ports = {"--rest-port": rest_port, "--grpc-port": grpc_port}
    for option, port in ports.items():
        if not isinstance(port, int) or isinstance(port, bool) or not 0 < port < 65536:
            raise InputError(f"{option} must lie from 1 to 65535. Received: {port!r}. Give a port.")
    if rest_port == grpc_port:
        raise InputError(
            f"--rest-port and --grpc-port must differ. Received: {rest_port} for both. Give "
            "another for one."
        )
    if batching is not None:
        batching = Path(batching).expanduser().absolute()
        if not batching.is_file():
            raise InputError(
                f"--batching must name a file of batching parameters. Received: {batching}, which "
                f"{'is none' if batching.exists() else 'does not exist'}. Correct the path."
            )
    number = int(version.name) if pinned else None
    return ServerCommand(name, version.parent, number, rest_port, grpc_port, batching)


def _mount(source, target):
    # Docker reads the option as a row of CSV, so a path with a comma is put in quotes.
    row = io.StringIO()
    fields = ["type=bind", f"source={source}", f"target={target}", "readonly"]
    csv.writer(row, lineterminator="").writerow(fields)
    return ["--mount", row.getvalue()]


def _quoted(text):
    """`text` as a string of a protocol buffer in text format."""
    return '"' + re.sub(r'(["\\])', r"\\\1", text).replace("\n", "\\n") + '"'
