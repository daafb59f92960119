"""Helpers of the scripts that run exported models in a process without Keras.

This file is imported inside those processes: it imports the standard library and NumPy only.
"""

import os
import resource
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

#: Libraries that a process serving an exported model must do without.
LIBRARIES = ("keras", "tf_keras", "keras_efficient", "keras_hub", "transformers", "official")


def end_with_parent(folder: Path | None = None, seconds: float = 1.0) -> None:
    """End this process soon after the one that started it, even if that one was killed.

    Args:
        folder: temporary folder of the parent to remove then; a confined process can only empty
            it. Default: None.
        seconds: how often to look. Default: 1.0.
    """
    parent = int(os.environ.get("KERAS_EFFICIENT_PARENT", os.getppid()))

    def watch():
        while os.getppid() == parent:
            time.sleep(seconds)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def block_imports(names=LIBRARIES) -> None:
    """Make every later import of these packages fail, as if they were not installed.

    `import tensorflow` imports an installed Keras for its own optimizers, which takes seconds, and
    does without a missing one. A model that needs one of these packages fails in this process.
    """
    for name in names:
        sys.modules[name] = None  # pyright: ignore[reportArgumentType]


def imported(names=LIBRARIES) -> list[str]:
    """Return those of the packages that are loaded."""
    return [name for name in names if sys.modules.get(name) is not None]


def load_arrays(path) -> dict[str, np.ndarray]:
    """Read all arrays of an .npz file."""
    with np.load(path) as file:
        return dict(file)


def time_calls(call: Callable, calls: int, seconds: float) -> tuple[list[float], list[float]]:
    """Return the duration and the processor time of each call, in milliseconds.

    Processor time is that of all threads of this process. At least one call is made, at most
    `calls`, and none starts after `seconds` have passed.
    """
    times, processor = [], []
    begin = time.perf_counter()
    while len(times) < calls:
        start, used = time.perf_counter(), time.process_time()
        if times and start - begin > seconds:
            break
        call()
        times.append((time.perf_counter() - start) * 1e3)
        processor.append((time.process_time() - used) * 1e3)
    return times, processor


def peak_memory_bytes() -> int:
    """Return the largest resident set size that this process has had."""
    try:
        # Linux lets a child process inherit the `ru_maxrss` of its parent.
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
