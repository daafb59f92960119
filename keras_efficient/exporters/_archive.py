"""Pack a version directory into one reproducible archive file."""

import os
import shutil
import tarfile
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from keras_efficient._errors import InputError
from keras_efficient.exporters._destination import is_full
from keras_efficient.exporters._files import regular_files
from keras_efficient.exporters._partial import partial_path, remove_abandoned

#: Zstandard level: the zeros of pruned weights compress well at every level, and higher levels
#: only take longer.
_LEVEL = 12
#: Largest number of files in an archive; a version has about ten.
MAX_FILES = 10_000


def write_archive(folder: str | os.PathLike) -> tuple[Path, int]:
    """Pack a version directory, unchecked; `keras_efficient.versions.archive` checks it first.

    The same version always gives the same bytes: names are sorted, and times and owners are left
    out. The file is written under a hidden name and then renamed. It never replaces a file.

    Args:
        folder: path of a version.

    Returns:
        `(path, bytes)` of the archive: ".tar.zst", or ".zip" if zstandard is not installed.

    Raises:
        InputError: the archive exists, the version holds symbolic links or too many files, or the
            disk is full.
    """
    folder = Path(folder).absolute()
    names = sorted(regular_files(folder))
    if len(names) > MAX_FILES:
        raise InputError(
            f"An archive may hold at most {MAX_FILES:,} files. Received: {folder}, with "
            f"{len(names):,}. Copy the folder instead."
        )
    suffix, write = (".zip", _zip) if zstandard() is None else (".tar.zst", _tar)
    path = folder.with_name(folder.name + suffix)
    _refuse_existing(path)
    with _hidden(path) as partial:
        try:
            write(partial, folder, names)
            size = partial.stat().st_size
            _publish(partial, path)
        except OSError as error:
            if not is_full(error):
                raise
            raise InputError(
                f"An archive needs a disk with space for it. Received: {path}, whose disk became "
                f"full. {folder} itself is complete and kept. Free some space and archive it with "
                "ke.versions.archive."
            ) from error
    return path, size


def zstandard() -> Any:
    """Return the module zstandard, or None if it is not installed."""
    try:
        import zstandard
    except ImportError:
        return None
    return zstandard


def _refuse_existing(path):
    if os.path.lexists(path):
        raise InputError(
            f"An archive is never overwritten. Received: {path}, which exists. Move it away first."
        )


@contextmanager
def _hidden(path):
    remove_abandoned(path.parent)
    partial = partial_path(path)
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def _publish(partial, path):
    try:
        # A hard link fails if the name exists, where a rename would replace the file.
        os.link(partial, path)
    except FileExistsError:
        _refuse_existing(path)
    except OSError:
        # The filesystem does not support hard links.
        _refuse_existing(path)
        os.rename(partial, path)


def _tar(target, folder, names):
    compressor = zstandard().ZstdCompressor(level=_LEVEL, write_checksum=True)
    with (
        open(target, "wb") as raw,
        compressor.stream_writer(raw, closefd=False) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name in names:
            info = tarfile.TarInfo(f"{folder.name}/{name}")
            info.size = (folder / name).stat().st_size
            info.mode = 0o644
            with open(folder / name, "rb") as file:
                tar.addfile(info, file)


def _zip(target, folder, names):
    with zipfile.ZipFile(target, "w") as packed:
        for name in names:
            info = zipfile.ZipInfo(f"{folder.name}/{name}", (1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            info.create_system, info.external_attr = 3, 0o100644 << 16
            info.file_size = (folder / name).stat().st_size
            with open(folder / name, "rb") as file, packed.open(info, "w") as entry:
                shutil.copyfileobj(file, entry, 1 << 20)
