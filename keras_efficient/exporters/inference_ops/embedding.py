"""Embeddings that convert only the rows they look up to float32."""

import tensorflow as tf

from keras_efficient.parametrize._parametrized_layer import CallWrapper


class EmbeddingOp(CallWrapper):
    """Compute a Keras embedding layer by a look-up in a packed table.

    Args:
        pack: `PackedWeight` of the layer's table.
    """

    name = "inference embedding"

    def __init__(self, pack):
        self.pack = pack

    def wrap_call(self, call, ids, *args, **kwargs):
        # The reverse of a reversible embedding multiplies by the entire table.
        if kwargs.get("reverse") or (args and args[0]):
            return call(ids, *args, **kwargs)
        rows = self.pack.rows(tf.cast(ids, tf.int32))
        return tf.cast(rows, self.layer.compute_dtype)


class PositionEmbeddingOp(CallWrapper):
    """Compute KerasHub's position embedding from the first rows of a packed table."""

    name = "inference position embedding"

    def __init__(self, pack):
        self.pack = pack

    def wrap_call(self, call, inputs, start_index=0, positions=None, **kwargs):
        if positions is not None:
            return call(inputs, start_index=start_index, positions=positions, **kwargs)
        length = tf.shape(inputs)[-2]
        rows = self.pack.rows(tf.range(length) + start_index)
        return tf.cast(tf.broadcast_to(rows, tf.shape(inputs)), inputs.dtype)


class LazyEmbeddingOp(tf.experimental.ExtensionType):
    """An int8 table for layers that call `tf.gather` on it, as those of Hugging Face do.

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


def _to_tensor(table, dtype=None, name=None, as_ref=False):
    full = tf.cast(table.table, tf.float32) * table.scales[:, None]
    return full if dtype is None else tf.cast(full, dtype)


tf.register_tensor_conversion_function(LazyEmbeddingOp, _to_tensor)
