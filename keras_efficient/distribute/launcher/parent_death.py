"""What a new process does before it becomes a worker, so that it does not outlive us."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def before_start(cores=None):
    """A function for `subprocess.Popen(preexec_fn=...)`.

    On Linux the kernel then kills the process when the thread that started it ends; elsewhere
    nothing does.

    Args:
        cores: the CPU cores it may use; default: all.
    """
    launcher = os.getpid()
    # Loaded here: after the fork there should be nothing left to import.
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

    def prepare():
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != launcher:
                os._exit(1)
        if cores:
            os.sched_setaffinity(0, cores)

    return prepare
