"""`unpack`: restore a version from its archive, completely and verified."""

import os
import shutil
import tarfile
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path

from keras_efficient._errors import InputError
from keras_efficient.exporters._archive import zstandard
from keras_efficient.exporters._destination import check_destination, is_version, staged
from keras_efficient.versions._check_manifest import check_manifest

#: Exceptions of opening or reading a damaged archive.
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError)
#: Exceptions for encrypted members and for other compression methods.
_REFUSED = (NotImplementedError, RuntimeError)


def unpack(path: str | os.PathLike, directory: str | os.PathLike) -> Path:
    """Unpack a file written by `archive` into a version below `directory`.

    Files go into a hidden folder, which is renamed to the version once everything matches the
    manifest. An archive may only hold regular files below one folder, which is named by the
    version's number: links and names that lead elsewhere are refused, and so is more data than fits
    on the disk.

    Args:
        path: path of a ".tar.zst", which needs zstandard, or of a ".zip".
        directory: path of the model's folder, ".../NAME"; version 3 becomes ".../NAME/3", which
            must not exist.

    Returns:
        The path of the version.

    Raises:
        InputError: there is no such archive, it is damaged or dangerous, or the version exists.

    Examples:
        >>> ke.versions.unpack("1.tar.zst", "/srv/models/reviews")  # doctest: +SKIP
        PosixPath('/srv/models/reviews/1')

    Reference:
        Python, `tarfile extraction filters
        <https://docs.python.org/3/library/tarfile.html#extraction-filters>`_: the filter "data".
    """
    path = Path(path)
    number = path.name.partition(".")[0]
    suffix = path.name.removeprefix(number)
    if suffix not in (".tar.zst", ".zip") or not is_version(number) or not path.is_file():
        raise InputError(
            "An archive must be a file such as 3.tar.zst or 3.zip, named by its version. Received: "
            f"{str(path)!r}. Name a file written by `archive`, without renaming it."
        )
    target = Path(directory) / number
    version = check_destination(target)
    with staged(target, version) as staging:
        try:
            with (_zip if suffix == ".zip" else _tar)(path) as members:
                for name, size, file in members:
                    _write(staging.path, number, name, size, file)
        except InputError:
            raise
        except (*_BROKEN, *_REFUSED, *_zstd_errors()) as error:
            raise InputError(
                f"An archive must be complete. Received: {path} ({type(error).__name__}: "
                f"{str(error)[:100]}). Copy it again."
            ) from error
        check_manifest(staging.path)
        return staging.publish()


def _write(folder, number, name, size, file):
    parts = name.split("/")
    if parts[0] != number or len(parts) < 2 or {"", ".", ".."} & set(parts) or "\\" in name:
        raise _dangerous(f"the name {name[:200]!r}")
    target = folder.joinpath(*parts[1:])
    free = shutil.disk_usage(folder).free
    if size > free:
        raise InputError(
            f"The disk must have space for an archive's files. Received: {name[:200]!r} of "
            f"{size:,} bytes, with {free:,} free. Free some space or choose another disk."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    # Mode "x" makes a repeated name an error.
    with open(target, "xb") as out:
        shutil.copyfileobj(file, out, 1 << 20)


def _dangerous(what):
    return InputError(
        "An archive may only hold regular files below the folder of its version. Received: "
        f"{what}. Do not use this archive."
    )


@contextmanager
def _zip(path):
    with zipfile.ZipFile(path) as packed:
        yield _zip_members(packed)


def _zip_members(packed):
    for info in packed.infolist():
        if info.external_attr >> 16 & 0o170000 not in (0, 0o100000):
            raise _dangerous(f"{info.filename[:200]!r}, which is not a regular file")
        with packed.open(info) as file:
            yield info.filename, info.file_size, file


@contextmanager
def _tar(path):
    module = zstandard()
    if module is None:
        raise InputError(
            f"A .tar.zst needs zstandard. Received: {path}, and it is not installed. Run `pip "
            "install zstandard`."
        )
    with (
        open(path, "rb") as raw,
        module.ZstdDecompressor().stream_reader(raw) as unpacked,
        tarfile.open(fileobj=unpacked, mode="r|") as tar,
    ):
        yield _tar_members(tar, path)


def _tar_members(tar, path):
    for info in tar:
        try:
            info = tarfile.data_filter(info, str(path.parent))
        except tarfile.FilterError as error:
            raise _dangerous(f"{info.name[:200]!r} ({error})") from error
        if not info.isreg():
            raise _dangerous(f"{info.name[:200]!r}, which is not a regular file")
        yield info.name, info.size, tar.extractfile(info)


def _zstd_errors():
    module = zstandard()
    return () if module is None else (module.ZstdError,)
