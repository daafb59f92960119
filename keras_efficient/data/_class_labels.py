"""`class_labels`: class indices of labels as they stand in data, and the names of the classes."""

import difflib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_efficient._errors import InputError, listed
from keras_efficient.data._check_text import check_string


def class_labels(
    values: Sequence[Any], label_names: Sequence[str] | None, where: Callable[[int], str]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return int32 class indices `[values]` and the names of the classes.

    Args:
        values: Labels as they stand in the data: strings, numbers or bools.
        label_names: The classes in the order of their indices; None for the sorted labels.
        where: Function of i that names the origin of value i, for error messages.

    Raises:
        InputError: A label is missing, of another type, or not among the names.
    """
    named = [label_name(value, where(i)) for i, value in enumerate(values)]
    names = _sorted_classes(named, where) if label_names is None else checked_names(label_names)
    return indices(named, names, where), names


def indices(named: Sequence[str], names: Sequence[str], where: Callable[[int], str]) -> np.ndarray:
    """Return the int32 index of each label among the names of the classes."""
    index = {name: i for i, name in enumerate(names)}
    labels = np.empty(len(named), np.int32)
    for number, name in enumerate(named):
        if name not in index:
            near = difflib.get_close_matches(name, names, n=1) if len(names) <= 1000 else []
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise InputError(
                f"Each label must be one of {len(names):,} classes: {listed(names)}. Received: "
                f"{name!r:.80}, unseen in training ({where(number)}). {hint}Correct the row, or "
                "train with this class."
            )
        labels[number] = index[name]
    return labels


def checked_names(label_names: Sequence[str]) -> tuple[str, ...]:
    """Return names of classes as labels in data are named, and require that they differ."""
    names = tuple(label_name(name, "label_names") for name in label_names)
    if len(set(names)) != len(names):
        twice = sorted({name for name, count in Counter(names).items() if count > 1})
        raise InputError(
            f"`label_names` must differ. Received more than once: {listed(twice)}. Name each "
            "class once."
        )
    return names


def label_name(label: Any, where: str) -> str:
    """Return the name of a label found in data: the numbers 1 and 1.0 and "1 " all become "1"."""
    if isinstance(label, np.generic):
        label = label.item()
    if isinstance(label, str):
        name = label.strip()
        check_string(name, "label", where)
    elif isinstance(label, float):
        if math.isinf(label):
            raise InputError(
                f"A label that is a number must be finite. Received: {label!r} ({where}). Correct "
                "or remove it."
            )
        name = "" if math.isnan(label) else str(int(label) if label.is_integer() else label)
    elif isinstance(label, bool | int):
        name = str(label)
    elif label is None:
        name = ""
    else:
        raise InputError(
            f"A label must be a string, a number or a bool. Received: {label!r:.60} of type "
            f"{type(label).__name__} ({where}). Give one class per text."
        )
    if not name:
        raise InputError(
            f"Each text needs a label. Received: {label!r} ({where}). Fill it in, or remove the "
            "row; in Python, label_column=None reads no labels."
        )
    return name


def _sorted_classes(named: Sequence[str], where: Callable[[int], str]) -> tuple[str, ...]:
    """Return the classes in their order: of numbers, if all of them are; they have to be whole."""
    first: dict[str, int] = {}
    for i, name in enumerate(named):
        first.setdefault(name, i)
    values = {name: number for name in first if (number := _number(name)) is not None}
    for name, number in values.items():
        if math.isnan(number):
            raise InputError(
                f"Each text needs a label. Received: {name!r}, which stands for a missing one "
                f"({where(first[name])}). Fill it in, or remove the row; if it is the name of a "
                "class, pass `label_names`."
            )
    if len(values) < len(first):
        return tuple(sorted(first))
    for name, number in values.items():
        if not math.isfinite(number):
            raise InputError(
                f"A label that is a number must be finite. Received: {name!r} "
                f"({where(first[name])}). Correct or remove it."
            )
        if not number.is_integer():
            raise InputError(
                "The labels of a classifier must be classes. Received: numbers with fractions, "
                f"such as {name!r} ({where(first[name])}). Is regression meant? Then name "
                "that `task`. If each number is a class, pass `label_names`, or give them names "
                f"such as '{name} stars'."
            )
    return tuple(sorted(first, key=lambda name: (values[name], name)))


def _number(name: str) -> float | None:
    try:
        return float(name)
    except ValueError:
        return None
