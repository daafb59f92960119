"""Rows of .parquet files, read a few thousand at a time by pyarrow."""

import contextlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from keras_efficient._errors import InputError
from keras_efficient.data._columns import check_distinct, column_index
from keras_efficient.data._text_lines import check_regular

#: Limits the memory that pyarrow takes for decoded rows.
_ROWS = 4096


def parquet_columns(path: pathlib.Path) -> list[str]:
    """Return the names of a file's columns."""
    with _opened(path) as file:
        return list(file.schema_arrow.names)


def parquet_rows(path: pathlib.Path, columns: Sequence[str]) -> Iterator[tuple[int, list[Any]]]:
    """Yield the number of each row, from 0, and the values of its columns.

    Raises:
        InputError: pyarrow is not installed, or the file cannot be used.
    """
    with _opened(path) as file:
        names = list(file.schema_arrow.names)
        check_distinct(names, str(path))
        for column in columns:
            column_index(column, names, str(path))
        number = 0
        for batch in file.iter_batches(_ROWS, columns=list(columns)):
            # By name: pyarrow gives columns in the order of the file.
            parts = [batch.column(column).to_pylist() for column in columns]
            for values in zip(*parts, strict=True):
                yield number, list(values)
                number += 1


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[Any]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise InputError(
            f"Parquet files are read by pyarrow. Received: {path}, and no pyarrow ({error}). "
            "pip install 'keras_efficient[parquet]', or convert the file to .jsonl."
        ) from error
    check_regular(path)
    try:
        with parquet.ParquetFile(path) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(
            f"A .parquet file must be readable by pyarrow. Received: {path} "
            f"({str(error)[:200]}). Write or copy it again."
        ) from error
