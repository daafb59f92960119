"""`die_with_parent`, which keeps a new process from outliving the launcher."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterable

_PR_SET_PDEATHSIG = 1


def die_with_parent(cores: Iterable[int] | None = None) -> Callable[[], None]:
    """Return a function for `subprocess.Popen(preexec_fn=...)`.

    On Linux it makes the kernel kill the new process when the thread that started it ends. On other
    systems it has no such effect.

    Args:
        cores: CPU cores to pin the process to. Default: None, all cores.
    """
    launcher = os.getpid()
    # Loaded here, because a forked process should not import anything.
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

    def prepare():
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != launcher:
                os._exit(1)
        if cores:
            os.sched_setaffinity(0, cores)

    return prepare
