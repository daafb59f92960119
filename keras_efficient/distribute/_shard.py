"""Share a dataset's batches among workers: nothing is lost, nothing comes twice."""

import tensorflow as tf


def shard(dataset):
    """The dataset with a sharding policy that is exact for it.

    TensorFlow's AUTO policy deals out files where it finds some, and fails if they are fewer than
    the workers. Here each global batch is divided (DATA), so an epoch of any number of workers has
    the batches of one process, ragged end included; every worker then reads all of the input. A
    policy set by you stays: FILE saves reading, if files are many and alike, and gives other
    batches.

    Args:
        dataset: `tf.data.Dataset` of global batches, in the same order in every worker: seed its
            shuffling (`ke.strategy` seeds all workers alike).

    Returns:
        The dataset with DATA as its policy, or as it was.
    """
    if not isinstance(dataset, tf.data.Dataset):
        return dataset
    policies = tf.data.experimental.AutoShardPolicy
    if dataset.options().experimental_distribute.auto_shard_policy is not policies.AUTO:
        return dataset
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = policies.DATA
    return dataset.with_options(options)
