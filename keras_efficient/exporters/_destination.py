"""Where a version of a SavedModel goes, and how it gets there whole or not at all."""

import os
import re
import secrets
import shutil
import socket
from contextlib import contextmanager, suppress
from pathlib import Path

from keras_efficient._errors import InputError

#: Free disk asked for, as a multiple of the weights' bytes: the graph and the index come on top.
_HEADROOM = 1.2
#: What a version as one file ends in.
ARCHIVES = (".tar.zst", ".zip")


def check_destination(directory, needed_bytes: int = 0) -> Path:
    """Find the version directory an export would write, and refuse what would fail later.

    Nothing is created. A training run calls this before its first step, so that a misspelt path or
    a full disk costs seconds instead of the whole run.

    Args:
        directory: str or path. ".../NAME/3" (the last part is a number) means exactly version 3,
            which must not exist; ".../NAME" means the next free version of NAME, from 1.
        needed_bytes: int, bytes of the model's weights; 1.2 times as many must be free on the
            disk. Default 0.

    Returns:
        The path of the version directory, absolute.

    Raises:
        InputError: the path is empty, the version exists, a part of the path is a file, the folder
            is not writable, or the disk too full.

    Example:
        >>> import tempfile, pathlib
        >>> from keras_efficient.exporters import check_destination
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> check_destination(folder / "reviews").relative_to(folder).as_posix()
        'reviews/1'
    """
    if not isinstance(directory, str | os.PathLike) or not str(directory).strip():
        raise InputError(
            "`directory` must be a path: '.../NAME' for the next free version or '.../NAME/3' for "
            f"exactly version 3. Received: {directory!r}. Give a folder such as "
            "'saved_models/reviews'."
        )
    path = Path(directory).expanduser().absolute()
    folder = path.parent if is_version(path) else path
    _check_folder(folder, needed_bytes)
    if not is_version(path):
        return folder / str(next_version(folder))
    if os.path.lexists(path):
        raise InputError(
            f"An export never overwrites a version. Received: {directory!s}, which exists. Use "
            f"{folder / str(next_version(folder))} or just {folder} for the next free version."
        )
    return path


def is_version(path) -> bool:
    """Whether the last part of `path` is a version number."""
    name = Path(path).name
    return name.isascii() and name.isdecimal()


def next_version(folder) -> int:
    """One more than the highest version, or archive of one, in `folder`, which need not exist."""
    folder = Path(folder)
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    for suffix in ARCHIVES:
        names = [name.removesuffix(suffix) for name in names]
    return max((int(name) for name in names if is_version(name)), default=0) + 1


def _check_folder(folder, needed_bytes):
    ancestor = folder
    while not os.path.lexists(ancestor):
        ancestor = ancestor.parent
    if not ancestor.is_dir():
        raise InputError(
            f"Every part of an export's path must be a folder. Received: {folder}, where "
            f"{ancestor} is a file. Move it away or choose another path."
        )
    if not os.access(ancestor, os.W_OK | os.X_OK):
        raise InputError(
            f"An export's folder must be writable. Received: {folder}, and {ancestor} may not be "
            "written by this user. Choose another path or change its permissions."
        )
    wanted, free = int(needed_bytes * _HEADROOM), shutil.disk_usage(ancestor).free
    if free < wanted:
        raise InputError(
            f"An export needs about {wanted / 1e6:,.1f} MB of free disk ({_HEADROOM} times the "
            f"weights). Received: {folder}, with {free / 1e6:,.1f} MB free. Free some space or "
            "choose another disk."
        )


@contextmanager
def staged(directory, version: Path):
    """A hidden folder beside `version`, which vanishes unless it is published.

    Yields a `Staging`. What killed runs on this machine left behind is removed first.
    """
    folder = version.parent
    created = _make_folders(folder)
    _remove_stale(folder)
    staging = Staging(version, exact=is_version(directory))
    try:
        staging.path.mkdir()
        yield staging
    finally:
        shutil.rmtree(staging.path, ignore_errors=True)
        for path in created:
            # Only what this export made, and only while nothing is in it.
            with suppress(OSError):
                path.rmdir()


class Staging:
    """A half-made version: published in one rename, or kept aside, or gone.

    Attributes:
        path: the hidden folder to write into, on the same filesystem as the version.
    """

    def __init__(self, version: Path, exact: bool):
        self.version, self.exact = version, exact
        self._token = secrets.token_hex(4)
        owner = f"{_host()}-{os.getpid()}"
        self.path = version.parent / f".{version.name}.partial-{owner}-{self._token}"

    def publish(self) -> Path:
        """Rename the folder to its version; atomic, and never onto an existing version."""
        while True:
            try:
                # rename(2) replaces an empty folder, so one that is there is not even tried; onto
                # a folder with files it fails, which decides a race between two exports.
                if not os.path.lexists(self.version):
                    os.rename(self.path, self.version)
                    return self.version
            except OSError:
                if not os.path.lexists(self.version):
                    raise
            if self.exact:
                raise InputError(
                    f"An export never overwrites a version. Received: {self.version}, which "
                    "another export wrote meanwhile. Export again to another version."
                )
            folder = self.version.parent
            self.version = folder / str(next_version(folder))

    def keep_aside(self) -> Path:
        """Keep a refused folder under a name that no server takes for a version."""
        aside = self.version.parent / f".{self.version.name}.refused-{self._token}"
        os.rename(self.path, aside)
        return aside


def _make_folders(folder):
    """Create `folder`; the folders that were missing, innermost first."""
    missing = []
    for path in (folder, *folder.parents):
        if path.exists():
            break
        missing.append(path)
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _host():
    return re.sub(r"[^A-Za-z0-9]", "_", socket.gethostname())


def _remove_stale(folder):
    # Another machine's processes cannot be asked for, so its folders stay.
    pattern = re.compile(rf"\.\d+\.partial-{re.escape(_host())}-(\d+)-[0-9a-f]+")
    for path in folder.iterdir():
        match = pattern.fullmatch(path.name)
        if match and not _alive(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
