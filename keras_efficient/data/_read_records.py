"""Read records from .csv, .tsv and .jsonl files, with errors that name the line."""

import collections
import csv
import difflib
import io
import itertools
import json
import math
import os
import pathlib
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from keras_efficient._errors import InputError
from keras_efficient.data._check_text import check_text
from keras_efficient.data._class_labels import class_labels
from keras_efficient.data._records import Records

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
#: Suffixes of files with a JSON object on each line.
JSON_LINES = (".jsonl", ".ndjson")


def read_records(
    path: str | os.PathLike,
    *,
    text_column: str | Sequence[str] = "text",
    label_column: str | Sequence[str] | None = "label",
    label_names: Sequence[str] | None = None,
    encode: Callable | None = None,
) -> Records:
    """Read texts and labels from a .csv, .tsv, .jsonl or .ndjson file (UTF-8).

    CSV and TSV files have a header row. In CSV, fields in double quotes may contain delimiters and
    newlines. In TSV, quotes are ordinary characters, unless every name of the header is in double
    quotes: then the file is quoted as CSV is. A JSON Lines file has one object per line. Blank
    lines are skipped. Any other row that cannot be used raises an error with the number of its
    first line.

    Args:
        path: Path of the file; its suffix determines the format.
        text_column: Column, or JSON key, of the texts; two of them for pairs of texts. Default:
            "text".
        label_column: Column, or JSON key, of the labels, which are strings, numbers or bools;
            None reads no labels. Several columns, for tasks that take them, give a dict of values
            by column for each row. Default: "label".
        label_names: The classes in the order of their indices. Pass those of the training records
            when reading validation data. Default: None, the sorted labels; sorted as numbers if
            all of them are, which then have to be whole.
        encode: Function that makes an array of the labels, `(values, label_names, where) ->
            (labels, label_names)`, where `where(i)` names the line of value i: the `encode` of a
            task (`ke.tasks.get("regression").encode`). Default: None, one class per text.

    Returns:
        The records, in the order of the file.

    Raises:
        InputError: The file or one of its rows cannot be used. The message names the file and the
            line.

    Examples:
        >>> train = ke.data.read_records("reviews.csv")
        >>> test = ke.data.read_records("reviews.csv", label_names=train.label_names)
        >>> train.label_names == test.label_names
        True

    Reference:
        RFC 4180 (CSV), https://www.iana.org/assignments/media-types/text/tab-separated-values (TSV)
        and https://jsonlines.org.
    """
    path = pathlib.Path(path)
    suffix = path.suffix.lower()
    if suffix not in (*_DELIMITERS, *JSON_LINES):
        raise InputError(
            f"Data files end in {', '.join((*_DELIMITERS, *JSON_LINES))}. Received: {path}. "
            "Convert the file, or rename it if only the suffix is wrong."
        )
    texts_of, labels_of = _names(text_column), _names(label_column)
    columns = [*texts_of, *labels_of]
    if not 1 <= len(texts_of) <= 2:
        raise InputError(
            "`text_column` must name one column, or two for pairs of texts. Received: "
            f"{text_column!r}. Name the columns of the texts."
        )
    if len(set(columns)) < len(columns):
        raise InputError(
            "`text_column` and `label_column` must differ. Received: "
            f"{_shown([c for c in dict.fromkeys(columns) if columns.count(c) > 1])} more than "
            "once. Name the column of each; in Python, label_column=None reads no labels."
        )
    content = read_content(path)
    if suffix in _DELIMITERS:
        rows = _table_rows(content, path, _DELIMITERS[suffix], columns)
    else:
        rows = _json_rows(content, path, columns)

    texts, values, lines = [], [], []
    for line, row in rows:
        where = f"{path}, line {line}"
        found, labels = row[: len(texts_of)], row[len(texts_of) :]
        for text in found:
            check_text(text, where)
        texts.append(found)
        lines.append(line)
        single = isinstance(label_column, str)
        values.append(labels[0] if single else dict(zip(labels_of, labels, strict=True)))
    if not texts:
        raise InputError(
            f"A data file must have at least one row of data. Received: {path} without any. Check "
            "that it was written completely."
        )
    first, *second = zip(*texts, strict=True)
    second = second[0] if second else None
    if not labels_of:
        return Records(first, None, tuple(label_names or ()), str(path), second)
    labels, names = (encode or class_labels)(
        values, label_names, lambda i: f"{path}, line {lines[i]}"
    )
    return Records(first, labels, names, str(path), second)


