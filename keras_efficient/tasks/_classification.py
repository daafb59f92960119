"""`Classification`: one class per text."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from keras_efficient._errors import InputError, listed
from keras_efficient.data._class_labels import class_labels
from keras_efficient.data._records import Records, require_classes
from keras_efficient.flavor._typing import Tensor
from keras_efficient.metrics._classification_report import (
    ClassificationReport,
    classification_report,
)
from keras_efficient.metrics._labelled_batches import batch_classes
from keras_efficient.metrics._scores import class_numbers, predicted_classes
from keras_efficient.tasks._label_names import check_label_names, check_numbers, distinct_names
from keras_efficient.tasks._task import Task


class Classification(Task):
    """Single-label classification: each text, or pair of texts, has one of several classes.

    Labels are strings, numbers or bools. The head has an output per class, the loss is the
    cross-entropy of their softmax, and the report is a `ke.metrics.ClassificationReport`. The
    signature of strings answers with "label", string `[batch]`, and "probabilities", float32
    `[batch, classes]`.

    Args:
        texts: Number of texts per example, 2 for pairs of texts. Default: 1.

    Examples:
        >>> records = ke.data.Records.of(["good", "bad"], ["pos", "neg"])
        >>> ke.tasks.Classification().describe(records, records)[1]
        "always answering 'neg' is right on 50.0%"

    Reference:
        `transformers.TFAutoModelForSequenceClassification`.
    """

    name = "classification"
    choices: ClassVar = {
        "macro_f1": ("macro-F1", "max"),
        "accuracy": ("accuracy", "max"),
        "loss": ("loss", "min"),
    }
    serves = ("probabilities", "label")
    compresses = True

    def encode(
        self,
        values: Sequence[Any],
        label_names: Sequence[str] | None,
        where: Callable[[int], str],
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        """Return class indices and the names of the classes; sorted if none are given."""
        return class_labels(values, label_names, where)

    def check(self, train: Records, validation: Records | None = None) -> None:
        """Require two classes, all of them among the records to train on."""
        if validation is None:
            require_classes(train)
            return
        missing = set(range(len(train.label_names))) - set(train.labels.tolist())
        if missing:
            names = listed(train.label_names[index] for index in sorted(missing))
            raise InputError(
                f"Every label must occur in the training part. Received: {names} only in the "
                "validation part. Add rows with that label, hold out fewer, or use another --seed."
            )

    def describe(self, train: Records, validation: Records) -> tuple[str, str]:
        """Return the names of the classes, and the share of the most frequent one."""
        counts = np.bincount(validation.labels, minlength=len(train.label_names))
        name = train.label_names[int(counts.argmax())]
        share = counts.max() / counts.sum()
        labels = f"labels {listed(train.label_names, quoted=False)}"
        return labels, f"always answering {name!r:.60} is right on {share:.1%}"

    def class_weights(self, train: Records) -> dict[int, float]:
        """Return `{class: weight}`, whose mean over the records is 1."""
        counts = np.bincount(train.labels, minlength=len(train.label_names))
        # Those of scikit-learn's "balanced".
        return dict(enumerate((len(train) / (len(counts) * counts)).tolist()))

    def head_size(self, num_labels: int | None) -> int:
        """Return the number of classes, 2 by default."""
        if num_labels is not None and (type(num_labels) is not int or num_labels < 2):
            raise InputError(
                f"`num_labels` must be an int of at least 2. Received: {num_labels!r}. "
                "A classifier of one class has nothing to learn."
            )
        return num_labels or 2

    def loss(self, keras: Any) -> Any:
        """Return the cross-entropy of the softmax."""
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def metrics(self, keras: Any, num_labels: int) -> list:
        """Return accuracy and macro-F1."""
        from keras_efficient.metrics._macro_f1 import macro_f1

        return ["accuracy", macro_f1(num_labels, library=keras.__name__)]

    def batch_labels(self, labels: Any, argument: str) -> np.ndarray:
        """Return int64 classes `[batch]`, from classes or one-hot rows."""
        return batch_classes(labels, argument)

    def aligned(self, scores: np.ndarray, like: np.ndarray) -> np.ndarray:
        """Return probabilities of the second class without rounding errors that leave [0, 1]."""
        probabilities = scores.shape[1] == 1 and bool(((like >= 0) & (like <= 1)).all())
        return scores.clip(0, 1) if probabilities else scores

    def report(
        self,
        labels: np.ndarray,
        scores: np.ndarray,
        label_names: Sequence[str] | None = None,
        *,
        sample_weight: Any = None,
    ) -> ClassificationReport:
        """Return the accuracy beside that of the most frequent class, and scores per class."""
        numbers = class_numbers(scores, labels)
        if label_names is None or len(label_names) < len(numbers):
            label_names = numbers
        classes = predicted_classes(scores)
        return classification_report(labels, classes, label_names, sample_weight=sample_weight)

    def predicted_labels(self, scores: np.ndarray) -> np.ndarray:
        """Return the most probable class of each text, int32 `[examples]`."""
        return predicted_classes(scores).astype(np.int32)

    def serve(self, logits: Tensor, label_names: Sequence[str] | None) -> dict[str, Tensor]:
        """Return "probabilities" and "label"; one logit is that of the second of two classes."""
        import tensorflow as tf

        names = check_label_names(label_names, max(logits.shape[1], 2))
        if logits.shape[1] == 1:
            probabilities = tf.sigmoid(logits)
            best = tf.cast(probabilities[:, 0] > 0.5, tf.int32)
        else:
            probabilities = tf.nn.softmax(logits)
            best = tf.argmax(logits, axis=-1, output_type=tf.int32)
        with tf.device("CPU:0"):
            label = tf.gather(tf.constant(names), best)
        return {"probabilities": probabilities, "label": label}

    def decode(
        self, outputs: Mapping[str, list], label_names: Sequence[str] | None
    ) -> list[dict[str, Any]]:
        """Return "label", "probability" and "probabilities", `{label: float}`, of each text."""
        rows = [
            [1.0 - row[0], row[0]] if len(row) == 1 else row for row in outputs["probabilities"]
        ]
        check_numbers(rows)
        names = distinct_names(label_names, len(rows[0]))
        return [
            {
                "label": label,
                "probability": max(row),
                "probabilities": dict(zip(names, row, strict=True)),
            }
            for label, row in zip(outputs["label"], rows, strict=True)
        ]
