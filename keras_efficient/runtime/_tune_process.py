"""Process settings that make training on a CPU faster: glibc's allocator and oneDNN."""

import ctypes
import os
import platform
import re
import sys
from dataclasses import dataclass

#: Parameters of glibc's `mallopt` and their values: serve all arrays from the heap, keep what is
#: freed, and let the heap grow by 64 MiB at a time.
MALLOPT = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_TOP_PAD": (-2, 64 << 20)}
ONEDNN = "TF_ENABLE_ONEDNN_OPTS"


@dataclass(frozen=True)
class TuneProcessReport:
    """What `tune_process` set and what it left; prints as one line per setting.

    Attributes:
        applied: dict of each setting to what it was set to.
        skipped: dict of each setting that was left as it was to the reason.
    """

    applied: dict[str, str]
    skipped: dict[str, str]

    def __str__(self):
        lines = [f"{name}: {value}" for name, value in self.applied.items()]
        return "\n".join(
            [*lines, *(f"{name}: not set, {why}" for name, why in self.skipped.items())]
        )


def tune_process() -> TuneProcessReport:
    """Set what makes training on a CPU faster in this process, and report what was set.

    - glibc's allocator keeps freed memory instead of returning it to the system. By default it
      maps arrays of more than 32 MB anew each time, such as the temporary arrays for an embedding
      table, and the system clears every page of them. The process then holds its peak memory until
      it ends.
    - TensorFlow's oneDNN kernels are switched on, if TensorFlow has not been imported yet. On CPUs
      without AVX512-VNNI they are off by default. Their sums are rounded in another order, so
      results differ in the last digits.

    Nothing of this happens on import. Call it first in a program, before Keras or TensorFlow is
    imported. Settings that do not apply to this system, or that the environment variables
    `TF_ENABLE_ONEDNN_OPTS` and `LD_PRELOAD` have decided, are left and named with the reason.

    Returns:
        The report, for `print(ke.tune_process())`.

    Examples:
        >>> print(ke.tune_process())  # doctest: +SKIP
        glibc allocator: freed memory is kept for the next step
        oneDNN: TF_ENABLE_ONEDNN_OPTS=1

    Reference:
        mallopt(3) of the Linux manual pages; "oneDNN" in TensorFlow's release notes of 2.9.
    """
    applied, skipped = {}, {}
    for name, setting in (("glibc allocator", _set_allocator), ("oneDNN", _enable_onednn)):
        done, text = setting()
        (applied if done else skipped)[name] = text
    return TuneProcessReport(applied, skipped)


def _set_allocator() -> tuple[bool, str]:
    """Set glibc's allocator; return whether it is set, and to what or why not."""
    if platform.libc_ver()[0] != "glibc":
        return False, "this system's C library is not glibc"
    if other := re.search(r"jemalloc|tcmalloc|mimalloc", os.environ.get("LD_PRELOAD", "")):
        return False, f"LD_PRELOAD replaces glibc's allocator by {other[0]}"
    mallopt = ctypes.CDLL(None).mallopt
    if not all(mallopt(*setting) for setting in MALLOPT.values()):
        return False, "glibc refused one of " + ", ".join(MALLOPT)
    return True, "freed memory is kept for the next step"


def _enable_onednn() -> tuple[bool, str]:
    """Switch oneDNN on; return whether it is switched on, and how or why not."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False, f"TensorFlow has its own default on {platform.machine()}"
    if ONEDNN in os.environ:
        return False, f"{ONEDNN}={os.environ[ONEDNN]} is set already"
    if "tensorflow" in sys.modules:
        return False, (
            f"TensorFlow has been imported already; call ke.tune_process() before that, or start "
            f"Python with {ONEDNN}=1"
        )
    os.environ[ONEDNN] = "1"
    return True, f"{ONEDNN}=1"
