"""A version as one file, to copy or to keep."""

import os
import secrets
import shutil
import tarfile
import zipfile
from contextlib import contextmanager
from pathlib import Path

from keras_efficient._errors import InputError
from keras_efficient.versions._check_manifest import check_manifest
from keras_efficient.versions._destination import is_version
from keras_efficient.versions._manifest import MANIFEST, UNLISTED

#: Zeros of pruned weights pack well at every level; beyond this one it only takes longer.
_LEVEL = 12


def archive(folder) -> tuple[Path, int]:
    """Pack a version into one file beside it: ".../NAME/3.tar.zst", or "3.zip" without zstandard.

    The version is checked first. The same version always gives the same bytes: names are sorted,
    times and owners are none. The file is written under a hidden name and then renamed; one that
    exists is never overwritten. `unpack` is the way back.

    Args:
        folder: path of a version, with its manifest.

    Returns:
        `(path, bytes)` of the archive.

    Raises:
        InputError: no version, one that is not as its manifest says, or the archive exists.

    Example:
        >>> ke.versions.archive("saved_models/reviews/1")  # doctest: +SKIP
        (PosixPath('saved_models/reviews/1.tar.zst'), 15728640)
    """
    folder = Path(folder).absolute()
    if not is_version(folder):
        raise InputError(
            f"Only a version is archived, a folder named by a number. Received: {folder}. Name the "
            "version, such as 'saved_models/reviews/1'."
        )
    listed = check_manifest(folder)["files"]
    beside = [name for name in UNLISTED if name != MANIFEST and (folder / name).exists()]
    names = sorted([*listed, MANIFEST, *beside])
    suffix, write = (".zip", _zip) if zstandard() is None else (".tar.zst", _tar)
    path = folder.with_name(folder.name + suffix)
    _refuse_existing(path)
    with _hidden(path) as aside:
        write(aside, folder, names)
        size = aside.stat().st_size
        _publish(aside, path)
    return path, size


def zstandard():
    """The module, or None where it is not installed."""
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
    aside = path.with_name(f".{path.name}.partial-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        yield aside
    finally:
        aside.unlink(missing_ok=True)


def _publish(aside, path):
    try:
        # Unlike a rename, a link is never put onto a file.
        os.link(aside, path)
    except FileExistsError:
        _refuse_existing(path)
    except OSError:
        # A filesystem without links.
        _refuse_existing(path)
        os.rename(aside, path)


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
