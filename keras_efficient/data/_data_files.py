"""Files of rows: patterns and lists of shards, their formats, and a reader for each format."""

import collections
import glob
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from keras_efficient._errors import InputError
from keras_efficient.data._columns import shown
from keras_efficient.data._read_json_lines import json_rows
from keras_efficient.data._read_lines import line_rows
from keras_efficient.data._read_parquet import parquet_columns, parquet_rows
from keras_efficient.data._read_table import table_columns, table_rows

JSON_LINES = (".jsonl", ".ndjson")
_TABLES, _PARQUET, _LINES = (".csv", ".tsv"), (".parquet",), (".txt",)
_SUFFIXES = (*_TABLES, *JSON_LINES, *_PARQUET, *_LINES)


def is_file_source(source: Any) -> bool:
    """Return whether data is given as a path, a pattern, or a list of these."""
    if isinstance(source, list | tuple):
        return bool(source) and all(isinstance(part, str | os.PathLike) for part in source)
    return isinstance(source, str | os.PathLike)


def data_files(source: Any) -> list[pathlib.Path]:
    """Return the files that a path, a pattern or a list of these names, all of one format.

    Files that match a pattern are sorted by name, those of a list keep its order.

    Raises:
        InputError: A pattern matches nothing, a file is named twice, or formats differ.
    """
    paths = named_files(source)
    for path in paths:
        if file_suffix(path) not in _SUFFIXES:
            raise InputError(
                f"Data files end in {', '.join(_SUFFIXES)}, those of text also in .gz after that. "
                f"Received: {path}. Convert the file, or rename it if only the suffix is wrong."
            )
    formats = {_format(path): path for path in reversed(paths)}
    if len(formats) > 1:
        raise InputError(
            "Data files must have one format. Received: "
            f"{' and '.join(map(str, reversed(formats.values())))}. Convert one of them, or name "
            "the files of one format."
        )
    return paths


def named_files(source: Any) -> list[pathlib.Path]:
    """Return the files that a path, a pattern or a list of these names, of any format.

    Raises:
        InputError: A pattern matches nothing, or a file is named twice.
    """
    parts = source if isinstance(source, list | tuple) else [source]
    paths = [path for part in parts for path in _matching(os.fspath(part))]
    twice = sorted(str(path) for path, n in collections.Counter(paths).items() if n > 1)
    if twice:
        raise InputError(
            f"Each data file must be named once. Received more than once: {shown(twice, 200)}. "
            "Leave one of each out."
        )
    return paths


def files_name(paths: Sequence[pathlib.Path]) -> str:
    """Return the name of a file, or that of the first of several with the number of the others."""
    first, *others = paths
    return f"{first} and {len(others):,} more" if others else str(first)


def check_columns(
    paths: Sequence[pathlib.Path], columns: Sequence[str], delimiter: str | None
) -> None:
    """Require that several CSV, TSV or Parquet files have the same columns, in any order.

    Raises:
        InputError: They differ, or `delimiter` is given for files of another format.
    """
    if delimiter is not None and file_suffix(paths[0]) not in _TABLES:
        raise InputError(
            f"`delimiter` is for {' and '.join(_TABLES)} files. Received: {delimiter!r} for "
            f"{paths[0]}. Leave it out."
        )
    first = None
    for path in paths if len(paths) > 1 else ():
        suffix = file_suffix(path)
        if suffix in (*JSON_LINES, *_LINES):
            return
        if suffix in _TABLES:
            found = table_columns(path, suffix, columns, delimiter)
        else:
            found = parquet_columns(path)
        first = first or found
        if set(found) != set(first):
            raise InputError(
                f"Data files must have the same columns. Received: {shown(first)} in {paths[0]} "
                f"and {shown(found)} in {path}. Leave one of the files out, or correct its columns."
            )


def file_rows(
    path: pathlib.Path, columns: Sequence[str], delimiter: str | None
) -> Iterator[tuple[int, list[Any]]]:
    """Yield the number of each row of a file, for `row_place`, and the values of the columns.

    Raises:
        InputError: The file or a row cannot be used.
    """
    suffix = file_suffix(path)
    if suffix in _TABLES:
        return table_rows(path, suffix, columns, delimiter)
    if suffix in _LINES:
        return line_rows(path, columns)
    return json_rows(path, columns) if suffix in JSON_LINES else parquet_rows(path, columns)


def row_place(path: pathlib.Path, number: int) -> str:
    """Return the origin of a row for error messages."""
    if file_suffix(path) in _PARQUET:
        return f"{path}, row {number} (from 0)"
    return f"{path}, line {number}"


def _matching(name: str) -> list[pathlib.Path]:
    if not glob.has_magic(name) or os.path.lexists(name):
        return [pathlib.Path(name)]
    found = sorted(glob.glob(name, recursive=True))
    if not found:
        raise InputError(
            f"A pattern must match data files. Received: {name!r}, which matches none (working "
            f"directory: {pathlib.Path.cwd()}). Correct the pattern."
        )
    return list(map(pathlib.Path, found))


def file_suffix(path: pathlib.Path) -> str:
    """Return the suffix of a file in lower case, without a .gz after it."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        inner = path.with_suffix("").suffix.lower()
        # Parquet compresses its own columns.
        return suffix if inner in _PARQUET else inner
    return suffix


def _format(path: pathlib.Path) -> str:
    suffix = file_suffix(path)
    return JSON_LINES[0] if suffix in JSON_LINES else suffix
