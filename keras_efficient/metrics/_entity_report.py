"""Precision, recall and F1 of entities, beside tagging every word as outside of any."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from keras_efficient._errors import InputError
from keras_efficient.data._bio_tags import entity_marks, entity_types
from keras_efficient.flavor._ignored_label import IGNORED
from keras_efficient.metrics._class_scores import class_scores, never_predicted, ratio
from keras_efficient.metrics._intervals import bootstrap_intervals
from keras_efficient.metrics._task_report import TaskReport


@dataclass(frozen=True)
class EntityReport(TaskReport):
    """Quality of a model that finds entities in texts; prints as tables.

    An entity is right if its first word, its last word and its type are. The score is the F1 of
    all entities; its interval is that of the percentile bootstrap over the texts with 1,000
    resamples. The warnings tell of types that are never found, and of an F1 of 0.

    Attributes:
        entity_f1: float, F1 of all entities; 2 right / (predicted + present).
        precision: float, share of the predicted entities that are right.
        recall: float, share of the entities in the data that are found.
        token_accuracy: float, share of the words whose tag is right.
        baseline_token_accuracy: float, share of the words that are outside of entities: the
            accuracy of finding none, whose F1 is 0.
        words: int, number of words that are compared. Those that were truncated are not.
        classes: tuple of dicts, one per type, with "label"; the floats "precision", "recall" and
            "f1", which are 0 where they are undefined; and the numbers of entities "examples", in
            the data, and "predicted".

    Examples:
        >>> names = ["O", "B-place", "I-place"]
        >>> labels, predictions = [[1, 2, 0], [0, 1, -100]], [[1, 2, 0], [0, 0, 0]]
        >>> report = ke.metrics.entity_report(labels, predictions, names)
        >>> report.precision, report.recall, round(report.entity_f1, 3), report.token_accuracy
        (1.0, 0.5, 0.667, 0.8)
    """

    entity_f1: float
    precision: float
    recall: float
    token_accuracy: float
    baseline_token_accuracy: float
    words: int
    classes: tuple[dict[str, Any], ...]
    metric: ClassVar[str] = "entity F1"

    @property
    def score(self) -> float:
        """Return the F1 of all entities."""
        return self.entity_f1

    def measures(self) -> dict[str, float]:
        """Return the scores as facts for an export's report."""
        names = ("entity_f1", "precision", "recall", "token_accuracy")
        return {name: getattr(self, name) for name in names}

    def rows(self) -> list[tuple[str, str]]:
        """Return `(label, value)` pairs for display."""
        low, high = self.interval
        return [
            ("Entity F1", f"{self.entity_f1:.4f} (95% interval {low:.4f} to {high:.4f})"),
            ("Precision, recall", f"{self.precision:.4f}, {self.recall:.4f}"),
            ("Token accuracy", f"{self.token_accuracy:.2%}"),
            (
                "No-entity baseline",
                f"F1 0, token accuracy {self.baseline_token_accuracy:.2%} (always O)",
            ),
        ]


def entity_report(
    labels: Any,
    predictions: Any,
    label_names: Sequence[str],
    *,
    sample_weight: Any = None,
) -> EntityReport:
    """Compare the entities that predicted tags mark with those of the labels.

    Entities are read as conlleval and seqeval read them: one begins at B-TYPE, and at I-TYPE if the
    word before has another type or none.

    Args:
        labels: int array [texts, tokens], classes in the order of `label_names`; -100 for tokens
            that do not count.
        predictions: int array [texts, tokens], predicted classes.
        label_names: "O", and then "B-TYPE" and "I-TYPE" of each type.
        sample_weight: float array [texts] >= 0. Default: None, ones.

    Returns:
        An `EntityReport`.

    Raises:
        InputError: there are no labels that count, the shapes differ, or the names are others.

    Examples:
        >>> names = ["O", "B-place", "I-place"]
        >>> ke.metrics.entity_report([[1, 2, 0]], [[1, 0, 0]], names).entity_f1
        0.0

    Reference:
        `seqeval.metrics.classification_report`; Tjong Kim Sang & De Meulder 2003, "Introduction to
        the CoNLL-2003 Shared Task".
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    types = entity_types(label_names)
    count = np.ones(len(labels), int) if sample_weight is None else np.asarray(sample_weight)
    if labels.ndim != 2 or labels.shape != predictions.shape or count.shape != labels.shape[:1]:
        raise InputError(
            "A report needs a class for each token of each text, twice, and a weight for each "
            f"text. Received: labels of shape {labels.shape}, predictions of shape "
            f"{predictions.shape}, weights of shape {count.shape}."
        )
    counted = labels != IGNORED
    if not counted.any() or labels[counted].min() < 0 or labels.max() >= len(label_names):
        raise InputError(
            f"Labels must be indices into the {len(label_names)} names, or -100, and some must "
            f"count. Received: labels from {labels.min() if labels.size else 'none'}. Give those "
            "of the data that was trained on."
        )
    # What counts comes first in each row, in its order; the rest is outside of entities.
    order = np.argsort(~counted, axis=1, kind="stable")
    there = np.take_along_axis(counted, order, 1)
    truth, found = (
        np.where(there, np.take_along_axis(array, order, 1), 0) for array in (labels, predictions)
    )
    right, predicted, present = _counts(truth, found, len(types))
    totals = [count @ numbers for numbers in (right, predicted, present)]
    all_right, all_predicted, all_present = (total.sum() for total in totals)
    intervals = bootstrap_intervals(
        {"right": count * right.sum(1), "both": count * (predicted.sum(1) + present.sum(1))},
        {"entity_f1": lambda sums: ratio(2 * sums["right"], sums["both"])},
    )
    weights = count[:, None] * there
    report = {
        "entity_f1": float(ratio(2 * all_right, all_predicted + all_present)),
        "precision": float(ratio(all_right, all_predicted)),
        "recall": float(ratio(all_right, all_present)),
        "token_accuracy": float(ratio((weights * (truth == found)).sum(), weights.sum())),
        "baseline_token_accuracy": float(ratio((weights * (truth == 0)).sum(), weights.sum())),
        "words": int(there.sum()),
        "classes": class_scores(types, *totals),
    }
    return EntityReport(len(labels), intervals["entity_f1"], tuple(_warnings(report)), **report)


def _counts(truth, found, types):
    """Return the numbers of right, predicted and present entities, int `[texts, types]` each."""
    (begins, kinds, ends), (other_begins, other_kinds, other_ends) = map(
        entity_marks, (truth, found)
    )
    right = begins & other_begins & (kinds == other_kinds) & (_until(ends) == _until(other_ends))
    return [
        np.stack([(chosen & (of == kind)).sum(1) for kind in range(1, types + 1)], 1)
        for chosen, of in ((right, kinds), (other_begins, other_kinds), (begins, kinds))
    ]


def _until(ends):
    """Return the place of the next end of an entity, int `[texts, words]`."""
    places = np.where(ends, np.arange(ends.shape[1]), ends.shape[1])
    return np.minimum.accumulate(places[:, ::-1], axis=1)[:, ::-1]


def _warnings(report):
    yield from never_predicted(report["classes"], "types")
    if any(entry["examples"] for entry in report["classes"]) and report["entity_f1"] == 0:
        yield (
            "No entity is found, so the F1 is not above that of finding none. Train longer, or "
            "with another learning rate."
        )
