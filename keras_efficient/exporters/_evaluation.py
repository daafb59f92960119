"""Compare the quality of a served model with that of the model in memory."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_efficient._errors import InputError, VerificationError
from keras_efficient.exporters._signature import Features, call_by_name
from keras_efficient.flavor._ignored_label import IGNORED
from keras_efficient.metrics._labelled_batches import joined, labelled_batches, unless_ones

#: Default loss of accuracy, or of another task's score, that an export is allowed: half a point.
MAX_DROP = 0.005


@dataclass(frozen=True)
class Evaluation:
    """Labelled examples on which the quality of an export is measured.

    Args:
        data: a batch `(features, labels)` or `(features, labels, sample_weights)`, as `fit` takes
            them, or a finite iterable of such batches. For classification labels are classes, int
            [batch], or one-hot, [batch, classes].
        max_drop: float in [0, 1], how far the served score may be below the score in memory. The
            score is the accuracy for classification, and what `score` of the task's report is for
            others. Default: 0.005.

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

    def batches(self, model, task) -> list:
        """Return a list of `(Features, labels [batch, ...], weights [batch])`.

        Raises:
            InputError: there are no batches, or they lack one label of the task per example.
        """
        return [
            (Features(model, (features,), max_examples=len(labels)), labels, weights)
            for features, labels, weights in labelled_batches(
                self.data, "evaluate", task.batch_labels
            )
        ]


def scores_in_memory(flavor, model, batches, task) -> list[np.ndarray]:
    """Return the scores of the model in memory for each batch."""
    return [task.scores(call_by_name(flavor, model, f, f.arrays), y) for f, y, _ in batches]


def check_drop(in_memory, served, batches, max_drop: float, task, label_names=None):
    """Compare the scores of a task.

    Args:
        in_memory: list of float arrays [batch, outputs], the scores of the model in memory.
        served: list of dicts of output arrays of the served model.
        batches: as returned by `Evaluation.batches`.
        max_drop: how far the served score may be below the score in memory.
        task: the `ke.tasks.Task`.
        label_names: name of each class, or None for the indices.

    Returns:
        `(evaluation, report)`: {"examples", "metric", "in_memory", "served"}, and the task's report
        on the served model.

    Raises:
        VerificationError: the served score is lower by more than `max_drop`.
    """
    labels = joined([labels for _, labels, _ in batches], fill=IGNORED)
    weights = unless_ones([weights for _, _, weights in batches])
    memory = joined(in_memory)
    found = zip(served, batches, strict=True)
    outputs = joined([task.scores(values, labels) for values, (_, labels, _) in found])
    expected, report = (
        task.report(labels, scores, label_names, sample_weight=weights)
        for scores in (memory, task.aligned(outputs, like=memory))
    )
    if report.score < expected.score - max_drop - 1e-9:
        raise VerificationError(
            f"The served model has a lower {report.metric} than the model in memory: "
            f"{report.score:.4f} instead of {expected.score:.4f} on {report.examples} examples; a "
            f"drop of {max_drop:g} is allowed. Train with ke.quantize_aware, calibrate on more "
            "data, or allow more (`max_drop` of ke.exporters.Evaluation)."
        )
    for text in report.warnings:
        warnings.warn(text, stacklevel=4)
    evaluation = {
        "examples": report.examples,
        "metric": report.metric,
        "in_memory": expected.score,
        "served": report.score,
    }
    return evaluation, report
