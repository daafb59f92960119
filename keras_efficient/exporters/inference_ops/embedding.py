"""Embeddings that look up written rows, and make floats of those alone."""

import tensorflow as tf

from keras_efficient.parametrize._parametrized_layer import CallWrapper


class EmbeddingOp(CallWrapper):
    """A Keras embedding layer as a look-up in a `Pack`.

    Args:
        pack: `Pack` of the layer's table.
    """

    name = "lean table"

    def __init__(self, pack):
        self.pack = pack

    def wrap_call(self, call, ids, *args, **kwargs):
        # (A reversible embedding's way back multiplies by the whole table.)
        if kwargs.get("reverse") or (args and args[0]):
            return call(ids, *args, **kwargs)
        rows = self.pack.rows(tf.cast(ids, tf.int32))
        return tf.cast(rows, self.layer.compute_dtype)


class PositionEmbeddingOp(CallWrapper):
    """KerasHub's position embedding: the first rows of a `Pack`."""

    name = "lean positions"

    def __init__(self, pack):
        self.pack = pack

    def wrap_call(self, call, inputs, start_index=0, positions=None, **kwargs):
        if positions is not None:
            return call(inputs, start_index=start_index, positions=positions, **kwargs)
        length = tf.shape(inputs)[-2]
        rows = self.pack.rows(tf.range(length) + start_index)
        return tf.cast(tf.broadcast_to(rows, tf.shape(inputs)), inputs.dtype)


class LazyEmbeddingOp(tf.experimental.ExtensionType):
    """A table for layers that call `tf.gather` on it themselves, as Hugging Face's do.

    Attributes:
        table: int8 tensor [rows, size].
        scales: float32 tensor [rows].
    """

    table: tf.Tensor
    scales: tf.Tensor

    @property
    def dtype(self):
        return tf.float32

    @property
    def shape(self):
        return self.table.shape


@tf.experimental.dispatch_for_api(tf.gather, {"params": LazyEmbeddingOp})
def _gather(params, indices, validate_indices=None, axis=None, batch_dims=0, name=None):
    if axis not in (None, 0) or batch_dims:
        return tf.gather(tf.convert_to_tensor(params), indices, axis=axis, batch_dims=batch_dims)
    rows = tf.cast(tf.gather(params.table, indices), tf.float32)
    return rows * tf.gather(params.scales, indices)[..., None]


def _whole(table, dtype=None, name=None, as_ref=False):
    whole = tf.cast(table.table, tf.float32) * table.scales[:, None]
    return whole if dtype is None else tf.cast(whole, dtype)


tf.register_tensor_conversion_function(LazyEmbeddingOp, _whole)
