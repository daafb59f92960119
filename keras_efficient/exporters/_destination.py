"""Choose the directory of a new version, and publish it atomically."""

import errno
import os
import secrets
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path

from keras_efficient._errors import InputError
from keras_efficient.exporters._partial import partial_path, remove_abandoned

#: Required free disk space as a multiple of the weights' size, which leaves space for the graph.
_HEADROOM = 1.2
#: Characters that TensorFlow reads as a pattern of names when it loads a SavedModel.
_PATTERNS = "*?[" + "\\" * (os.sep != "\\")
#: The largest version that TensorFlow Serving reads.
_LAST_VERSION = 2**63 - 1
#: Length of the longest hidden name of TensorFlow's files below a version, with a reserve.
_INNER_LENGTH = 200
#: Suffixes of archives of versions.
ARCHIVES = (".tar.zst", ".zip")


def check_destination(directory: str | os.PathLike, needed_bytes: int = 0) -> Path:
    """Return the version directory that an export would write, and check that it can be written.

    Nothing is created. Call it before training, so that a misspelt path or a full disk is found in
    seconds instead of after the run.

    Args:
        directory: str or path. ".../NAME/3", whose last part is a number, means version 3, which
            must not exist; ".../NAME" means the next free version of NAME, counted from 1.
        needed_bytes: int, size of the model's weights in bytes; 1.2 times as much must be free on
            the disk. Default: 0.

    Returns:
        The absolute path of the version directory.

    Raises:
        InputError: the path is empty, too long or has characters that TensorFlow cannot read in a
            path, the version exists, a part of the path is a file, the folder is not writable, or
            there is too little disk space.

    Examples:
        >>> import tempfile, pathlib
        >>> from keras_efficient.exporters import check_destination
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> check_destination(folder / "reviews").relative_to(folder).as_posix()
        'reviews/1'

    Reference:
        TensorFlow Serving, "Configuration", whose layout of numbered versions this is:
        https://www.tensorflow.org/tfx/serving/serving_config
    """
    if not isinstance(directory, str | os.PathLike) or not str(directory).strip():
        raise InputError(
            "`directory` must be a path: '.../NAME' for the next free version or '.../NAME/3' for "
            f"exactly version 3. Received: {directory!r}. Give a folder such as "
            "'saved_models/reviews'."
        )
    path = Path(directory).expanduser().absolute()
    folder = path.parent if is_version(path) else path
    _check_name(path, folder)
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
    """Return whether the last part of `path` is a version number."""
    name = Path(path).name
    return name.isascii() and name.isdecimal()


def next_version(folder) -> int:
    """Return one more than the highest version or archive in `folder`, which need not exist."""
    folder = Path(folder)
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    for suffix in ARCHIVES:
        names = [name.removesuffix(suffix) for name in names]
    return max((int(name) for name in names if is_version(name)), default=0) + 1


def _check_name(path, folder):
    """Refuse what the file system cannot hold, or what TensorFlow could not load."""
    text = str(path)
    if found := [c for c in _PATTERNS if c in text]:
        raise InputError(
            "An export's path must not hold *, ?, [ or a backslash, which TensorFlow reads as a "
            f"pattern of names when it loads the model. Received: {text!r}, with {found[0]!r}. "
            "Choose another name."
        )
    try:
        encoded = text.encode("utf-8")
    except UnicodeEncodeError:
        encoded = b"\0"
    if b"\0" in encoded:
        raise InputError(
            f"An export's path must be UTF-8 text without a NUL character. Received: {text!r}. "
            "Choose another name."
        )
    if is_version(path) and (len(path.name) > 19 or int(path.name) > _LAST_VERSION):
        raise InputError(
            f"A version must be at most {_LAST_VERSION}, the largest that TensorFlow Serving "
            f"reads. Received: {path.name[:40]!r} of {len(path.name)} digits. Give a smaller one, "
            f"or just {folder} for the next free version."
        )
    longest = max(folder.parts, key=lambda part: len(part.encode()))
    name_length, path_length = _length_limits(folder)
    length = len(str(folder).encode()) + _INNER_LENGTH
    if len(longest.encode()) > name_length or length > path_length:
        raise InputError(
            f"An export's path must have names of at most {name_length} bytes, and "
            f"{path_length - _INNER_LENGTH} bytes in all, because of the files below it. Received: "
            f"{text[:60]!r}..., whose longest name has {len(longest.encode())} bytes of "
            f"{len(encoded)}. Choose a shorter one."
        )


def _length_limits(folder):
    """Return the most bytes of a name and of a path where `folder` is, or will be."""
    for ancestor in (folder, *folder.parents):
        # A name that is too long cannot be looked up.
        with suppress(OSError, AttributeError):
            return os.pathconf(ancestor, "PC_NAME_MAX"), os.pathconf(ancestor, "PC_PATH_MAX")
    return 255, 4096


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
    """Create a hidden folder beside `version`, and remove it unless it is published.

    What killed runs on this machine left there is removed first.

    Yields:
        A `Staging`.

    Raises:
        InputError: the disk is full.
    """
    folder = version.parent
    created = _make_folders(folder)
    remove_abandoned(folder)
    staging = Staging(version, exact=is_version(directory))
    try:
        staging.path.mkdir()
        yield staging
    except Exception as error:
        if not is_full(error):
            raise
        shutil.rmtree(staging.path, ignore_errors=True)
        free = shutil.disk_usage(folder).free
        raise InputError(
            f"An export needs a disk with space for it. Received: {version}, whose disk became "
            f"full, and now has {free / 1e6:,.1f} MB free. Nothing was exported or kept. Free some "
            "space or choose another disk."
        ) from error
    finally:
        shutil.rmtree(staging.path, ignore_errors=True)
        for path in created:
            # Only folders that this export created, and only if they are empty.
            with suppress(OSError):
                path.rmdir()


class Staging:
    """A version in the making, in a hidden folder.

    Attributes:
        path: the hidden folder to write into, on the same filesystem as the version.
    """

    def __init__(self, version: Path, exact: bool):
        self.version, self.exact = version, exact
        self._token = secrets.token_hex(4)
        self.path = partial_path(version)

    def publish(self) -> Path:
        """Rename the folder to its version, atomically and never onto an existing version."""
        while True:
            try:
                # rename(2) replaces an empty folder, hence the check. It fails if the folder has
                # files, which decides a race between two exports.
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

    def disk_is_full(self) -> bool:
        """Return whether so little space is left that files may have been cut short."""
        return shutil.disk_usage(self.version.parent).free < 4096

    def keep_aside(self) -> Path:
        """Keep a refused folder under a name that servers do not take for a version."""
        aside = self.version.parent / f".{self.version.name}.refused-{self._token}"
        os.rename(self.path, aside)
        return aside


def is_full(error: BaseException | None) -> bool:
    """Return whether an error of Python or TensorFlow, or its cause, says that a disk is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT)):
            return True
        error = error.__cause__
    return False


def _make_folders(folder):
    """Create `folder`; return the folders that were missing, innermost first."""
    missing = []
    for path in (folder, *folder.parents):
        if path.exists():
            break
        missing.append(path)
    folder.mkdir(parents=True, exist_ok=True)
    return missing
