"""Self-attention with one product for queries, keys and values, and no needless transposes."""

import inspect
import math
import sys

import tensorflow as tf

from keras_efficient.exporters.inference_ops.dense import class_of, computes, flat
from keras_efficient.exporters.inference_ops.matmul import BFloat16MatMul, MatMul
from keras_efficient.parametrize._parametrized_layer import CallWrapper

#: The layers of queries, keys and values, as libraries call them.
_NAMES = (("_query_dense", "_key_dense", "_value_dense"), ("query", "key", "value"))
#: The code of Keras' layer, and of KerasHub's with a cache.
_KERAS = ("MultiHeadAttention.call", "CachedMultiHeadAttention.call")
_INNER = ("_compute_attention", "_masked_softmax")
#: Added to a score that is not to count; finite in bfloat16 too.
_NEVER = -1e9
#: What an attention layer may be told without being more than self-attention.
_HARMLESS = {"training"}


def projections(layer):
    """The layers of a self-attention layer's queries, keys and values; None: it is none.

    What a class computes is known by its code: subclasses that override it are left alone, and so
    are layers with options that change it.
    """
    cls = class_of(layer)
    inner = all(_name(cls, name) == f"MultiHeadAttention.{name}" for name in _INNER)
    if inner and computes(layer, *_KERAS):
        odd = any(getattr(layer, name, None) for name in ("_use_gate", "_sliding_window"))
        # (None where it was never called.)
        axes = layer._attention_axes or ()
        if odd or layer._key_dim != layer._value_dim or len(axes) != 1:
            return None
        names = _NAMES[0]
    elif _is_of_bert(cls) and not layer.is_decoder:
        names = _NAMES[1]
    else:
        return None
    found = [getattr(layer, name, None) for name in names]
    return None if None in found else found


def _name(cls, method):
    return getattr(getattr(cls, method, None), "__qualname__", None)


def _is_of_bert(cls):
    """Whether a class of Hugging Face's computes what BERT's does: they are copies of it."""
    bert = sys.modules.get("transformers.models.bert.modeling_tf_bert")
    if not cls.__module__.startswith("transformers."):
        return False
    if bert is None:
        from transformers.models.bert import modeling_tf_bert as bert
    own, model = getattr(cls, "call", None), bert.TFBertSelfAttention.call
    own = getattr(own, "__code__", None)
    return own is not None and (own.co_code, own.co_names) == (
        model.__code__.co_code,
        model.__code__.co_names,
    )


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
        layer = self.view.layer
        bound = inspect.signature(self.view.plain_class.call).bind(layer, *args, **kwargs)
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
        mask = tf.convert_to_tensor(mask)
        if self.view.flavor.name == "keras" and mask.dtype != tf.bool:
            # (Its dropout has it go another way.)
            drops = self.view.layer._dropout > 0
            mask = tf.cast(mask, tf.float32) > 0.5 if drops else tf.cast(mask, tf.bool)
        added = (1.0 - tf.cast(mask, tf.float32)) * _NEVER
        return added[:, None] if len(mask.shape) == 3 else added


def heads_of(layer):
    """The number of heads, and what queries are multiplied by."""
    heads = getattr(layer, "_num_heads", None) or layer.num_attention_heads
    size = getattr(layer, "_key_dim", None) or layer.attention_head_size
    return heads, 1 / math.sqrt(size)
