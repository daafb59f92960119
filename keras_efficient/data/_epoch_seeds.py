"""The seed of each epoch, and random orders that follow from it."""

from collections.abc import Callable, Sequence
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


def epochs(
    order_of: Callable[[Tensor], Tensor],
    shape: Sequence[int],
    dataset_of: Callable[[Tensor, Tensor], Dataset],
    seed: int,
    first_epoch: int,
) -> Dataset:
    """Return a dataset of the elements of an epoch; each iteration is another epoch.

    After the epoch the dataset goes on with zeros without end, so that what reads ahead must be cut
    off by `take`. At their ends `tf.data`'s iterators drop those that they read from, and with them
    the number of the epoch: a checkpoint of an iterator that had read ahead to the end of an epoch
    would restore other orders for the next ones.

    Args:
        order_of: Function of the seed of an epoch that returns its order, int32.
        shape: Shape of the order.
        dataset_of: Function of an order and the seed that returns a dataset of its elements.
        seed: Seed of all epochs.
        first_epoch: Index of the epoch that the dataset starts with.
    """

    def epoch(number, epoch_seed):
        none = tf.zeros(shape, tf.int32)
        return dataset_of(
            tf.cond(number == 0, lambda: order_of(epoch_seed), lambda: none), epoch_seed
        )

    endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
    return epoch_seeds(seed, first_epoch).enumerate().flat_map(epoch).apply(endless)


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
