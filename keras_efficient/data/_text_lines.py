"""`text_lines`: the lines of a UTF-8 file, plain or gzipped, one at a time."""

import gzip
import io
import pathlib
import stat
import zlib
from collections.abc import Iterator
from typing import Any

from keras_efficient._errors import InputError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def text_lines(path: pathlib.Path, newline: str) -> Iterator[str]:
    r"""Yield the lines of a file with their ends, in constant memory.

    Args:
        path: Path of the file; it is decompressed if its name ends in ".gz".
        newline: "" for lines that end in "\n", "\r" or "\r\n"; "\n" for those that end in "\n".

    Raises:
        InputError: The file cannot be read, is empty, or is not UTF-8 text without NUL characters.
            The message names the line.
    """
    empty = True
    try:
        with opened(path) as file, io.TextIOWrapper(file, "utf-8-sig", newline=newline) as text:
            for number, line in enumerate(text, 1):
                if "\0" in line:
                    raise _nul(path, number)
                empty = empty and not line.strip()
                yield line
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from error
    except OSError as error:
        raise _unreadable(path, error) from error
    except (EOFError, zlib.error) as error:
        raise InputError(
            f"A .gz file must be complete. Received: {path} ({error}). Compress or copy it again."
        ) from error
    except MemoryError:
        raise InputError(
            f"A line of a data file must fit into memory. Received: {path} of "
            f"{path.stat().st_size:,} bytes. Check that its rows are on lines of their own."
        ) from None
    if empty:
        raise InputError(
            f"A data file must have at least one row of data. Received: {path}, which is empty. "
            "Check that it was written completely."
        )


def opened(path: pathlib.Path) -> Any:
    """Open a regular file to read bytes, decompressed if its name ends in ".gz".

    Raises:
        InputError: There is no such file, or it is a directory, a pipe or a device.
    """
    check_regular(path)
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")


def check_regular(path: pathlib.Path) -> None:
    """Require a regular file: a pipe would be waited for, and a device may have no end."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise InputError(
            f"The data file must exist. Received: {path}, which does not (working directory: "
            f"{pathlib.Path.cwd()}). Correct the path."
        ) from None
    except OSError as error:
        raise _unreadable(path, error) from error
    if stat.S_ISDIR(mode):
        raise InputError(
            f"The data must be files. Received the directory {path}. Name a file in it, or give a "
            'pattern such as "data/train-*.csv".'
        )
    if not stat.S_ISREG(mode):
        raise InputError(
            f"The data must be a regular file. Received: {path}, which is a pipe or a device. "
            "Write the data to a file first."
        )


def _unreadable(path, error):
    return InputError(
        f"The data file must be readable. Received: {path} ({error.strerror or error}). Check its "
        "permissions, and that it is what its name says."
    )


def _nul(path, number):
    return InputError(
        f"A data file must be UTF-8 text. Received: a NUL byte in {path}, line {number}. Remove "
        "it; if there are many, the file may be UTF-16 or binary: save it as UTF-8."
    )


def _not_utf8(path, error):
    """Find the line of a decoding error: text is decoded in blocks of many lines."""
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            if b"\0" in line:
                return _nul(path, number)
            try:
                line.removeprefix(_BYTE_ORDER_MARK if number == 1 else b"").decode()
            except UnicodeDecodeError as found:
                bad = found.object[found.start]
                return InputError(
                    f"A data file must be UTF-8 text. Received: byte 0x{bad:02x} "
                    f"({found.reason}) in {path}, line {number}. Save the file as UTF-8."
                )
    return InputError(
        f"A data file must be UTF-8 text. Received: {path} ({error}). Save the file as UTF-8."
    )
