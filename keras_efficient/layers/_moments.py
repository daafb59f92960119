"""Mean and variance of each feature over unmasked positions."""

from typing import Any

import tensorflow as tf

from keras_efficient.flavor._typing import Tensor


def masked_moments(x: Tensor, mask: Any = None) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the mean and variance of each feature over the positions that `mask` selects.

        mean = Σ m·x / Σ m        variance = Σ m·(x - mean)² / Σ m        (0 where Σ m = 0)

    Args:
        x: Float tensor of shape `[..., width]`.
        mask: Tensor of shape `[...]`, true or nonzero where a position counts. Default: None, all
            positions count.

    Returns:
        `(mean, variance, count)` of shapes `[width]`, `[width]` and `[]`, in float32, or in
        float64 if `x` is.

    Raises:
        ValueError: The rank of `mask` is not that of `x` minus one.

    Examples:
        >>> mean, variance, count = ke.layers.masked_moments([[[1.0], [3.0], [99.0]]], [[1, 1, 0]])
        >>> float(mean[0]), float(variance[0]), float(count)
        (2.0, 1.0, 2.0)

    Reference:
        Ioffe & Szegedy 2015, "Batch Normalization"; `tf.nn.weighted_moments`.
    """
    x, weights, count = _weighted(x, mask)
    mean = tf.math.divide_no_nan(_sum(x, weights), count)
    variance = tf.math.divide_no_nan(_sum(tf.math.squared_difference(x, mean), weights), count)
    return mean, variance, count


def masked_sums(x: Tensor, mask: Any = None) -> Tensor:
    """Return Σ m·x, Σ m·x² and Σ m, concatenated to one tensor `[2 · width + 1]`.

    Devices add these sums up to obtain common moments with `moments_of_sums`. The arguments are
    those of `masked_moments`.
    """
    x, weights, count = _weighted(x, mask)
    return tf.concat([_sum(x, weights), _sum(tf.square(x), weights), [count]], axis=0)


def moments_of_sums(sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return `masked_moments` from added `masked_sums`: variance = E[x²] - E[x]², at least 0."""
    count = sums[-1]
    total, squares = tf.split(sums[:-1], 2)
    mean = tf.math.divide_no_nan(total, count)
    square = tf.math.divide_no_nan(squares, count)
    return mean, tf.maximum(square - tf.square(mean), 0.0), count


def _weighted(x, mask) -> tuple[Any, Any, Any]:
    x = tf.convert_to_tensor(x)
    # Half-precision sums lose small terms, and float16 overflows.
    x = x if x.dtype == tf.float64 else tf.cast(x, tf.float32)
    if mask is None:
        return x, None, tf.cast(tf.size(x) // tf.shape(x)[-1], x.dtype)
    mask = tf.convert_to_tensor(mask)
    if mask.shape.rank != x.shape.rank - 1:
        raise ValueError(
            "`mask` must say for each position whether it counts: its shape is that of the input "
            f"without the last dimension. Received: a mask of shape {mask.shape} for an input of "
            f"shape {x.shape}. Pass a padding mask [batch, length], not an attention mask "
            "[batch, length, length]."
        )
    weights: Any = tf.cast(tf.cast(mask, tf.bool), x.dtype)
    return x, weights[..., tf.newaxis], tf.reduce_sum(weights)


def _sum(x, weights):
    # Not x * weights: padding may hold inf or NaN.
    kept = x if weights is None else tf.where(weights > 0, x, tf.zeros([], x.dtype))
    return tf.reduce_sum(kept, axis=list(range(x.shape.rank - 1)))
