"""List and hash the files of a version; symbolic links are refused."""

import hashlib
import os
import stat
from pathlib import Path

from keras_efficient._errors import InputError

#: Largest number of files that is listed.
_MAX_FILES = 100_000


def regular_files(folder) -> dict:
    """List the files below `folder`, sorted.

    Args:
        folder: path of a folder, which may itself be a symbolic link.

    Returns:
        {relative path with "/": its `lstat`, an `os.stat_result`}.

    Raises:
        InputError: the folder does not exist or is not readable, or it holds a symbolic link,
            something else that is not a file, such as a pipe, or too many files.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(
            f"A version must be a folder. Received: {str(folder)!r}, which "
            f"{'is a file' if folder.exists() else 'does not exist'}. Correct the path."
        )
    found = {}
    for root, folders, names in os.walk(folder, onerror=_unreadable):
        # os.walk lists symbolic links to folders among the folders, and does not follow them.
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
            if len(found) > _MAX_FILES:
                raise InputError(
                    f"A version may hold at most {_MAX_FILES:,} files. Received: {folder}, with "
                    "more. Name the folder of one version."
                )
    return dict(sorted(found.items()))


def _unreadable(error):
    raise InputError(
        f"Every folder of a version must be readable. Received: {error.filename} "
        f"({error.strerror}). Change its permissions."
    )


def sha256(path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(
            f"Every file of a version must be readable. Received: {path} ({error.strerror}). "
            "Change its permissions, or export again."
        ) from error
