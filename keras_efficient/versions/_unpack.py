"""`unpack`: restore a version from its archive, completely and verified."""

import os
import shutil
import tarfile
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from keras_efficient._errors import InputError
from keras_efficient.exporters._archive import MAX_FILES, zstandard
from keras_efficient.exporters._destination import check_destination, is_version, staged
from keras_efficient.versions._check_manifest import check_manifest

#: Exceptions of opening or reading a damaged archive. RecursionError comes from a chain of headers.
_BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    ValueError,
    RecursionError,
)
#: Exceptions for encrypted members and for other compression methods.
_REFUSED = (NotImplementedError, RuntimeError)
#: Largest total size of the files: this many bytes, and this many per byte of the archive. Deflate
#: cannot exceed a factor of 1,032; weights of which 99% are pruned reach 100.
_MAX_BYTES, _MAX_RATIO = 100_000_000, 1_000
#: Longest name of a file, in characters and in parts.
_MAX_NAME, _MAX_DEPTH = 1_000, 20
#: Largest extended header of a tar, which holds the name of one file.
_MAX_HEADER = 8_192
#: Largest directory of a zip, which is read into memory as a whole.
_MAX_DIRECTORY = 4_000_000
#: Largest window of Zstandard, which decoders have to support by RFC 8878.
_MAX_WINDOW = 1 << 23


