"""Rows of dicts: iterables of them, dicts of columns, structured arrays and `tf.data` datasets."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from keras_efficient._errors import InputError
from keras_efficient.data._columns import column_index
from keras_efficient.data._read_json_lines import values_of


def item_rows(source: Any, columns: Sequence[str]) -> Iterator[tuple[int, list[Any]]]:
    """Yield the number of each row and the values of its columns.

    Args:
        source: Iterable of dicts, or `tf.data.Dataset` of dicts; dict or structured array of
            columns of equal length.
        columns: Names of the columns.

    Raises:
        InputError: It is none of these, or a row or column cannot be used.
    """
    if isinstance(source, np.ndarray) and source.dtype.names:
        source = {name: source[name] for name in source.dtype.names}
    if isinstance(source, Mapping):
        yield from _column_rows(source, columns)
        return
    for number, row in enumerate(iterated(source)):
        if not isinstance(row, Mapping):
            raise InputError(
                "Rows must be dicts with a value for each column. Received: "
                f"{row!r:.60} of type {type(row).__name__} ({item_place(number)}). Give dicts; for "
                "texts alone, or (text, label) pairs, there is ke.data.Records.of."
            )
        yield number, values_of(dict(row), columns, item_place(number))


def item_place(number: int) -> str:
    """Return the origin of a row for error messages."""
    return f"memory, item {number}"


def iterated(source: Any) -> Iterable[Any]:
    """Return an iterable of Python values, also of a finite `tf.data.Dataset`.

    Raises:
        InputError: It is not an iterable, or a dataset without an end.
    """
    if not hasattr(source, "as_numpy_iterator"):
        if isinstance(source, Iterable):
            return source
        raise InputError(
            "The data must be files, a DataFrame, a Hugging Face dataset, a dict of columns or an "
            f"iterable. Received: {source!r:.60} of type {type(source).__name__}. Convert it to "
            "one of these."
        )
    # `tf.data.INFINITE_CARDINALITY`.
    if int(source.cardinality()) == -1:
        raise InputError(
            "The data must have an end. Received: a tf.data.Dataset of infinite cardinality. "
            "Remove its repeat(), or take(n) rows."
        )
    return map(_decoded, source.as_numpy_iterator())


def _decoded(value):
    """Return the Python values of an element: TensorFlow's strings are UTF-8 bytes."""
    if isinstance(value, Mapping):
        return {key: _decoded(part) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_decoded, value))
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list):
        return [_decoded(part) for part in value]
    # A text that is not UTF-8 stays bytes, and is refused as such.
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return value


def _column_rows(source, columns) -> Iterator[tuple[int, list[Any]]]:
    names = list(map(str, source))
    for column in columns:
        column_index(column, names, "memory")
    parts = []
    for column in columns:
        values = source[column]
        parts.append(values.tolist() if isinstance(values, np.ndarray) else list(values))
    sizes = {column: len(part) for column, part in zip(columns, parts, strict=True)}
    if len(set(sizes.values())) > 1:
        raise InputError(
            f"Columns must have one value per row. Received: lengths {sizes}. Check that all come "
            "from the same rows."
        )
    for number, values in enumerate(zip(*parts, strict=True)):
        yield number, list(values)
