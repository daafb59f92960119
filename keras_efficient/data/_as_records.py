"""`as_records`: records of whatever functions of this package take as texts."""

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_efficient._errors import InputError
from keras_efficient.data._read_data_frame import is_data_frame
from keras_efficient.data._read_hugging_face import is_hugging_face
from keras_efficient.data._read_items import iterated
from keras_efficient.data._read_records import read_records
from keras_efficient.data._records import Records

_COLUMNS = "text", "label"


def as_records(
    data: Any,
    *,
    text_column: str | Sequence[str] = _COLUMNS[0],
    label_column: str | Sequence[str] | None = _COLUMNS[1],
) -> Records:
    """Return records of data with columns, by `read_records`, or of texts, by `Records.of`.

    A string is a path or a pattern, a list of strings are texts, and a list of `pathlib.Path`s are
    files. An iterable has columns if its first item is a dict.

    Raises:
        InputError: The data cannot be used, or columns are named and it has none.
    """
    columns: Any = {"text_column": text_column, "label_column": label_column}
    if not isinstance(data, Records):
        table = isinstance(data, Mapping) or (isinstance(data, np.ndarray) and data.dtype.names)
        if table or isinstance(data, str | os.PathLike):
            return read_records(data, **columns)
        if is_data_frame(data) or is_hugging_face(data):
            return read_records(data, **columns)
        items = iter(iterated(data))
        first = list(itertools.islice(items, 1))
        items = itertools.chain(first, items)
        if any(isinstance(item, Mapping) for item in first):
            return read_records(items, **columns)
        if any(isinstance(item, os.PathLike) for item in first):
            return read_records(list(items), **columns)
        data = data if isinstance(data, np.ndarray) else items
    if (text_column, label_column) != _COLUMNS:
        raise InputError(
            "`text_column` and `label_column` name columns of files, tables and rows. Received: "
            f"{text_column!r} and {label_column!r} for texts without columns. Leave them out."
        )
    return data if isinstance(data, Records) else Records.of(data)
