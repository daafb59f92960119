"""`archive`: pack a version into one file."""

import os
from pathlib import Path

from keras_efficient._errors import InputError
from keras_efficient.exporters._archive import write_archive
from keras_efficient.exporters._destination import is_version
from keras_efficient.versions._check_manifest import check_manifest


def archive(folder: str | os.PathLike) -> tuple[Path, int]:
    """Pack a version into one file beside it: ".../NAME/3.tar.zst", or "3.zip" without zstandard.

    The version is checked first. The same version always gives the same bytes: names are sorted,
    and times and owners are left out. The file is written under a hidden name and then renamed, and
    it never replaces another file. `unpack` is the inverse.

    Args:
        folder: path of a version, with its manifest.

    Returns:
        `(path, bytes)`: the path of the archive and its size.

    Raises:
        InputError: the folder is not a version, it differs from its manifest, or the archive
            exists.

    Examples:
        >>> ke.versions.archive("saved_models/reviews/1")  # doctest: +SKIP
        (PosixPath('saved_models/reviews/1.tar.zst'), 15728640)

    Reference:
        `Reproducible Builds, archive metadata
        <https://reproducible-builds.org/docs/archives/>`_; `Zstandard, RFC 8878
        <https://www.rfc-editor.org/rfc/rfc8878>`_.
    """
    folder = Path(folder).absolute()
    if not is_version(folder):
        raise InputError(
            f"Only a version can be archived, a folder named by a number. Received: {folder}. Name "
            "the version, such as 'saved_models/reviews/1'."
        )
    check_manifest(folder)
    return write_archive(folder)
