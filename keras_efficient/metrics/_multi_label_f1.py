"""Micro- or macro-F1 of several classes per example, as a metric of `compile`."""

import functools
from typing import Any

import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient._errors import InputError
from keras_efficient.metrics._macro_f1 import macro_f1_class


def multi_label_f1(num_classes: int, *, average: str = "micro", library: str = "keras") -> Any:
    """Return a metric for `compile`: F1 where an example has any number of classes, from logits.

    It counts over the whole epoch. A class is predicted if its logit is above 0. Labels are 0 or 1
    and predictions float, both [batch, classes].

    Args:
        num_classes: int, number of classes.
        average: "micro" counts all pairs of an example and a class alike; "macro" is the mean of
            the classes that occur. Default: "micro".
        library: "keras" or "tf_keras", the model's library. Default: "keras".

    Returns:
        A Keras metric named "micro_f1" or "macro_f1".

    Raises:
        InputError: `average` is neither.

    Examples:
        >>> metric = ke.metrics.multi_label_f1(2)
        >>> metric.update_state([[1, 0], [1, 1]], [[2.0, -1.0], [0.5, -3.0]])
        >>> round(float(metric.result()), 3)
        0.8

    Reference:
        `sklearn.metrics.f1_score`. `keras.metrics.F1Score` takes probabilities.
    """
    if average not in ("micro", "macro"):
        raise InputError(f"`average` must be 'micro' or 'macro'. Received: {average!r}.")
    base = macro_f1_class(flavors.get(library).keras.metrics.Metric)
    return _metric_class(base)(num_classes, average=average)


@functools.cache
def _metric_class(base):
    class MultiLabelF1(base):
        def __init__(self, num_classes, average="micro", name=None, **options):
            super().__init__(num_classes, name=name or f"{average}_f1", **options)
            self.average = average

        def update_state(self, y_true, y_pred, sample_weight=None):
            labels = tf.cast(tf.cast(y_true, tf.float32) > 0.5, tf.float32)
            predictions = tf.cast(tf.cast(y_pred, tf.float32) > 0, tf.float32)
            weights = tf.ones_like(labels[:, :1])
            if sample_weight is not None:
                weights = tf.reshape(tf.cast(sample_weight, tf.float32), [-1, 1])
            self.right.assign_add(tf.reduce_sum(weights * labels * predictions, 0))
            self.predicted.assign_add(tf.reduce_sum(weights * predictions, 0))
            self.present.assign_add(tf.reduce_sum(weights * labels, 0))

        def result(self):
            if self.average == "macro":
                return super().result()
            right, predicted, present = (
                tf.reduce_sum(tf.convert_to_tensor(x))
                for x in (self.right, self.predicted, self.present)
            )
            return tf.math.divide_no_nan(2 * right, predicted + present)

        def get_config(self):
            return {**super().get_config(), "average": self.average}

    return MultiLabelF1
