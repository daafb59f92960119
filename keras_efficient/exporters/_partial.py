"""Hidden names of files and folders that are being written, and the removal of abandoned ones."""

import re
import secrets
import shutil
import socket
from contextlib import suppress
from pathlib import Path

import psutil

#: Clocks of a file system and of this machine may differ by so many seconds.
_CLOCK_SECONDS = 60.0


def partial_path(path: Path) -> Path:
    """Return a hidden name beside `path` that tells which process writes it.

    Args:
        path: path of a version, or of its archive.
    """
    return path.with_name(f".{path.name}.partial-{_writer()}-{secrets.token_hex(4)}")


def remove_abandoned(folder: Path):
    """Remove what killed exports left in a folder: half a version, or half an archive of one.

    Those of other machines stay, since their processes cannot be checked.
    """
    host = re.escape(_host())
    pattern = re.compile(rf"\.\d+(?:\.tar\.zst|\.zip)?\.partial-{host}-(\d+)-[0-9a-f]+")
    for path in folder.iterdir():
        match = pattern.fullmatch(path.name)
        if match and _is_abandoned(int(match[1]), path):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):
                    path.unlink()


def _writer():
    return f"{_host()}-{psutil.Process().pid}"


def _host():
    return re.sub(r"[^A-Za-z0-9]", "_", socket.gethostname())


def _is_abandoned(pid, path):
    try:
        started = psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, ValueError, OverflowError):
        return False
    # Process ids are reused, in a restarted container even at once.
    with suppress(OSError):
        return started > path.stat().st_mtime + _CLOCK_SECONDS
    return False
