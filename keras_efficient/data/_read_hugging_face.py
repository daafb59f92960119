"""Rows of Hugging Face `datasets` objects, which are recognised without importing that library."""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from keras_efficient._errors import InputError, listed
from keras_efficient.data._columns import column_index
from keras_efficient.data._read_json_lines import values_of


def is_hugging_face(source: Any) -> bool:
    """Return whether an object is a `Dataset`, an `IterableDataset` or a dict of splits."""
    datasets = sys.modules.get("datasets")
    if datasets is None:
        return False
    # Splits are dicts of datasets.
    kinds = (datasets.Dataset, datasets.IterableDataset)
    return isinstance(source, kinds) or (
        isinstance(source, dict) and any(isinstance(part, kinds) for part in source.values())
    )


def hugging_face_rows(dataset: Any, columns: Sequence[str]) -> Iterator[tuple[int, list[Any]]]:
    """Yield the number of each row and the values of its columns.

    The integers of a `ClassLabel` become the names of the classes, and -1, which means that there
    is no label, becomes None.

    Raises:
        InputError: `dataset` is a dict of splits, or a column does not exist.
    """
    if isinstance(dataset, dict):
        raise InputError(
            "The data must be one dataset. Received: a "
            f"{type(dataset).__name__} with the splits {listed(dataset)}. Give one of them, such "
            f"as dataset[{next(iter(dataset))!r}]."
        )
    # The rows as Python values, whatever `set_format` chose.
    dataset = dataset.with_format(None)
    names = dataset.column_names
    if names is not None:
        for column in columns:
            column_index(column, names, "Dataset")
        dataset = dataset.select_columns(list(columns))
    classes = [hugging_face_label_names(dataset, column) for column in columns]
    for number, row in enumerate(dataset):
        values = values_of(row, columns, hugging_face_place(number))
        yield number, [_named(v, c) for v, c in zip(values, classes, strict=True)]


def hugging_face_label_names(dataset: Any, column: str) -> list[str] | None:
    """Return the names of the classes of a `ClassLabel` column or a list of such, or None."""
    feature = (getattr(dataset, "features", None) or {}).get(column)
    feature = getattr(feature, "feature", feature)
    names = getattr(feature, "names", None)
    return names if isinstance(names, list) else None


def hugging_face_place(number: int) -> str:
    """Return the origin of a row for error messages."""
    return f"Dataset[{number}]"


def _named(value, names):
    if names is None or value is None:
        return value
    if isinstance(value, list):
        return [_named(part, names) for part in value]
    return names[value] if value >= 0 else None
