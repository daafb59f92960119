"""`Job`: the program that every worker runs, and how to run it."""

import sys
from dataclasses import dataclass
from pathlib import Path

from keras_efficient._errors import InputError


@dataclass(frozen=True)
class Job:
    """A program that every worker runs, and how to run it.

    Args:
        program: arguments after "python": ("train.py", "--epochs", "3") or ("-m", "my.module").
            They reach the workers unchanged.
        python: interpreter of the workers. Default: this one.
        max_restarts: how often all workers are started again after a failure; None for no limit,
            which only Slurm supports. Default: 0.
        grace: seconds from SIGTERM to SIGKILL when workers are stopped. Default: 30.
        gpus_per_worker: number of GPUs that each worker sees. Default: None, all of its machine.
        threads_per_worker: number of CPU threads of each worker's operations. Default: None,
            TensorFlow's choice, which is all cores of the machine for each worker.
        join_timeout: seconds within which every worker on this machine must join the cluster, or
            the job is stopped. Default: None, a warning after 30 seconds and at the end.
        log_dir: folder for one log file per worker and attempt. Default: None, no files.

    Raises:
        InputError: a number is out of range, or there is no program.
    """

    program: tuple[str, ...]
    python: str = sys.executable
    max_restarts: int | None = 0
    grace: float = 30.0
    gpus_per_worker: int | None = None
    threads_per_worker: int | None = None
    log_dir: Path | None = None
    join_timeout: float | None = None

    def __post_init__(self):
        if not self.program or self.program == ("-m",):
            raise InputError(
                "There must be a program to start. Received: none. Write for example "
                "`keras-efficient launch --workers 2 train.py`."
            )
        check_at_least("--max-restarts", self.max_restarts, 0)
        check_at_least("--grace", self.grace, 0)
        check_at_least("--join-timeout", self.join_timeout, 1)
        check_at_least("--gpus-per-worker", self.gpus_per_worker, 0)
        check_at_least("--threads-per-worker", self.threads_per_worker, 1)

    @property
    def command(self) -> tuple[str, ...]:
        """Command line of a worker, with unbuffered output so that none is lost."""
        return (self.python, "-u", *self.program)

    @property
    def thread_variables(self) -> dict[str, str]:
        """Environment variables that limit the threads of TensorFlow and its libraries."""
        names = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
        return dict.fromkeys(names, str(self.threads_per_worker)) if self.threads_per_worker else {}


def check_at_least(option: str, value: float | None, least: float) -> None:
    """Check that an option, if given, is at least `least`.

    Raises:
        InputError: it is not.
    """
    if value is not None and not value >= least:
        raise InputError(
            f"{option} must be at least {least}. Received: {value}. Give a larger number."
        )
