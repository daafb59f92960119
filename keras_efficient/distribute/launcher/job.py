"""What to start: a program, its workers and when to start it again."""

import sys
from dataclasses import dataclass
from pathlib import Path

from keras_efficient._errors import InputError


@dataclass(frozen=True)
class Job:
    """A program that every worker runs, and how.

    Args:
        program: the words after "python": ("train.py", "--epochs", "3") or ("-m", "my.module").
            They reach the workers as they are.
        python: the interpreter of the workers; default: this one.
        max_restarts: how often all workers are started again after one failed; default: 0.
        grace: seconds from SIGTERM to SIGKILL when workers are stopped; default: 30.
        gpus_per_worker: how many GPUs each worker sees; default: all of its machine.
        threads_per_worker: how many CPU threads each worker's operations use; default:
            TensorFlow's choice, every core of the machine for each worker.
        log_dir: folder for one file per worker and attempt; default: none are written.

    Raises:
        InputError: a number out of range, or no program.
    """

    program: tuple
    python: str = sys.executable
    max_restarts: int = 0
    grace: float = 30.0
    gpus_per_worker: int | None = None
    threads_per_worker: int | None = None
    log_dir: Path | None = None

    def __post_init__(self):
        if not self.program or self.program == ("-m",):
            raise InputError(
                "There must be a program to start. Received: none. Write for example "
                "`keras-efficient launch --workers 2 train.py`."
            )
        at_least("--max-restarts", self.max_restarts, 0)
        at_least("--grace", self.grace, 0)
        at_least("--gpus-per-worker", self.gpus_per_worker, 0)
        at_least("--threads-per-worker", self.threads_per_worker, 1)

    @property
    def command(self):
        """The words that start a worker. Its output is not buffered, so that none gets lost."""
        return (self.python, "-u", *self.program)

    @property
    def thread_variables(self):
        """What limits the threads of TensorFlow and of the libraries below it."""
        names = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
        return dict.fromkeys(names, str(self.threads_per_worker)) if self.threads_per_worker else {}


def at_least(option, value, least):
    """Refuse a number below `least`; None, for an option that was not given, passes."""
    if value is not None and not value >= least:
        raise InputError(
            f"{option} must be at least {least}. Received: {value}. Give a larger number."
        )
