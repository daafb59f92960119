"""Running checksum of the batches that training steps receive, computed in the graph."""

import numpy as np
import tensorflow as tf

from keras_efficient.flavor import Model
from keras_efficient.training import _replicas as replicas

#: Largest number of features of an example that are hashed; larger ones are strided.
_FEATURES = 4096
#: An odd multiplier with well-mixed bits: 2⁶⁴ divided by the golden ratio.
_MIX = np.uint64(0x9E3779B97F4A7C15).astype(np.int64)
_BITS = {1: tf.int8, 2: tf.int16, 4: tf.int32, 8: tf.int64}


class DataChecksum:
    """Checksum c ← c + h(batch)·(2·step + 1), in int64 arithmetic with overflow.

    The hash h is a sum over examples, so it does not depend on how many replicas share a batch.
    Zeros contribute nothing, so it does not depend on how far texts are padded with them. Called
    with each batch.
    """

    def __init__(self, model: Model):
        with model.distribute_strategy.scope():
            self._sum = replicas.variable(np.int64(0))
            self._step = replicas.variable(np.int64(0))
        self.variables = [self._sum, self._step]

    def __call__(self, data):
        total, step = replicas.local(self._sum), replicas.local(self._step)
        value = batch_hash(data)
        total.assign_add(value * (2 * step + 1))
        # A step that finds no more data does not count.
        with tf.control_dependencies([value]):
            step.assign_add(1)

    def read(self) -> int:
        """Return the checksum so far, over all replicas."""
        return int(self._sum.read_value().numpy())


def batch_hash(data):
    """Return h, a scalar int64, of a nest of tensors `[examples, ...]` in any order of examples."""
    hashes = [_tensor_hash(leaf) for leaf in tf.nest.flatten(data) if leaf is not None]
    return tf.add_n([h * np.int64(2 * index + 1) for index, h in enumerate(hashes)])


def _tensor_hash(tensor):
    if isinstance(tensor, tf.RaggedTensor):
        tensor = tensor.to_tensor()
    if isinstance(tensor, tf.SparseTensor):
        columns = _mixed(tf.reduce_sum(tensor.indices[:, 1:], 1) * 2 + 1)
        return tf.reduce_sum(_integers(tensor.values) * columns)
    if tensor.shape.rank == 0:
        return _integers(tensor)
    if tensor.shape.rank == 1:
        examples = _integers(tensor)
    else:
        size = tensor.shape[1:].num_elements()
        features = tf.shape(tensor, tf.int64)
        flat = tf.reshape(tensor, [features[0], tf.reduce_prod(features[1:])])
        values = _integers(flat if size is None else flat[:, :: -(-size // _FEATURES) or 1])
        places = _mixed(2 * tf.range(tf.shape(values, tf.int64)[1]) + 1)
        examples = tf.reduce_sum(values * places, 1)
    # Without this, two examples that swap a feature would have the same sum.
    examples = _mixed(tf.bitwise.bitwise_xor(examples, tf.bitwise.right_shift(examples, 29)))
    return tf.reduce_sum(examples)


def _mixed(values):
    return values * _MIX


def _integers(tensor):
    """Return the bits of each element as an int64."""
    if tensor.dtype == tf.string:
        return tf.strings.to_hash_bucket_fast(tensor, 2**62)
    if tensor.dtype.is_floating:
        tensor = tf.bitcast(tensor, _BITS[tensor.dtype.size])
    return tf.cast(tensor, tf.int64)
