"""`shard`, which divides each global batch of a dataset among the workers."""

from typing import Any

import tensorflow as tf


def shard(dataset: tf.data.Dataset | Any) -> tf.data.Dataset | Any:
    """Return the dataset with a policy that shards every global batch exactly.

    TensorFlow's default policy, AUTO, distributes files where it finds any, and fails if there are
    fewer files than workers. With DATA, each global batch is divided among the workers: an epoch
    has the batches of a single process, including the ragged last one, whatever the number of
    workers. Every worker then reads the whole input. A policy that you have set is kept: FILE saves
    reading if there are many files of similar size, but gives other batches.

    `ke.strategy` applies this to every dataset of several workers.

    Args:
        dataset: `tf.data.Dataset` of global batches, in the same order on every worker. Shuffling
            needs the same seed everywhere, which `ke.strategy` sets.

    Returns:
        The dataset with DATA as its auto-shard policy. Datasets with another policy than AUTO, and
        objects that are not datasets, are returned unchanged.

    Examples:
        >>> sharded = ke.distribute.shard(dataset)
        >>> sharded.options().experimental_distribute.auto_shard_policy.name
        'DATA'

    Reference:
        `tf.data.experimental.AutoShardPolicy`.
    """
    if not isinstance(dataset, tf.data.Dataset):
        return dataset
    policies = tf.data.experimental.AutoShardPolicy
    if dataset.options().experimental_distribute.auto_shard_policy is not policies.AUTO:
        return dataset
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = policies.DATA
    return dataset.with_options(options)
