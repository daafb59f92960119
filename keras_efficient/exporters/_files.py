"""The files of a version, of which none may lead out of it."""

import hashlib
import os
import stat
from pathlib import Path

from keras_efficient._errors import InputError

#: No model is worth a walk through more than this.
_MOST = 100_000


def regular_files(folder) -> dict:
    """The files below `folder`: paths from there, with "/", in order, to `os.stat_result`.

    Args:
        folder: path of a folder, itself maybe a link.

    Returns:
        {relative path: its `lstat`}.

    Raises:
        InputError: no folder, a symbolic link, something that is no file (a pipe would be waited
            for), a file that cannot be read, or far too many.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(
            f"A version must be a folder. Received: {str(folder)!r}, which "
            f"{'is a file' if folder.exists() else 'does not exist'}. Correct the path."
        )
    found = {}
    for root, folders, names in os.walk(folder, onerror=_unreadable):
        # os.walk lists links to folders among the folders, and does not follow them.
        for name in (*folders, *names):
            path = Path(root, name)
            status = path.lstat()
            relative = path.relative_to(folder).as_posix()
            if stat.S_ISDIR(status.st_mode):
                continue
            if not stat.S_ISREG(status.st_mode):
                link = stat.S_ISLNK(status.st_mode)
                raise InputError(
                    "A version may hold files and folders only. Received: "
                    f"{'a symbolic link' if link else 'no regular file'} at {relative!r} in "
                    f"{folder}. Put the file itself there, or export again."
                )
            found[relative] = status
            if len(found) > _MOST:
                raise InputError(
                    f"A version may hold at most {_MOST:,} files. Received: {folder}, with more. "
                    "Name the folder of one version."
                )
    return dict(sorted(found.items()))


def _unreadable(error):
    raise InputError(
        f"Every folder of a version must be readable. Received: {error.filename} "
        f"({error.strerror}). Change its permissions."
    )


def sha256(path) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(
            f"Every file of a version must be readable. Received: {path} ({error.strerror}). "
            "Change its permissions, or export again."
        ) from error
