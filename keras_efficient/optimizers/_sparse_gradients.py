"""The gradient of an embedding, with the rows that a batch names more than once summed."""

import tensorflow as tf


def densify(gradient, variable):
    """`gradient` as a dense tensor of `variable`'s dtype.

    TensorFlow gives an embedding's gradient as `IndexedSlices`, one row per token, so that a row
    may be there several times. Keras 3's Adam squares them one by one, where it should square
    their sum, and both libraries take them one by one into the global norm. The slots of all the
    optimizers here are updated in every row anyway, so that dense costs little; and it suits XLA,
    which knows no tensors of as many rows as are different.
    """
    if isinstance(gradient, tf.IndexedSlices):
        values = tf.cast(gradient.values, variable.dtype)
        return tf.math.unsorted_segment_sum(values, gradient.indices, variable.shape[0])
    return tf.cast(gradient, variable.dtype)