def _names(column: str | Sequence[str] | None) -> list[str]:
    return [column] if isinstance(column, str) else list(column or ())


def read_content(path: pathlib.Path) -> str:
    """Return the text of a data file.

    Raises:
        InputError: it is no regular file of UTF-8 text that can be read, or it is empty.
    """
    if path.is_dir():
        raise InputError(
            f"The data must be one file. Received the directory {path}. Name a file in it."
        )
    try:
        # A pipe would be waited for, and a device may have no end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise InputError(
                f"The data must be a regular file. Received: {path}, which is a pipe or a device. "
                "Write the data to a file first."
            )
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(
            f"The data file must exist. Received: {path}, which does not (working directory: "
            f"{pathlib.Path.cwd()}). Correct the path."
        ) from None
    except MemoryError:
        raise InputError(
            f"A data file must fit into memory. Received: {path} of {path.stat().st_size:,} bytes. "
            "Take a part of it."
        ) from None
    except OSError as error:
        raise InputError(
            f"The data file must be readable. Received: {path} ({error.strerror}). Check its "
            "permissions."
        ) from error
    # Before decoding, since ASCII text in UTF-16 is also valid UTF-8.
    nul = data.find(b"\0")
    if nul >= 0:
        raise InputError(
            f"A data file must be UTF-8 text. Received: a NUL byte in {path}, line "
            f"{_line(data, nul)}. Remove it; if there are many, the file may be UTF-16 or binary: "
            "save it as UTF-8."
        )
    try:
        content = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        bad = error.object[error.start]
        # `error.object` is the data without a byte order mark.
        raise InputError(
            f"A data file must be UTF-8 text. Received: byte 0x{bad:02x} ({error.reason}) in "
            f"{path}, line {_line(error.object, error.start)}. Save the file as UTF-8."
        ) from error
    if not content.strip():
        raise InputError(
            f"A data file must have at least one row of data. Received: {path}, which is empty. "
            "Check that it was written completely."
        )
    return content


def _line(data: bytes, position: int) -> int:
    return data.count(b"\n", 0, position) + 1


def _table_rows(
    content: str, path: pathlib.Path, delimiter: str, columns: Sequence[str]
) -> Iterator[tuple[int, list[str]]]:
    # The default limit of 131,072 characters is too low for long documents. It is global to the
    # process, so it is restored.
    limit = csv.field_size_limit(2**31 - 1)
    try:
        quoted = delimiter != "\t"
        if not quoted:
            _, names = next(_csv_rows(content, path, delimiter, quoted=False))
            quoted = all(map(_is_enclosed, names))
        rows = _csv_rows(content, path, delimiter, quoted)
        line, header = next(rows)
        if len(set(header)) != len(header):
            twice = sorted(name for name, n in collections.Counter(header).items() if n > 1)
            raise InputError(
                f"Column names must differ. Received: [{_shown(twice)}] more than once in {path}, "
                f"line {line}. Rename one of each."
            )
        places = [_column(column, header, f"{path}, line {line}") for column in columns]
        warned = False
        for line, row in rows:
            if len(row) != len(header):
                remedy = "Put fields that hold it in double quotes"
                if not quoted:
                    remedy = "In .tsv, put all names of the header in double quotes if fields are"
                raise InputError(
                    f"Each row must have {len(header)} fields, as the header has. Received: "
                    f"{len(row)} in {path}, line {line}. The delimiter is {delimiter!r}. {remedy}."
                )
            if not quoted and not warned and _looks_quoted(row[places[0]]):
                warnings.warn(
                    f"Quotes in a .tsv file are part of the text. Received: {path}, line {line}, "
                    "with a text that looks quoted. If it is, put all names of the header in "
                    "double quotes too, or use .csv.",
                    stacklevel=3,
                )
                warned = True
            yield line, [row[place] for place in places]
    finally:
        csv.field_size_limit(limit)


