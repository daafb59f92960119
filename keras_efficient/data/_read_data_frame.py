"""Rows of pandas DataFrames, which are recognised without importing pandas."""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from keras_efficient.data._columns import check_distinct, column_index


def is_data_frame(source: Any) -> bool:
    """Return whether an object is a DataFrame; without pandas imported there is none."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(source, pandas.DataFrame)


def data_frame_rows(frame: Any, columns: Sequence[str]) -> Iterator[tuple[int, list[Any]]]:
    """Yield the position of each row and the values of its columns, None for missing ones.

    Raises:
        InputError: A column does not exist.
    """
    names = list(map(str, frame.columns))
    check_distinct(names, "DataFrame")
    parts = []
    for column in columns:
        series = frame.iloc[:, column_index(column, names, "DataFrame")]
        # NaN, NaT and pd.NA all mean that a value is missing.
        parts.append(series.astype(object).where(series.notna(), None).tolist())
    for number, values in enumerate(zip(*parts, strict=True)):
        yield number, list(values)


def data_frame_place(number: int) -> str:
    """Return the origin of a row for error messages."""
    return f"DataFrame.iloc[{number}]"
