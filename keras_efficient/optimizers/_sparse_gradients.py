"""Sparse gradients of embeddings with repeated rows summed, as a tensor or as unique rows."""

import tensorflow as tf

from keras_efficient.flavor import Variable


def densify(gradient: tf.Tensor | tf.IndexedSlices, variable: Variable) -> tf.Tensor:
    """Return `gradient` as a dense tensor of `variable`'s dtype.

    TensorFlow gives the gradient of an embedding as `IndexedSlices` with one row per token, so a
    row may occur several times. Keras 3's Adam squares these rows one by one instead of squaring
    their sum, and both libraries count them separately in the global norm. A dense gradient also
    suits XLA, which does not support data-dependent shapes.
    """
    if isinstance(gradient, tf.IndexedSlices):
        values = tf.cast(gradient.values, variable.dtype)
        return tf.math.unsorted_segment_sum(values, gradient.indices, variable.shape[0])
    return tf.cast(gradient, variable.dtype)


def unique_rows(gradient):
    """Sum repeated rows of `IndexedSlices`; return anything else unchanged."""
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    rows, places = tf.unique(gradient.indices)
    values = tf.math.unsorted_segment_sum(gradient.values, places, tf.shape(rows)[0])
    return tf.IndexedSlices(values, rows, gradient.dense_shape)