def unpack(path: str | os.PathLike, directory: str | os.PathLike) -> Path:
    """Unpack a file written by `archive` into a version below `directory`.

    Files go into a hidden folder, which is renamed to the version once everything matches the
    manifest. An archive may only hold regular files below one folder, which is named by the
    version's number: links and names that lead elsewhere are refused. The whole archive is checked
    before anything is written: it may hold at most 10,000 files, of 1,000 bytes per byte of the
    archive plus 100 MB in total, which have to fit on the disk.

    Args:
        path: path of a ".tar.zst", which needs zstandard, or of a ".zip".
        directory: path of the model's folder, ".../NAME"; version 3 becomes ".../NAME/3", which
            must not exist.

    Returns:
        The path of the version.

    Raises:
        InputError: there is no such archive, it is damaged or dangerous, it exceeds the limits, or
            the version exists.

    Examples:
        >>> ke.versions.unpack("1.tar.zst", "/srv/models/reviews")  # doctest: +SKIP
        PosixPath('/srv/models/reviews/1')

    Reference:
        Python, `Decompression pitfalls
        <https://docs.python.org/3/library/zipfile.html#decompression-pitfalls>`_ and `tarfile,
        hints for further verification
        <https://docs.python.org/3/library/tarfile.html#hints-for-further-verification>`_.
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

    def members():
        return _checked((_zip if suffix == ".zip" else _tar)(path), number, path.stat().st_size)

    with _complete(path):
        total = sum(size for _, size, _ in members())
    with staged(target, version) as staging:
        _check_space(staging.path, path, total)
        with _complete(path):
            for parts, _, file in members():
                _write(staging.path.joinpath(*parts), file)
        check_manifest(staging.path)
        return staging.publish()


@contextmanager
def _complete(path):
    """Report what fails inside the block as damage of the archive."""
    try:
        yield
    except InputError:
        raise
    except (*_BROKEN, *_REFUSED, *_zstd_errors()) as error:
        raise InputError(
            f"An archive must be complete, as `archive` writes it. Received: {path} "
            f"({type(error).__name__}: {str(error)[:100]}). Copy it again."
        ) from error


def _checked(members, number, packed_bytes):
    """Yield `(parts of the path, bytes, file)` of each member, within the limits."""
    limit, total = _MAX_BYTES + _MAX_RATIO * packed_bytes, 0
    for count, (name, size, file) in enumerate(members, 1):
        parts = name.split("/")
        if (
            parts[0] != number
            or not 2 <= len(parts) <= _MAX_DEPTH
            or {"", ".", ".."} & set(parts)
            or "\\" in name
            or len(name) > _MAX_NAME
        ):
            raise _dangerous(f"the name {name[:200]!r}")
        if count > MAX_FILES:
            raise _too_large(f"more than {MAX_FILES:,} files")
        total += size
        # Also before the next member is read, since its position depends on this size.
        if size < 0 or total > limit:
            raise _too_large(
                f"{name[:200]!r} of {size:,} bytes, {total:,} in total, in an archive of "
                f"{packed_bytes:,} bytes that may hold {limit:,}"
            )
        yield parts[1:], size, file


def _check_space(folder, path, total):
    free = shutil.disk_usage(folder).free
    if total > free:
        raise InputError(
            f"The disk must have space for an archive's files. Received: {path} with {total:,} "
            f"bytes, and {free:,} free. Free some space or choose another disk."
        )


def _write(target, file):
    target.parent.mkdir(parents=True, exist_ok=True)
    # Mode "x" makes a repeated name an error.
    with open(target, "xb") as out:
        shutil.copyfileobj(file, out, 1 << 20)


def _dangerous(what):
    return InputError(
        "An archive may only hold regular files below the folder of its version. Received: "
        f"{what}. Do not use this archive."
    )


def _too_large(what):
    return InputError(
        f"An archive may not expand beyond the limits of `unpack`. Received: {what}. Do not use "
        "this archive; if it is your own, copy the folder of the version instead."
    )


def _zip(path):
    with open(path, "rb") as raw:
        # The record at the end of the file states the size of the directory.
        end: Any = zipfile._EndRecData(raw)  # pyright: ignore[reportAttributeAccessIssue]
        if end and end[zipfile._ECD_SIZE] > _MAX_DIRECTORY:  # pyright: ignore
            raise _too_large(f"more than {MAX_FILES:,} files")
        with zipfile.ZipFile(raw) as packed:
            for info in packed.infolist():
                if info.external_attr >> 16 & 0o170000 not in (0, 0o100000):
                    raise _dangerous(f"{info.filename[:200]!r}, which is not a regular file")
                # LZMA and bzip2 may take gigabytes of memory.
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise _dangerous(f"{info.filename[:200]!r}, which is not compressed by deflate")
                with packed.open(info) as file:
                    yield info.filename, info.file_size, file


def _tar(path):
    module = zstandard()
    if module is None:
        raise InputError(
            f"A .tar.zst needs zstandard. Received: {path}, and it is not installed. Run `pip "
            "install zstandard`."
        )
    with (
        open(path, "rb") as raw,
        module.ZstdDecompressor(max_window_size=_MAX_WINDOW).stream_reader(raw) as unpacked,
        tarfile.open(fileobj=unpacked, mode="r|", tarinfo=_Member) as tar,
    ):
        for info in tar:
            if info.issparse():
                raise _sparse(info)
            yield info.name, info.size, tar.extractfile(info)


class _Member(tarfile.TarInfo):
    """A member of a tar, of the kinds that `archive` writes; others are refused unread."""

    # The method that `tarfile` documents for subclasses; newer Pythons do not call `frombuf`.
    def _proc_member(self, tar):
        if self.type == tarfile.XHDTYPE:
            # `tarfile` reads a header into memory, whatever its size.
            if not 0 <= self.size <= _MAX_HEADER:
                raise _too_large(f"a header of {self.size:,} bytes, which may have {_MAX_HEADER:,}")
        elif self.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or self.isdir():
            raise _dangerous(f"{self.name[:200]!r}, which is not a regular file")
        return super()._proc_member(tar)  # pyright: ignore[reportAttributeAccessIssue]

    def _proc_gnusparse_10(self, *_):
        # The map of this format is read before the member is returned, at any length.
        raise _sparse(self)


def _sparse(info):
    # A sparse file expands to any size without data.
    return _dangerous(f"{info.name[:200]!r}, which is a sparse file")


def _zstd_errors():
    module = zstandard()
    return () if module is None else (module.ZstdError,)
