"""Perplexity as a metric of `compile`."""

import functools
from typing import Any

import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.flavor._ignored_label import IGNORED


def perplexity(*, library: str = "keras") -> Any:
    """Return a metric for `compile`: the perplexity of language models, from ids and logits.

    It is the exponential of the mean negative log-likelihood over all tokens of an epoch that
    count. Labels are int [batch, tokens], with -100 for tokens that do not count. Predictions are
    logits, float [batch, tokens, vocabulary].

    Args:
        library: "keras" or "tf_keras", the model's library. Default: "keras".

    Returns:
        A Keras metric named "perplexity".

    Examples:
        >>> import tensorflow as tf
        >>> metric = ke.metrics.perplexity()
        >>> metric.update_state([[1, -100, 2]], tf.zeros([1, 3, 8]))
        >>> round(float(metric.result()), 4)
        8.0

    Reference:
        `keras_hub.metrics.Perplexity`.
    """
    return _metric_class(flavors.get(library).keras.metrics.Metric)()


@functools.cache
def _metric_class(base):
    class Perplexity(base):
        def __init__(self, name="perplexity", **options):
            super().__init__(name=name, **options)
            self.total, self.count = (
                self.add_weight(name=name, shape=(), initializer="zeros")
                for name in ("total", "count")
            )

        def update_state(self, y_true, y_pred, sample_weight=None):
            labels = tf.cast(y_true, tf.int32)
            weights = tf.cast(labels != IGNORED, tf.float32)
            if sample_weight is not None:
                weights *= tf.cast(tf.reshape(sample_weight, [-1, 1]), tf.float32)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
                tf.maximum(labels, 0), tf.cast(y_pred, tf.float32)
            )
            self.total.assign_add(tf.reduce_sum(weights * losses))
            self.count.assign_add(tf.reduce_sum(weights))

        def result(self):
            total, count = tf.convert_to_tensor(self.total), tf.convert_to_tensor(self.count)
            return tf.exp(tf.math.divide_no_nan(total, count))

        def reset_state(self):
            self.total.assign(0.0)
            self.count.assign(0.0)

    return Perplexity
