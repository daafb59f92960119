"""Precision, recall and F1 of counts, and the classes that a model never predicts."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from keras_efficient._errors import listed


def ratio(above: Any, below: Any) -> np.ndarray:
    """Return above / below, and 0 where that is undefined."""
    return np.divide(above, below, out=np.zeros(np.shape(below)), where=np.asarray(below) > 0)


def class_scores(
    names: Sequence[str], right: np.ndarray, predicted: np.ndarray, present: np.ndarray
) -> tuple[dict[str, Any], ...]:
    """Return for each class a dict of "label", "precision", "recall", "f1" and its two counts.

    Args:
        names: names of the classes.
        right: array [classes], how many predictions are right.
        predicted: array [classes], how many there are; "predicted" of the dict.
        present: array [classes], how many are to be found; "examples" of the dict.
    """
    return tuple(
        {
            "label": name,
            "precision": float(ratio(r, p)),
            "recall": float(ratio(r, n)),
            "f1": float(ratio(2 * r, p + n)),
            "examples": n.item(),
            "predicted": p.item(),
        }
        for name, r, p, n in zip(names, right, predicted, present, strict=True)
    )


def never_predicted(classes: Sequence[dict[str, Any]], called: str = "classes") -> Iterator[str]:
    """Yield a warning that names the classes that occur and are never predicted, if there are any.

    Args:
        classes: what `class_scores` returns.
        called: what the classes are, in the plural. Default: "classes".
    """
    present = [entry for entry in classes if entry["examples"]]
    never = [entry["label"] for entry in present if not entry["predicted"]]
    if never:
        yield f"Never predicted: {listed(never)}, {len(never)} of {len(present)} {called}."
