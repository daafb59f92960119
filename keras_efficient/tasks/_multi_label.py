"""`MultiLabel`: any number of classes per text."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from keras_efficient._errors import InputError, listed
from keras_efficient.data._class_labels import checked_names, indices, label_name
from keras_efficient.data._records import Records
from keras_efficient.flavor._typing import Tensor
from keras_efficient.metrics._multi_label_report import (
    MultiLabelReport,
    best_constant,
    multi_label_report,
)
from keras_efficient.tasks._label_names import check_label_names, check_numbers, distinct_names
from keras_efficient.tasks._task import Task

#: Values of a column of its own for a class.
_FLAGS = {"0": 0, "1": 1, "false": 0, "true": 1, "0.0": 0, "1.0": 1}


class MultiLabel(Task):
    """Multi-label classification: each text, or pair of texts, has any number of classes.

    Labels are lists of strings in JSON Lines, strings with "|" between the classes ("funny|sad"),
    or a column of 0 and 1 for each class (several `label_column`s). A text without classes has an
    empty list or string. The head has an output per class, and the loss is the binary cross-entropy
    of their sigmoids. The report is a `ke.metrics.MultiLabelReport`. The signature of strings
    answers with "labels", string `[batch, classes]`, with "" for classes that the text does not
    have, and "probabilities", float32 `[batch, classes]`. A class is predicted above 0.5.

    Args:
        texts: Number of texts per example, 2 for pairs of texts. Default: 1.

    Attributes:
        separator: str, between the classes in a string. A class attribute. Default: "|".

    Examples:
        >>> task = ke.tasks.MultiLabel()
        >>> records = ke.data.Records.of(["a", "b"], ["funny|sad", ["sad"]], encode=task.encode)
        >>> records.label_names, records.labels.tolist()
        (('funny', 'sad'), [[1, 1], [0, 1]])

    Reference:
        `transformers.TFAutoModelForSequenceClassification` with
        `problem_type="multi_label_classification"`.
    """

    name = "multi_label"
    choices: ClassVar = {
        "micro_f1": ("micro-F1", "max"),
        "macro_f1": ("macro-F1", "max"),
        "loss": ("loss", "min"),
    }
    serves = ("probabilities", "labels")
    compresses = True
    separator: ClassVar[str] = "|"

    def encode(
        self,
        values: Sequence[Any],
        label_names: Sequence[str] | None,
        where: Callable[[int], str],
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        """Return int32 `[texts, classes]` of 0 and 1, and the names; sorted if none are given."""
        if values and isinstance(values[0], dict):
            return _from_columns(values, label_names, where)
        named = [self._named(value, where(i)) for i, value in enumerate(values)]
        self._check_separator(values, where)
        rows = np.repeat(np.arange(len(named)), list(map(len, named)))
        flat = [name for found in named for name in found]
        names = tuple(sorted(set(flat))) if label_names is None else checked_names(label_names)
        if not names:
            raise InputError(
                f"A class must occur in the data. Received: {len(values):,} texts without any "
                f"({where(0)} and others). Name the column with the labels."
            )
        labels = np.zeros((len(named), len(names)), np.int32)
        labels[rows, indices(flat, names, lambda i: where(int(rows[i])))] = 1
        return labels, names

    def _named(self, value, where):
        if isinstance(value, str):
            value = [part for part in value.split(self.separator) if part.strip()]
        elif not isinstance(value, list | tuple):
            value = [] if value is None or value != value else [value]
        return [label_name(part, where) for part in value]

    def _check_separator(self, values, where):
        """Refuse strings that are separated by something else, each of which were a class."""
        strings = [(i, value) for i, value in enumerate(values) if isinstance(value, str)]
        if any(self.separator in value for _, value in strings):
            return
        for i, value in strings:
            if other := next((mark for mark in ";,\t" if mark in value), None):
                raise InputError(
                    f"Classes in a string are separated by {self.separator!r}. Received: "
                    f"{value!r:.60} ({where(i)}), with {other!r}. Replace it, or write lists in "
                    "JSON Lines, or a column of 0 and 1 for each class."
                )

    def check(self, train: Records, validation: Records | None = None) -> None:
        """Require that each class occurs among the records to train on."""
        if train.labels is None:
            raise InputError(
                f"Training needs labels. Received: {train.source} without labels. Name the label "
                "column, or give `labels`."
            )
        missing = np.flatnonzero(train.labels.sum(0) == 0)
        if missing.size:
            names = listed(train.label_names[index] for index in missing)
            raise InputError(
                f"Every class must occur in the training part. Received: {names} never "
                f"({train.source}). Add texts of that class, leave it out, hold out fewer, or use "
                "another --seed."
            )

    def describe(self, train: Records, validation: Records) -> tuple[str, str]:
        """Return the names of the classes, and the best constant answer."""
        score, always = best_constant(validation.labels.sum(0), len(validation))
        names = listed((train.label_names[i] for i in always), 3)
        mean = train.labels.sum() / len(train)
        labels = f"{mean:.2f} of the labels {listed(train.label_names, quoted=False)} per text"
        return labels, f"always answering {names} has micro-F1 {score:.4f}"

    def head_size(self, num_labels: int | None) -> int:
        """Return the number of classes, which must be given."""
        if type(num_labels) is not int or num_labels < 1:
            raise InputError(
                f"`num_labels` must be the number of classes, at least 1. Received: {num_labels!r}."
                " Give for example len(records.label_names)."
            )
        return num_labels

    def loss(self, keras: Any) -> Any:
        """Return the binary cross-entropy of the sigmoids, averaged over the classes."""
        return keras.losses.BinaryCrossentropy(from_logits=True)

    def metrics(self, keras: Any, num_labels: int) -> list:
        """Return micro- and macro-F1."""
        from keras_efficient.metrics._multi_label_f1 import multi_label_f1

        return [
            multi_label_f1(num_labels, average=average, library=keras.__name__)
            for average in ("micro", "macro")
        ]

    def batch_labels(self, labels: Any, argument: str) -> np.ndarray:
        """Return 0 and 1, int64 `[batch, classes]`."""
        labels = np.asarray(labels)
        if labels.ndim != 2 or not labels.size or not np.isin(labels, (0, 1)).all():
            raise InputError(
                f"`{argument}` compares 0 and 1 for each example and class. Received: labels of "
                f"shape {labels.shape} and type {labels.dtype}. Name the `task` of the model."
            )
        return labels.astype("int64")

    def report(
        self,
        labels: np.ndarray,
        scores: np.ndarray,
        label_names: Sequence[str] | None = None,
        *,
        sample_weight: Any = None,
    ) -> MultiLabelReport:
        """Return micro- and macro-F1 beside the best constant answer, and scores per class."""
        predictions = scores > 0
        return multi_label_report(labels, predictions, label_names, sample_weight=sample_weight)

    def predicted_labels(self, scores: np.ndarray) -> np.ndarray:
        """Return 1 for the classes above a probability of 0.5, int32 `[examples, classes]`."""
        return (scores > 0).astype(np.int32)

    def serve(self, logits: Tensor, label_names: Sequence[str] | None) -> dict[str, Tensor]:
        """Return "probabilities", and "labels" with the names of the classes above 0.5."""
        import tensorflow as tf

        names = check_label_names(label_names, logits.shape[1])
        probabilities = tf.sigmoid(logits)
        with tf.device("CPU:0"):
            labels = tf.where(logits > 0, tf.constant(names)[None], "")
        return {"probabilities": probabilities, "labels": labels}

    def decode(
        self, outputs: Mapping[str, list], label_names: Sequence[str] | None
    ) -> list[dict[str, Any]]:
        """Return "labels", list of str, and "probabilities", `{label: float}`, of each text."""
        rows = outputs["probabilities"]
        check_numbers(rows)
        names = distinct_names(label_names, len(rows[0]))
        return [
            {
                "labels": [label for label in found if label],
                "probabilities": dict(zip(names, row, strict=True)),
            }
            for found, row in zip(outputs["labels"], rows, strict=True)
        ]


def _from_columns(values, label_names, where):
    """Return the labels of rows with a column for each class."""
    columns = tuple(values[0])
    names = columns if label_names is None else checked_names(label_names)
    if set(names) != set(columns):
        raise InputError(
            f"The label columns must be the classes, {listed(names)}. Received: "
            f"{listed(columns)} ({where(0)}). Name the columns of the training data."
        )
    labels = np.zeros((len(values), len(names)), np.int32)
    for i, row in enumerate(values):
        for j, name in enumerate(names):
            flag = _FLAGS.get(str(row[name]).strip().lower())
            if flag is None:
                raise InputError(
                    "A column for each class holds 0 or 1. Received: "
                    f"{row[name]!r:.60} in {name!r} ({where(i)}). Correct the row, or name one "
                    "column with all classes."
                )
            labels[i, j] = flag
    return labels, names
