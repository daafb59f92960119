"""Self-attention with one product for queries, keys and values, and no needless transposes."""

import inspect

import tensorflow as tf

from keras_efficient.exporters.inference_ops.dense import flat
from keras_efficient.exporters.inference_ops.matmul import BFloat16MatMul, MatMul
from keras_efficient.parametrize._parametrized_layer import CallWrapper

#: Added to a score that is not to count; finite in bfloat16 too.
_NEVER = -1e9
#: What an attention layer may be told without being more than self-attention.
_HARMLESS = {"training"}


class SelfAttention(CallWrapper):
    """Softmax(Q · Kᵀ / √d + mask) · V of the same inputs.

    Args:
        matrix: `Matrix` of queries (divided by √d), keys and values, one after the other.
        heads: int.
    """

    name = "lean attention"

    def __init__(self, matrix: MatMul, heads: int):
        self.matrix, self.heads = matrix, heads

    def wrap_call(self, call, *args, **kwargs):
        layer = self.layer
        bound = inspect.signature(self.parametrized.original_class.call).bind(
            layer, *args, **kwargs
        )
        given = {
            name: value
            for name, value in bound.arguments.items()
            if value is not None and value is not False and name != "self"
        }
        mask = given.pop("attention_mask", None)
        inputs = given.pop("query", None)
        keras = inputs is not None
        if not keras:
            inputs = given.pop("hidden_states", None)
        others = [given.pop(name, inputs) for name in ("key", "value")] if keras else []
        plain = inputs is not None and all(other is inputs for other in others)
        # (Keras passes some masks on with the tensors.)
        masked = getattr(inputs, "_keras_mask", None) is not None
        if not plain or masked or set(given) - _HARMLESS or len(inputs.shape) != 3:
            return call(*args, **kwargs)
        heads = self._mixed(inputs, mask, keras)
        size = self.matrix.bias.size // 3
        # Keras' output layer takes the heads as they are.
        last = [self.heads, size // self.heads] if keras else [size]
        mixed = tf.reshape(heads, tf.concat([tf.shape(inputs)[:2], last], 0))
        mixed.set_shape([*inputs.shape[:2], *last])
        mixed = tf.cast(mixed, inputs.dtype)
        return layer._output_dense(mixed) if keras else (mixed,)

    def _mixed(self, inputs, mask, keras):
        """[batch, length, heads, size of a head]."""
        size = self.matrix.bias.size // 3
        rows, _ = flat(inputs, self.matrix.inputs)
        dtype = tf.bfloat16 if isinstance(self.matrix, BFloat16MatMul) else tf.float32
        parts = tf.cast(self.matrix(rows), dtype)
        split = [3, self.heads, size // self.heads]
        split = tf.reshape(parts, tf.concat([tf.shape(inputs)[:2], split], 0))
        query, key, value = tf.unstack(tf.transpose(split, [2, 0, 3, 1, 4]))
        scores = tf.matmul(query, key, transpose_b=True)
        if mask is not None:
            added = self._added(mask) if keras else tf.maximum(tf.cast(mask, tf.float32), _NEVER)
            scores += tf.cast(added, dtype)
        return tf.transpose(tf.matmul(tf.nn.softmax(scores), value), [0, 2, 1, 3])

    def _added(self, mask):
        """Keras' mask (true where attention goes) as what is added to scores."""
        mask = self.parametrized.flavor.attention_mask(self.layer, tf.convert_to_tensor(mask))
        added = (1.0 - tf.cast(mask, tf.float32)) * _NEVER
        return added[:, None] if len(mask.shape) == 3 else added
