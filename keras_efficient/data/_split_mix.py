"""Random numbers of tokens that depend on seed, epoch, text and position alone, by SplitMix64.

The n-th number follows from n and its seed alone, so that a batch of texts needs no state and no
order.

Reference:
    Steele, Lea & Flood 2014, "Fast Splittable Pseudorandom Number Generators".
"""

import tensorflow as tf

from keras_efficient.flavor._typing import Tensor

# The increment of the state and the constants of the output function.
_INCREMENT = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def text_keys(seed: Tensor, indices: Tensor) -> Tensor:
    """Return the seeds of texts, uint64, from that of an epoch, int64, and their indices."""
    state = mixed(tf.bitcast(tf.cast(seed, tf.int64), tf.uint64) + _u64(_INCREMENT))
    return mixed(state + (tf.cast(indices, tf.uint64) + _u64(1)) * _u64(_INCREMENT))


def uniform(keys: Tensor, columns: Tensor, use: int) -> Tensor:
    """Return random numbers in [0, 1), float32 `[batch, length]`, from the seeds of texts."""
    number = tf.cast(columns, tf.uint64) * _u64(4) + _u64(use + 1)
    return share_of(mixed(keys[:, None] + number[None] * _u64(_INCREMENT)))


def share_of(bits: Tensor) -> Tensor:
    """Return numbers in [0, 1), float32, from uint64."""
    # As many bits as float32 has digits.
    bits = tf.cast(tf.bitwise.right_shift(bits, _u64(40)), tf.int32)
    return tf.cast(bits, tf.float32) * 2.0**-24


def mixed(state: Tensor) -> Tensor:
    """Return the output function of SplitMix64, uint64."""
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        state = tf.bitwise.bitwise_xor(state, tf.bitwise.right_shift(state, _u64(shift)))
        state *= _u64(factor)
    return tf.bitwise.bitwise_xor(state, tf.bitwise.right_shift(state, _u64(31)))


def _u64(number):
    return tf.constant(number, tf.uint64)
