"""Accuracy beside its majority baseline, macro-F1, scores per class, and the confusion matrix."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np

from keras_efficient._errors import InputError
from keras_efficient.metrics._class_scores import never_predicted
from keras_efficient.metrics._intervals import share_interval
from keras_efficient.metrics._report_tables import count_cell, name_cell, score_table, short
from keras_efficient.metrics._task_report import TaskReport

#: With more classes the confusion matrix is left out; the most frequent mistakes remain.
_MOST_CLASSES = 100
#: Mistakes kept, from the most frequent one.
_MISTAKES = 20
#: Classes in the terminal's confusion matrix, at 80 columns.
_COLUMNS = 6


@dataclass(frozen=True)
class ClassificationReport(TaskReport):
    """Quality of a classifier on labelled examples; prints as tables.

    The score is the accuracy, and its interval that of Wilson. The warnings tell of predictions of
    one class only, of classes that are never predicted, and of an accuracy not above the baseline.

    Attributes:
        accuracy: float, share of the examples whose class is predicted.
        majority_baseline: float, accuracy of always predicting `majority_class`. A model whose
            accuracy is not above it may have learned nothing.
        majority_class: str, most frequent class among the examples.
        macro_f1: float, mean of the F1 scores of the classes that occur among the labels or the
            predictions. Rare classes count as much as frequent ones.
        classes: tuple of dicts, one per class in the order of the indices, with "label"; the floats
            "precision", "recall" and "f1", which are 0 where they are undefined; and the counts
            "examples" and "predicted".
        confusion: tuple of tuples of counts, a row per true class and a column per predicted class;
            None with more than 100 classes. With sample weights, counts are sums of weights.
        mistakes: tuple of dicts with "label", "predicted" and "count": the 20 most frequent
            confusions.

    Examples:
        >>> report = ke.metrics.classification_report([0, 0, 0, 1], [0, 0, 0, 0], ["ham", "spam"])
        >>> report.accuracy, report.majority_baseline, round(report.macro_f1, 3)
        (0.75, 0.75, 0.429)
        >>> report.warnings[0]
        "The model predicts one class only: 'ham', for all 4 examples."
    """

    accuracy: float
    majority_baseline: float
    majority_class: str
    macro_f1: float
    classes: tuple[dict[str, Any], ...]
    confusion: tuple[tuple[float, ...], ...] | None
    mistakes: tuple[dict[str, Any], ...]
    metric: ClassVar[str] = "accuracy"

    @property
    def score(self) -> float:
        """Return the accuracy."""
        return self.accuracy

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ClassificationReport":
        """Return the report that `to_dict` converted, also after JSON."""
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        if values["confusion"] is not None:
            values["confusion"] = tuple(map(tuple, values["confusion"]))
        return cls(**values)

    def measures(self) -> dict[str, float]:
        """Return the scores as facts for an export's report."""
        return {"accuracy": self.accuracy}

    def rows(self) -> list[tuple[str, str]]:
        """Return `(label, value)` pairs for display."""
        low, high = self.interval
        return [
            ("Accuracy", f"{self.accuracy:.2%} (95% interval {low:.2%} to {high:.2%})"),
            (
                "Majority baseline",
                f"{self.majority_baseline:.2%} (always {short(self.majority_class)!r})",
            ),
            ("Macro-F1", f"{self.macro_f1:.4f}"),
        ]

    def tables(self) -> list[tuple[str, Any]]:
        """Return `(title, rich table)` pairs: the scores per class, and the confusions."""
        title, table = self._confusion_table()
        return [*super().tables(), *([] if table is None else [(title, table)])]

    def _confusion_table(self):
        if self.confusion is not None and len(self.classes) <= _COLUMNS:
            names = [c["label"] for c in self.classes]
            table = score_table(["true class"], names, 9)
            for name, row in zip(names, self.confusion, strict=True):
                table.add_row(name_cell(name), *map(count_cell, row))
            return "Confusion matrix (columns: predicted)", table
        title = "Most frequent mistakes"
        if not self.mistakes:
            return title, None
        table = score_table(["true class", "predicted"], ["examples"])
        for mistake in self.mistakes[:10]:
            names = (name_cell(mistake[name]) for name in ("label", "predicted"))
            table.add_row(*names, count_cell(mistake["count"]))
        return title, table


