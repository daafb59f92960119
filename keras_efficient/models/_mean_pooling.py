"""`mean_pooled`: one embedding of a text from the hidden states of its tokens."""

import tensorflow as tf

from keras_efficient.flavor._typing import Tensor


def mean_pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of the hidden states of real tokens, of unit length.

    Args:
        hidden: float `[texts, tokens, width]`.
        mask: int or bool `[texts, tokens]`, nonzero for real tokens.

    Returns:
        Float32 `[texts, width]`; zeros for a text without tokens.
    """
    real = tf.cast(mask, tf.bool)[..., None]
    # What stands at padding may be no number.
    hidden = tf.where(real, tf.cast(hidden, tf.float32), 0.0)
    # The number of tokens is a factor of the length alone.
    return tf.math.l2_normalize(tf.reduce_sum(hidden, 1), -1, epsilon=1e-12)
