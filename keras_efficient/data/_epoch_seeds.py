"""The seed of each epoch, and random orders that follow from it."""

from typing import Any

import tensorflow as tf

from keras_efficient.flavor._typing import Dataset, Tensor

# Nonzero, since seeds (0, 0) make TensorFlow choose a random seed.
_SECOND_SEED = 20_250_601


def epoch_seeds(seed: int, first_epoch: int) -> Dataset:
    """Return a dataset of random int64 numbers, the first of which is the seed of an epoch.

    Each iteration is another epoch.

    Args:
        seed: Seed of all epochs.
        first_epoch: Index of the epoch that the dataset starts with.
    """
    # `Dataset.random` also depends on tf.random.set_seed, which differs between programs.
    variant = tf.raw_ops.RandomDatasetV2(
        seed=tf.constant(seed, tf.int64),
        seed2=tf.constant(_SECOND_SEED, tf.int64),
        seed_generator=tf.raw_ops.DummySeedGenerator(),
        rerandomize_each_iteration=True,
        output_types=[tf.int64],
        output_shapes=[tf.TensorShape([])],
    )
    numbers = tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.int64))
    for _ in range(first_epoch):
        next(iter(numbers))
    return numbers


def permutation(size: Any, epoch_seed: Tensor, use: int) -> Tensor:
    """Return the numbers below `size` in a random order, int32.

    Args:
        size: Their number.
        epoch_seed: int64, seed of the epoch.
        use: What the order is for; other uses get other orders.
    """
    # "auto" may choose another algorithm on another device.
    seed = tf.stack([epoch_seed, tf.constant(use, tf.int64)])
    random: Any = tf.random
    return random.experimental.stateless_shuffle(tf.range(size), seed, alg="philox")


def sorted_by(keys: Tensor, order: Tensor) -> Tensor:
    """Sort the indices in `order` by their keys; those of equal keys keep their order."""
    return tf.gather(order, tf.argsort(tf.gather(keys, order), stable=True))
