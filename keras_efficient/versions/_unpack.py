"""A version out of its archive, whole and checked."""

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

#: What opening or reading a broken archive raises.
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError)
#: Errors of names, and of compression that is not ours.
_REFUSED = (NotImplementedError, RuntimeError)


def unpack(path, directory) -> Path:
    """Unpack an archive of `archive` into a version below `directory`.

    Into a hidden folder first; it becomes the version when all of it agrees with its manifest.
    Only plain files are taken, below one folder named by the version's number; a link, a name that
    leads elsewhere, or more than the disk has room for is refused.

    Args:
        path: path of a ".tar.zst" (which needs zstandard) or a ".zip".
        directory: str or path, ".../NAME": version 3 becomes ".../NAME/3", which must not exist.

    Returns:
        The path of the version.

    Raises:
        InputError: no such archive, a broken or a dangerous one, or the version exists.

    Example:
        >>> ke.versions.unpack("1.tar.zst", "/srv/models/reviews")  # doctest: +SKIP
        PosixPath('/srv/models/reviews/1')
    """
    path = Path(path)
    number = path.name.partition(".")[0]
    suffix = path.name.removeprefix(number)
    if suffix not in (".tar.zst", ".zip") or not is_version(number) or not path.is_file():
        raise InputError(
            "An archive must be a file such as 3.tar.zst or 3.zip, named by its version. Received: "
            f"{str(path)!r}. Name what `archive` wrote, under the name it was given."
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
                f"An archive must be whole. Received: {path} ({type(error).__name__}: "
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
            f"The disk must have room for an archive's files. Received: {name[:200]!r} of "
            f"{size:,} bytes, with {free:,} free. Free some space or choose another disk."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    # "x": a name that comes twice is an error.
    with open(target, "xb") as out:
        shutil.copyfileobj(file, out, 1 << 20)


def _dangerous(what):
    return InputError(
        "An archive may hold plain files below one folder, that of its version. Received: "
        f"{what}. Do not use this archive."
    )


@contextmanager
def _zip(path):
    with zipfile.ZipFile(path) as packed:
        yield _zip_members(packed)


def _zip_members(packed):
    for info in packed.infolist():
        if info.external_attr >> 16 & 0o170000 not in (0, 0o100000):
            raise _dangerous(f"{info.filename[:200]!r}, which is no plain file")
        with packed.open(info) as file:
            yield info.filename, info.file_size, file


@contextmanager
def _tar(path):
    if zstandard() is None:
        raise InputError(
            f"A .tar.zst needs zstandard. Received: {path}, and none is installed. Run `pip "
            "install zstandard`."
        )
    with (
        open(path, "rb") as raw,
        zstandard().ZstdDecompressor().stream_reader(raw) as unpacked,
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
            raise _dangerous(f"{info.name[:200]!r}, which is no plain file")
        yield info.name, info.size, tar.extractfile(info)


def _zstd_errors():
    module = zstandard()
    return () if module is None else (module.ZstdError,)
