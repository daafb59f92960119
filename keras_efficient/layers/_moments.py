"""Means and variances over real tokens only."""

import tensorflow as tf


def masked_moments(x, mask=None):
    """Mean and variance of each feature over the positions that `mask` leaves.

        mean = Σ m·x / Σ m        variance = Σ m·(x - mean)² / Σ m        (0 where Σ m = 0)

    Args:
        x: float tensor `[..., width]`.
        mask: tensor of the shape `[...]`, true (or not 0) where a position counts; None: all do.

    Returns:
        `(mean [width], variance [width], count [])`, in float32 (float64 of float64).

    Raises:
        ValueError: `mask` has another rank than the positions of `x`.

    Example:
        >>> mean, variance, count = ke.layers.masked_moments([[[1.0], [3.0], [99.0]]], [[1, 1, 0]])
        >>> float(mean[0]), float(variance[0]), float(count)
        (2.0, 1.0, 2.0)
    """
    x, weights, count = _weighted(x, mask)
    mean = tf.math.divide_no_nan(_sum(x, weights), count)
    variance = tf.math.divide_no_nan(_sum(tf.math.squared_difference(x, mean), weights), count)
    return mean, variance, count


def masked_sums(x, mask=None):
    """What several devices add up to get common moments: one tensor `[2 · width + 1]`.

    Σ m·x, Σ m·x² and Σ m, one behind the other; `moments_of_sums` takes them apart.

    Args, Raises: as `masked_moments`.
    """
    x, weights, count = _weighted(x, mask)
    return tf.concat([_sum(x, weights), _sum(tf.square(x), weights), [count]], axis=0)


def moments_of_sums(sums):
    """`masked_moments` from (a sum of) `masked_sums`: variance = E[x²] - E[x]², at least 0."""
    count = sums[-1]
    total, squares = tf.split(sums[:-1], 2)
    mean = tf.math.divide_no_nan(total, count)
    square = tf.math.divide_no_nan(squares, count)
    return mean, tf.maximum(square - tf.square(mean), 0.0), count


def _weighted(x, mask):
    x = tf.convert_to_tensor(x)
    # Sums of many half-precision numbers lose the small ones, and overflow in float16.
    x = x if x.dtype == tf.float64 else tf.cast(x, tf.float32)
    if mask is None:
        return x, None, tf.cast(tf.size(x) // tf.shape(x)[-1], x.dtype)
    mask = tf.convert_to_tensor(mask)
    if mask.shape.rank != x.shape.rank - 1:
        raise ValueError(
            "`mask` must say for each position whether it counts: its shape is that of the input "
            f"without the last dimension. Received: a mask of shape {mask.shape} for an input of "
            f"shape {x.shape}. An attention mask [batch, length, length] is another thing."
        )
    weights = tf.cast(tf.cast(mask, tf.bool), x.dtype)
    return x, weights[..., tf.newaxis], tf.reduce_sum(weights)


def _sum(x, weights):
    # Not x * weights: padding may hold inf or NaN.
    kept = x if weights is None else tf.where(weights > 0, x, tf.zeros([], x.dtype))
    return tf.reduce_sum(kept, axis=list(range(x.shape.rank - 1)))