def classification_report(
    labels: Any,
    predictions: Any,
    label_names: Sequence[str] | None = None,
    *,
    sample_weight: Any = None,
) -> ClassificationReport:
    """Compare predicted classes with the labels.

    For a class with TP true positives, P predictions and N examples, precision = TP / P, recall =
    TP / N and F1 = 2 TP / (P + N).

    Args:
        labels: int array [examples], true classes.
        predictions: int array [examples], predicted classes.
        label_names: name of each class, in the order of the indices. Default: None, the indices.
        sample_weight: float array [examples] >= 0. Default: None, ones.

    Returns:
        A `ClassificationReport`.

    Raises:
        InputError: there are no examples, the shapes differ, or a class has no name.

    Examples:
        >>> report = ke.metrics.classification_report([0, 1, 1], [0, 1, 0], ["ham", "spam"])
        >>> report.confusion
        ((1, 0), (1, 1))
        >>> report.classes[1]["recall"]
        0.5

    Reference:
        `sklearn.metrics.classification_report` and `sklearn.dummy.DummyClassifier`, whose strategy
        "most_frequent" is the baseline.
    """
    from sklearn import metrics

    labels, predictions = np.asarray(labels), np.asarray(predictions)
    weights = np.ones(labels.shape, int) if sample_weight is None else np.asarray(sample_weight)
    shapes = {labels.shape, predictions.shape, weights.shape}
    if not labels.size or labels.ndim != 1 or len(shapes) > 1:
        raise InputError(
            "A report needs one label and one predicted class per example, at least one. Received: "
            f"labels of shape {labels.shape}, predictions of shape {predictions.shape}, weights of "
            f"shape {weights.shape}. Give the indices of the classes."
        )
    least, largest = (int(f([f(labels), f(predictions)])) for f in (np.min, np.max))
    count = largest + 1 if label_names is None else len(label_names)
    if least < 0 or largest >= count:
        raise InputError(
            f"Classes must be indices into the {count} names. Received: indices from {least} to "
            f"{largest}. Give a name for each class."
        )
    names = [str(name) for name in (range(count) if label_names is None else label_names)]
    every = list(range(count))
    options: dict[str, Any] = {"labels": every, "sample_weight": weights}
    scores: Any = metrics.precision_recall_fscore_support(
        labels, predictions, **options, zero_division=cast(Any, 0)
    )
    precision, recall, f1, _ = scores
    present, predicted = (
        np.bincount(x, weights=weights, minlength=count).astype(weights.dtype)
        for x in (labels, predictions)
    )
    total = weights.sum() or 1
    majority = int(present.argmax())
    accuracy = float(weights[labels == predictions].sum() / total)
    confusion = None
    if count <= _MOST_CLASSES:
        matrix = metrics.confusion_matrix(labels, predictions, **options)
        confusion = tuple(map(tuple, matrix.tolist()))
    occurs = (present > 0) | (predicted > 0)
    report = ClassificationReport(
        examples=len(labels),
        interval=share_interval(accuracy, weights),
        accuracy=accuracy,
        majority_baseline=float(present[majority] / total),
        majority_class=names[majority],
        macro_f1=float(f1[occurs].mean()) if occurs.any() else 0.0,
        classes=tuple(
            {
                "label": names[i],
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "examples": present[i].item(),
                "predicted": predicted[i].item(),
            }
            for i in every
        ),
        confusion=confusion,
        mistakes=_mistakes(labels, predictions, weights, names),
        warnings=(),
    )
    return dataclasses.replace(report, warnings=tuple(_warnings(report)))


def _mistakes(labels, predictions, weights, names):
    wrong = labels != predictions
    pairs = np.stack([labels[wrong], predictions[wrong]], 1)
    found, where = np.unique(pairs, axis=0, return_inverse=True)
    counts = np.bincount(where.reshape(-1), weights=weights[wrong], minlength=len(found))
    counts = counts.astype(weights.dtype)
    return tuple(
        {
            "label": names[found[i, 0]],
            "predicted": names[found[i, 1]],
            "count": counts[i].item(),
        }
        for i in np.argsort(-counts, kind="stable")[:_MISTAKES]
    )


def _warnings(report):
    present = [c for c in report.classes if c["examples"]]
    predicted = [c for c in report.classes if c["predicted"]]
    if len(predicted) == 1 and len(present) > 1:
        yield (
            f"The model predicts one class only: {short(predicted[0]['label'])!r}, for all "
            f"{report.examples:,} examples."
        )
    else:
        yield from never_predicted(report.classes)
    if len(present) > 1 and report.accuracy <= report.majority_baseline:
        yield (
            f"The accuracy, {report.accuracy:.2%}, is not above the majority baseline, "
            f"{report.majority_baseline:.2%}: always answering {short(report.majority_class)!r} "
            "is at least as good. Train longer, with another learning rate or with class weights."
        )
