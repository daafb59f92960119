"""Script that gives up rights which running a model does not need, then runs another script.

Run as `python -P _sandbox.py FOLDER SCRIPT [ARGUMENT ...]`. Until the process ends it gains no
privileges, has none of root's but to read files, dumps no core and writes no file above 1 GiB; and
where the system offers it, it has no network, writes in FOLDER only, starts no other program and
signals no other process. What the system does not offer is left out silently.

It imports the standard library and landlockpy only, because the rights are those of a thread and of
threads started later, and libraries such as NumPy start threads when they are imported.
"""

import ctypes
import os
import resource
import runpy
import sys
from contextlib import suppress

_LARGEST_FILE_BYTES = 2**30
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_CAPABILITY_VERSION_3 = 0x20080522
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1 << 1, 1 << 2


def confine(folder) -> None:
    """Give up this process's rights but to read files and to write in `folder`."""
    # TensorFlow looks for a folder for temporary files as it is imported.
    os.environ["TMPDIR"] = str(folder)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, _LARGEST_FILE_BYTES)
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    # A network of its own, without interfaces: either as root, or as one's own new user namespace.
    if libc.unshare(_CLONE_NEWNET):
        libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
    # Of root's capabilities, and those in a new user namespace, only the one to read files remains.
    words = ctypes.c_uint32 * 6
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    held = words()
    libc.capget(header, held)
    # Containers often give root the right to override permissions in place of that to read.
    kept = held[1] & _CAP_DAC_READ_SEARCH or held[1] & _CAP_DAC_OVERRIDE
    libc.capset(header, words(kept, kept))
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # landlockpy raises OSError where the kernel has no Landlock, or does not allow it.
    with suppress(ImportError, OSError):
        _restrict_writing(folder)


def _limit(kind, most):
    hard = resource.getrlimit(kind)[1]
    limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (limit, limit))


def _restrict_writing(folder):
    from landlockpy import AccessFS, Ruleset, Scope

    changes = ~(AccessFS.READ_FILE | AccessFS.READ_DIR)
    with Ruleset(handled_fs=changes, scoped=Scope.ABSTRACT_UNIX_SOCKET | Scope.SIGNAL) as ruleset:
        ruleset.allow_path(folder, changes & ~AccessFS.EXECUTE)
        # Where dill is installed, TensorFlow imports it, and it opens this file to write.
        ruleset.allow_path(os.devnull, AccessFS.WRITE_FILE | AccessFS.TRUNCATE)
        ruleset.restrict()


if __name__ == "__main__":
    confine(sys.argv[1])
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
