"""Run a script in a separate Python process, on the CPU and outside any training cluster."""

import os
import subprocess
import sys
from pathlib import Path

_SANDBOX = Path(__file__).with_name("_sandbox.py")


def bare_environment(log_level: str = "2") -> dict[str, str]:
    """Return this process's environment variables, changed for a process that serves a model.

    `TF_CONFIG` would make the process join the training cluster, and training occupies the GPU's
    memory.

    Args:
        log_level: `TF_CPP_MIN_LOG_LEVEL`. Default: "2", errors.
    """
    env = {name: value for name, value in os.environ.items() if name != "TF_CONFIG"}
    env |= {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": log_level}
    # For `_bare_process.end_with_parent`.
    return env | {"KERAS_EFFICIENT_PARENT": str(os.getpid())}


def sandboxed_command(folder: Path, script: str | os.PathLike, *arguments: str) -> list[str]:
    """Return the command that runs `script` in this interpreter, confined by `_sandbox.py`.

    With -P the folder of the script is not on the path, where its files could shadow modules of
    other packages.

    Args:
        folder: path of the only folder in which the process may write.
        script: path of a Python file.
        *arguments: str, arguments of the script.
    """
    return [sys.executable, "-P", str(_SANDBOX), str(folder), str(script), *arguments]


def run_script(
    script: str | os.PathLike,
    folder: Path,
    *,
    log_level: str = "2",
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `script`, confined by `_sandbox.py`, with a folder as its argument.

    Files are exchanged through the folder, the only one in which the script may write.

    Args:
        script: path of a Python file.
        folder: path of the folder.
        log_level: see `bare_environment`.
        timeout: seconds before the process is stopped. Default: None, no limit.

    Returns:
        The finished process, with what it wrote to standard error in `stderr`.

    Raises:
        subprocess.TimeoutExpired: it did not finish in time.
    """
    return subprocess.run(
        sandboxed_command(folder, script, str(folder)),
        env=bare_environment(log_level),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        timeout=timeout,
    )
