"""Macro-F1 as a metric of `compile`."""

import functools
from typing import Any

import tensorflow as tf

from keras_efficient import flavor as flavors


def macro_f1(num_classes: int, *, library: str = "keras") -> Any:
    """Return a metric for `compile`: the mean of the classes' F1 scores, from integer labels.

    It counts over the whole epoch, where averaging the F1 of batches would be wrong. Classes that
    occur neither among the labels nor among the predictions are left out of the mean. Labels are
    int [batch] or [batch, 1] and predictions float [batch, classes].

    Args:
        num_classes: int, number of classes.
        library: "keras" or "tf_keras", the model's library. Default: "keras".

    Returns:
        A Keras metric named "macro_f1", so that validation logs "val_macro_f1".

    Examples:
        >>> metric = ke.metrics.macro_f1(2)
        >>> metric.update_state([0, 0, 0, 1], [[1., 0.]] * 4)
        >>> round(float(metric.result()), 3)
        0.429

    Reference:
        `sklearn.metrics.f1_score(average="macro")`. `keras.metrics.F1Score(average="macro")` takes
        one-hot labels, and counts absent classes as 0.
    """
    return macro_f1_class(flavors.get(library).keras.metrics.Metric)(num_classes)


@functools.cache
def macro_f1_class(base: type) -> type:
    """Return the class of the metric, derived from a library's `Metric`."""

    class MacroF1(base):
        def __init__(self, num_classes, name="macro_f1", **options):
            super().__init__(name=name, **options)
            self.num_classes = num_classes
            self.right, self.predicted, self.present = (
                self.add_weight(name=name, shape=(num_classes,), initializer="zeros")
                for name in ("right", "predicted", "present")
            )

        def update_state(self, y_true, y_pred, sample_weight=None):
            labels = tf.cast(tf.reshape(y_true, [-1]), tf.int32)
            classes = tf.argmax(y_pred, axis=-1, output_type=tf.int32)
            weights = tf.ones_like(labels, tf.float32)
            if sample_weight is not None:
                weights *= tf.cast(tf.reshape(sample_weight, [-1]), tf.float32)
            hits = weights * tf.cast(labels == classes, tf.float32)
            # Not `tf.math.bincount`, which XLA does not compile.
            count = functools.partial(tf.math.unsorted_segment_sum, num_segments=self.num_classes)
            self.right.assign_add(count(hits, labels))
            self.predicted.assign_add(count(weights, classes))
            self.present.assign_add(count(weights, labels))

        def result(self):
            right, predicted, present = map(
                tf.convert_to_tensor, (self.right, self.predicted, self.present)
            )
            both = predicted + present
            occurring = tf.reduce_sum(tf.cast(both > 0, tf.float32))
            scores = tf.math.divide_no_nan(2 * right, both)
            return tf.math.divide_no_nan(tf.reduce_sum(scores), occurring)

        def reset_state(self):
            # That of tf_keras sets scalars.
            for variable in (self.right, self.predicted, self.present):
                variable.assign(tf.zeros(self.num_classes))

        def get_config(self):
            return {**super().get_config(), "num_classes": self.num_classes}

    return MacroF1
