"""Evaluate a classifier in memory on labelled batches."""

from collections.abc import Iterable, Sequence
from typing import Any

from keras_efficient import flavor as flavors
from keras_efficient.flavor import Model
from keras_efficient.metrics._classification_report import (
    ClassificationReport,
    classification_report,
)
from keras_efficient.metrics._labelled_batches import batch_classes, scored_batches
from keras_efficient.metrics._scores import predicted_classes, scores_of


def evaluate_classifier(
    model: Model, data: Iterable[Any], label_names: Sequence[str] | None = None
) -> ClassificationReport:
    """Compute accuracy, majority baseline, macro-F1, scores per class and the confusion matrix.

    Args:
        model: a built classifier of either library whose output, or output "logits", is float
            [batch, classes].
        data: finite batches `(features, labels)` or `(features, labels, sample_weights)` as `fit`
            takes them, such as a `tf.data.Dataset`; labels are classes, int [batch], or one-hot,
            [batch, classes]. It is iterated once.
        label_names: name of each class. Default: None, the indices.

    Returns:
        A `ClassificationReport`, to print.

    Raises:
        InputError: there are no batches, the data is endless, or the model is no classifier.

    Examples:
        >>> import tensorflow as tf
        >>> data = tf.data.Dataset.from_tensor_slices(([[1.0, 2.0, 3.0]] * 4, [0, 1, 1, 1]))
        >>> report = ke.metrics.evaluate_classifier(model, data.batch(2))
        >>> report.majority_baseline
        0.75

    Reference:
        `keras.Model.evaluate`, which returns the loss and the compiled metrics.
    """
    flavors.of(model)
    labels, scores, weights = scored_batches(
        model, data, batch_classes, lambda outputs, _: scores_of(outputs)
    )
    return classification_report(
        labels, predicted_classes(scores), label_names, sample_weight=weights
    )
