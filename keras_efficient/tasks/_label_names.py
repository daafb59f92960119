"""Names of the classes in signatures of strings, and in the answers of a served model."""

import math
from collections.abc import Sequence

from keras_efficient._errors import InputError


def check_label_names(label_names: Sequence[str] | None, classes: int) -> list[str]:
    """Return the names of the classes, or their numbers.

    Raises:
        InputError: there are more or fewer names than classes.
    """
    if label_names is not None and len(label_names) != classes:
        raise InputError(
            f"`labels` must name each of the {classes} classes. Received: {list(label_names)!r}. "
            "Give them in the order of the logits."
        )
    return list(map(str, range(classes))) if label_names is None else list(label_names)


def distinct_names(label_names: Sequence[str] | None, classes: int) -> list[str]:
    """Return the names of the classes if they differ and are as many, otherwise their numbers."""
    names = list(label_names or ())
    if not len(set(names)) == len(names) == classes:
        return [str(number) for number in range(classes)]
    return names


def check_numbers(rows: Sequence[Sequence[float]]) -> None:
    """Require a finite number for each class in each row of a served model's outputs.

    Raises:
        ValueError: a row is longer or shorter than the first, or holds something else.
    """
    for row in rows:
        if len(row) != len(rows[0]) or not all(map(math.isfinite, row)):
            raise ValueError("not a finite number for each class")
