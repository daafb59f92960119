"""`keras-efficient serve`: start TensorFlow Serving for a model, or print how to."""

import json
import os
import shlex
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from keras_efficient._errors import InputError
from keras_efficient.bench._cpu import cpu_name
from keras_efficient.exporters._manifest import MANIFEST
from keras_efficient.serving._tf_serving import IMAGE, PROGRAM, ServerCommand, server_command
from keras_efficient.versions._find_version import find_version

_INSTALL = f"""\
# {PROGRAM} is not on PATH, nor is docker. Get one of them:
#   {PROGRAM}: https://www.tensorflow.org/tfx/serving/setup (packages for Debian and Ubuntu)
#   docker: https://docs.docker.com/get-docker/, then `docker pull {IMAGE}`
"""


@dataclass(frozen=True)
class Settings:
    """The options of `serve`."""

    directory: Path
    name: str | None
    rest_port: int
    grpc_port: int
    batching: Path | None
    threads: int | None
    dry_run: bool


def start(settings: Settings) -> int:
    """Replace this process by the server; or print how to start it, and return the exit code.

    Raises:
        InputError: `server_command` raises it; or the version is an int8 model for other CPUs.
    """
    server = server_command(
        settings.directory,
        name=settings.name,
        rest_port=settings.rest_port,
        grpc_port=settings.grpc_port,
        batching=settings.batching,
        threads=settings.threads,
    )
    program, docker = shutil.which(PROGRAM), shutil.which("docker")
    if settings.dry_run or (program is None and docker is None):
        _print(server, program, docker)
        return 0 if settings.dry_run else 1
    _check_cpu(find_version(settings.directory))
    # The folder must stay, because the server replaces this process.
    config = Path(tempfile.mkdtemp(prefix="keras_efficient-serve-"))
    # In the container the server runs as another user.
    config.chmod(0o755)
    for name, text in server.files(container=not program).items():
        (config / name).write_text(text, encoding="utf-8")
    if program:
        command = server.program(config, program)
    else:
        command = server.container(config, docker or "docker")
    print(shlex.join(command), file=sys.stderr, flush=True)
    os.execv(command[0], command)


def _check_cpu(version):
    """Refuse a version that the server could not load on this CPU; it would say so in its log."""
    manifest = json.loads((version / MANIFEST).read_text(encoding="utf-8"))
    recipe = manifest.get("recipe")
    target = recipe.get("target") if isinstance(recipe, dict) else None
    if target not in ("vnni", "amx"):
        return
    # It imports TensorFlow.
    from keras_efficient.exporters.inference_ops.matmul import saturates

    if saturates():
        raise InputError(
            "An int8 model must be served by CPUs like those it was exported for. Received: "
            f"{version}, with target {target!r} in its {MANIFEST}, on {cpu_name()}, or under a "
            "limit by ONEDNN_MAX_CPU_ISA, where products of 8 bits are not exact. Export the model "
            "again with target avx2, or with quantize int8-weights, or serve it on another machine."
        )


def _print(server: ServerCommand, program, docker):
    config = Path.cwd() / f"{server.name}_serving"
    if not (program or docker):
        print(_INSTALL, end="")
    if program or not docker:
        print(f"# With {PROGRAM}:")
        print(server.script(config), end="")
    if not program:
        print("# With docker:")
        print(server.script(config, container=True), end="")