def _is_enclosed(field: str) -> bool:
    return len(field) > 1 and field[0] == field[-1] == '"'


def _looks_quoted(field: str) -> bool:
    inside = field[1:-1]
    return _is_enclosed(field) and '"' in inside and '"' not in inside.replace('""', "")


def _csv_rows(
    content: str, path: pathlib.Path, delimiter: str, quoted: bool
) -> Iterator[tuple[int, list[str]]]:
    # Unless strict, an unclosed quote takes in the rest of the file.
    lines = io.StringIO(content, newline="")
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    reader = csv.reader(lines, delimiter=delimiter, strict=True, quoting=quoting)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(
                f"Quotes must be closed, and doubled inside quoted fields. Received: the row that "
                f"starts in {path}, line {line} ({error}). Correct its quotes, or use .jsonl."
            ) from error
        if row:
            yield line, row


def _json_rows(
    content: str, path: pathlib.Path, columns: Sequence[str]
) -> Iterator[tuple[int, list[Any]]]:
    for line, row in json_objects(content, path, columns):
        yield line, [row[_key(column, row, f"{path}, line {line}")] for column in columns]


def json_objects(
    content: str, path: pathlib.Path, keys: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the object of each line that is not blank.

    Args:
        content: the content of the file.
        path: its path, for error messages.
        keys: keys that an object has, for error messages.

    Raises:
        InputError: a line holds no object.
    """
    # Not splitlines(), which also splits at U+2028 and other characters that JSON strings contain.
    for line, string in enumerate(content.split("\n"), 1):
        if not string.strip():
            continue
        where = f"{path}, line {line}"
        try:
            row = json.loads(string, object_pairs_hook=_unique, parse_float=_finite)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"Each line must be a JSON object. Received: {string[:60]!r} in {where} ({error}). "
                "Correct it, with one object on one line."
            ) from error
        if not isinstance(row, dict):
            raise InputError(
                f"Each line must be a JSON object. Received: {string[:60]!r} in {where}. Write "
                f"{{{', '.join(f'{json.dumps(key)}: ...' for key in keys)}}}."
            )
        yield line, row


def _unique(pairs: list[tuple[str, object]]) -> dict:
    row = dict(pairs)
    if len(row) < len(pairs):
        twice = [key for key, n in collections.Counter(key for key, _ in pairs).items() if n > 1]
        raise ValueError(f"the key {_shown(twice)} more than once")
    return row


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"the number {number[:40]}, which is too large")
    return value


def _shown(columns: Sequence[str]) -> str:
    more = "" if len(columns) <= 20 else f" and {len(columns) - 20:,} others"
    return ", ".join(repr(column[:40]) for column in columns[:20]) + more


def _key(name: str, row: dict, where: str) -> str:
    if name not in row:
        _column(name, list(row), where)
    return name


def _column(name: str, columns: list[str], where: str) -> int:
    if name in columns:
        return columns.index(name)
    shown = _shown(columns)
    # The comparison takes long for long names, and for thousands of them.
    near_enough = (column for column in columns if len(column) <= 2 * len(name) + 10)
    first = list(itertools.islice(near_enough, 1_000))
    folded = {column.strip().lower(): column for column in reversed(first)}
    near = difflib.get_close_matches(name.lower(), folded, n=1)
    hint = f"Did you mean {folded[near[0]]!r}?" if near else "Pass the name of the right one."
    others = [mark for mark in ";\t,|" if len(columns) == 1 and mark in columns[0]]
    if others:
        # Spreadsheets write semicolons where the comma is the decimal mark.
        needed = {",": ".csv", "\t": ".tsv"}.get(others[0])
        rename = f", or rename it to {needed}" if needed else ""
        hint = (
            f"The columns seem to be separated by {others[0]!r}. Save the file with the delimiter "
            f"of its suffix{rename}."
        )
    raise InputError(
        f"There must be a column {name!r}. Received: {shown} ({where}). {hint} "
        "The arguments are `text_column` and `label_column`."
    )
