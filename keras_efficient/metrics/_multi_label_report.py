"""Micro- and macro-F1 where examples have several classes, beside the best constant answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from keras_efficient._errors import InputError, listed
from keras_efficient.metrics._class_scores import class_scores, never_predicted, ratio
from keras_efficient.metrics._intervals import bootstrap_intervals
from keras_efficient.metrics._task_report import TaskReport


@dataclass(frozen=True)
class MultiLabelReport(TaskReport):
    """Quality of a model that predicts any number of classes per example; prints as tables.

    The score is the micro-F1; its interval is that of the percentile bootstrap with 1,000
    resamples. The warnings tell of classes that are never predicted, and of a micro-F1 not above
    the baseline.

    Attributes:
        micro_f1: float, F1 of all pairs of an example and a class: frequent classes count more.
        macro_f1: float, mean of the F1 scores of the classes that occur among the labels or the
            predictions.
        exact_match: float, share of the examples all of whose classes are right.
        baseline_micro_f1: float, highest micro-F1 of always predicting the same classes.
        baseline_labels: tuple of str, these classes.
        classes: tuple of dicts, one per class in the order of the indices, with "label"; the floats
            "precision", "recall" and "f1", which are 0 where they are undefined; and the counts
            "examples" and "predicted".

    Examples:
        >>> report = ke.metrics.multi_label_report([[1, 0], [1, 1]], [[1, 0], [1, 0]])
        >>> round(report.micro_f1, 3), report.exact_match, report.baseline_labels
        (0.8, 0.5, ('0', '1'))
    """

    micro_f1: float
    macro_f1: float
    exact_match: float
    baseline_micro_f1: float
    baseline_labels: tuple[str, ...]
    classes: tuple[dict[str, Any], ...]
    metric: ClassVar[str] = "micro-F1"

    @property
    def score(self) -> float:
        """Return the micro-F1."""
        return self.micro_f1

    def measures(self) -> dict[str, float]:
        """Return the scores as facts for an export's report."""
        return {name: getattr(self, name) for name in ("micro_f1", "macro_f1", "exact_match")}

    def rows(self) -> list[tuple[str, str]]:
        """Return `(label, value)` pairs for display."""
        low, high = self.interval
        always = listed(self.baseline_labels, 3, quoted=False)
        return [
            ("Micro-F1", f"{self.micro_f1:.4f} (95% interval {low:.4f} to {high:.4f})"),
            ("Constant baseline", f"{self.baseline_micro_f1:.4f} (always {always})"),
            ("Macro-F1", f"{self.macro_f1:.4f}"),
            ("Exact match", f"{self.exact_match:.2%}"),
        ]


def multi_label_report(
    labels: Any,
    predictions: Any,
    label_names: Sequence[str] | None = None,
    *,
    sample_weight: Any = None,
) -> MultiLabelReport:
    """Compare predicted classes with the labels, where an example has any number of them.

    With TP true positives, P predictions and N labels, of one class or of all, F1 = 2 TP / (P + N).

    Args:
        labels: array of 0 and 1 or of bools [examples, classes].
        predictions: array of 0 and 1 or of bools [examples, classes].
        label_names: name of each class. Default: None, their numbers.
        sample_weight: float array [examples] >= 0. Default: None, ones.

    Returns:
        A `MultiLabelReport`.

    Raises:
        InputError: there are no examples, the shapes differ, or a class has no name.

    Examples:
        >>> report = ke.metrics.multi_label_report([[1, 0], [1, 1]], [[1, 0], [1, 0]], ["a", "b"])
        >>> report.classes[1]["label"], report.classes[1]["recall"], round(report.macro_f1, 3)
        ('b', 0.0, 0.5)

    Reference:
        `sklearn.metrics.f1_score` with average="micro" and "macro"; Lipton et al. 2014,
        "Thresholding Classifiers to Maximize F1 Score", for the constant answer.
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    count = np.ones(len(labels), int) if sample_weight is None else np.asarray(sample_weight)
    names = list(map(str, range(labels.shape[-1]) if label_names is None else label_names))
    if labels.ndim != 2 or not labels.size or labels.shape != predictions.shape:
        raise InputError(
            "A report needs 0 or 1 for each example and class, at least one of each. Received: "
            f"labels of shape {labels.shape} and predictions of shape {predictions.shape}."
        )
    if len(names) != labels.shape[1] or count.shape != labels.shape[:1]:
        raise InputError(
            f"There must be a name for each of {labels.shape[1]} classes and a weight for each of "
            f"{len(labels)} examples. Received: {len(names)} names and weights of shape "
            f"{count.shape}."
        )
    labels, predictions = labels > 0, predictions > 0
    right, predicted, present = (
        count @ matrix.astype(count.dtype) for matrix in (labels & predictions, predictions, labels)
    )
    f1 = ratio(2 * right, predicted + present)
    occurs = predicted + present > 0
    per_example = {
        "right": count * (labels & predictions).sum(1),
        "both": count * (predictions.sum(1) + labels.sum(1)),
    }
    micro = float(ratio(2 * right.sum(), (predicted + present).sum()))
    intervals = bootstrap_intervals(
        per_example, {"micro_f1": lambda s: ratio(2 * s["right"], s["both"])}
    )
    baseline, always = best_constant(present, float(count.sum()))
    report = {
        "micro_f1": micro,
        "macro_f1": float(f1[occurs].mean()) if occurs.any() else 0.0,
        "exact_match": float(np.average((labels == predictions).all(1), weights=count)),
        "baseline_micro_f1": baseline,
        "baseline_labels": tuple(names[i] for i in always),
        "classes": class_scores(names, right, predicted, present),
    }
    warnings = tuple(_warnings(report))
    return MultiLabelReport(len(labels), intervals["micro_f1"], warnings, **report)


def best_constant(present: np.ndarray, examples: float) -> tuple[float, list[int]]:
    """Return the highest micro-F1 of always predicting the same classes, and those classes.

    Args:
        present: array [classes], in how many examples each class occurs.
        examples: number of examples.
    """
    # With k classes the k most frequent ones are best.
    order = np.argsort(-present, kind="stable")
    found = np.cumsum(present[order])
    sizes = np.arange(1, len(order) + 1)
    scores = ratio(2 * found, sizes * examples + present.sum())
    best = int(scores.argmax())
    return float(scores[best]), sorted(order[: best + 1].tolist())


def _warnings(report):
    yield from never_predicted(report["classes"])
    present = any(entry["examples"] for entry in report["classes"])
    if present and report["micro_f1"] <= report["baseline_micro_f1"]:
        yield (
            f"The micro-F1, {report['micro_f1']:.4f}, is not above that of always answering "
            f"{listed(report['baseline_labels'], 3)}, {report['baseline_micro_f1']:.4f}. Train "
            "longer, or with another learning rate."
        )
