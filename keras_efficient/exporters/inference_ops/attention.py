"""Self-attention with one product for queries, keys and values, without extra transposes."""

import inspect

import tensorflow as tf

from keras_efficient.exporters.inference_ops.dense import flat
from keras_efficient.exporters.inference_ops.matmul import BFloat16MatMul, MatMul
from keras_efficient.parametrize._parametrized_layer import CallWrapper

#: Added to the scores of masked positions; finite in bfloat16, too.
_MASKED = -1e9
#: Arguments of a call that do not change the result of self-attention in inference.
_HARMLESS = {"training"}


class SelfAttention(CallWrapper):
    """Compute softmax(Q · Kᵀ / √d + mask) · V with Q, K and V from the same inputs.

    Args:
        matrix: `MatMul` whose outputs are the queries, divided by √d, the keys and the values.
        heads: int, number of heads.
    """

    name = "inference attention"

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
        if inputs is None or any(other is not inputs for other in others):
            return call(*args, **kwargs)
        # Keras passes some masks on as attributes of tensors.
        masked = getattr(inputs, "_keras_mask", None) is not None
        if masked or set(given) - _HARMLESS or len(inputs.shape) != 3:
            return call(*args, **kwargs)
        heads = self._attend(inputs, mask, keras)
        size = self.matrix.bias.size // 3
        # The output projection of Keras takes [batch, length, heads, size].
        last = [self.heads, size // self.heads] if keras else [size]
        mixed = tf.reshape(heads, tf.concat([tf.shape(inputs)[:2], last], 0))
        mixed.set_shape([*inputs.shape[:2], *last])
        mixed = tf.cast(mixed, inputs.dtype)
        return layer._output_dense(mixed) if keras else (mixed,)

    def _attend(self, inputs, mask, keras):
        """Return the values weighted by attention, [batch, length, heads, size of a head]."""
        size = self.matrix.bias.size // 3
        rows, _ = flat(inputs, self.matrix.inputs)
        dtype = tf.bfloat16 if isinstance(self.matrix, BFloat16MatMul) else tf.float32
        parts = tf.cast(self.matrix(rows), dtype)
        split = [3, self.heads, size // self.heads]
        split = tf.reshape(parts, tf.concat([tf.shape(inputs)[:2], split], 0))
        query, key, value = tf.unstack(tf.transpose(split, [2, 0, 3, 1, 4]))
        scores = tf.matmul(query, key, transpose_b=True)
        if mask is not None:
            added = self._added(mask) if keras else tf.maximum(tf.cast(mask, tf.float32), _MASKED)
            scores += tf.cast(added, dtype)
        return tf.transpose(tf.matmul(tf.nn.softmax(scores), value), [0, 2, 1, 3])

    def _added(self, mask):
        """Convert a Keras mask, true at positions to attend to, to numbers added to the scores."""
        mask = self.parametrized.flavor.attention_mask(self.layer, tf.convert_to_tensor(mask))
        added = (1.0 - tf.cast(mask, tf.float32)) * _MASKED
        return added[:, None] if len(mask.shape) == 3 else added
