"""Compare the accuracy of a served classifier with that of the model in memory."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_efficient._errors import InputError, VerificationError
from keras_efficient.exporters._signature import Features, call_by_name
from keras_efficient.metrics import classification_report, predicted_classes, scores_of
from keras_efficient.metrics._labelled_batches import labelled_batches, unless_ones
from keras_efficient.metrics._scores import class_numbers

#: Default loss of accuracy that an export is allowed: half a point.
MAX_DROP = 0.005


@dataclass(frozen=True)
class Evaluation:
    """Labelled examples on which the accuracy of an export is measured.

    Args:
        data: a batch `(features, labels)` or `(features, labels, sample_weights)`, as `fit` takes
            them, or a finite iterable of such batches. Labels are classes, int [batch], or one-hot,
            [batch, classes].
        max_drop: float in [0, 1], how far the served accuracy may be below the accuracy in memory.
            Default: 0.005.

    Raises:
        InputError: `max_drop` is out of range.

    Examples:
        >>> import numpy as np
        >>> evaluation = ke.exporters.Evaluation(dataset, max_drop=0.01)
        >>> report = ke.export(
        ...     model, "tiny", sample=np.ones((1, 3)), evaluate=evaluation, latency=False
        ... )
        >>> report.evaluation["examples"]
        16

    Reference:
        `evaluate` of `ke.export`, which accepts this object in place of plain batches.
    """

    data: tuple | Iterable[Any]
    max_drop: float = MAX_DROP

    def __post_init__(self):
        drop = self.max_drop
        if isinstance(drop, bool) or not isinstance(drop, int | float) or not 0 <= drop <= 1:
            raise InputError(
                f"`max_drop` must be a share of the examples, from 0 to 1. Received: {drop!r}. "
                "Give for example 0.005, half a point."
            )

    def batches(self, model) -> list:
        """Return a list of `(Features, classes int64 [batch], weights [batch])`.

        Raises:
            InputError: there are no batches, or they lack one label per example.
        """
        return [
            (Features(model, (features,), max_examples=len(classes)), classes, weights)
            for features, classes, weights in labelled_batches(self.data, "evaluate")
        ]


def scores_in_memory(flavor, model, batches) -> list[np.ndarray]:
    """Return the class scores of the model in memory for each batch."""
    return [scores_of(call_by_name(flavor, model, f, f.arrays)) for f, _, _ in batches]


def check_drop(in_memory, served, batches, max_drop: float, label_names=None) -> dict:
    """Compare accuracies.

    Args:
        in_memory: list of float arrays [batch, classes], the scores of the model in memory.
        served: the same of the served model.
        batches: as returned by `Evaluation.batches`.
        max_drop: how far the served accuracy may be below the accuracy in memory.
        label_names: name of each class, or None for the indices.

    Returns:
        {"examples", "in_memory", "served", "classification"}; the last one is the dict of the
        `ke.metrics.ClassificationReport` of the served model.

    Raises:
        VerificationError: the served accuracy is lower by more than `max_drop`.
    """
    labels = np.concatenate([labels for _, labels, _ in batches])
    weights = unless_ones([weights for _, _, weights in batches])
    scores = np.concatenate(in_memory), np.concatenate(served)
    # The served scores may leave [0, 1] by a rounding error: they are read like the others.
    classes = [predicted_classes(x, like=scores[0]) for x in scores]
    numbers = class_numbers(scores[0], labels)
    if label_names is None or len(label_names) < len(numbers):
        label_names = numbers
    memory, report = (
        classification_report(labels, x, label_names, sample_weight=weights) for x in classes
    )
    if report.accuracy < memory.accuracy - max_drop - 1e-9:
        raise VerificationError(
            f"The served model is right on {report.accuracy:.2%} of {report.examples} examples, "
            f"the model in memory on {memory.accuracy:.2%}; a drop of {100 * max_drop:g} points is "
            "allowed. Train with ke.quantize_aware, calibrate on more data, or allow more "
            "(`max_drop` of ke.exporters.Evaluation)."
        )
    for text in report.warnings:
        warnings.warn(text, stacklevel=4)
    return {
        "examples": report.examples,
        "in_memory": memory.accuracy,
        "served": report.accuracy,
        "classification": report.to_dict(),
    }
