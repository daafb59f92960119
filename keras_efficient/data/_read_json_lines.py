"""Rows of .jsonl and .ndjson files: one JSON object per line."""

import collections
import json
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from keras_efficient._errors import InputError
from keras_efficient.data._columns import column_index, shown
from keras_efficient.data._text_lines import text_lines


def json_rows(path: pathlib.Path, columns: Sequence[str]) -> Iterator[tuple[int, list[Any]]]:
    """Yield the number of each line and the values of its keys `columns`.

    Raises:
        InputError: The file or a line cannot be used.
    """
    for line, row in json_objects(path, columns):
        yield line, values_of(row, columns, f"{path}, line {line}")


def json_objects(path: pathlib.Path, keys: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the object of each line that is not blank.

    Args:
        path: Path of the file.
        keys: Keys that an object has, for error messages.

    Raises:
        InputError: The file cannot be used, or a line holds no object.
    """
    # Split at "\n" alone, as JSON strings may contain other line separators.
    for line, string in enumerate(text_lines(path, newline="\n"), 1):
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


def values_of(row: dict, columns: Sequence[str], where: str) -> list[Any]:
    """Return the values of a row's keys `columns`.

    Raises:
        InputError: The row has no such key.
    """
    for column in columns:
        if column not in row:
            column_index(column, list(map(str, row)), where)
    return [row[column] for column in columns]


def _unique(pairs: list[tuple[str, object]]) -> dict:
    row = dict(pairs)
    if len(row) < len(pairs):
        twice = [key for key, n in collections.Counter(key for key, _ in pairs).items() if n > 1]
        raise ValueError(f"the key {shown(twice)} more than once")
    return row


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"the number {number[:40]}, which is too large")
    return value
