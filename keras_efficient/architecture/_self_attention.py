"""Self-attention layers with a library's own code: their projections and heads."""

import math

from keras_efficient import flavor as flavors
from keras_efficient.architecture._layer_class import has_library_call, original_class
from keras_efficient.flavor import Layer

#: The `call` of Keras' attention layer, and of KerasHub's with a cache.
KERAS_ATTENTION = ("MultiHeadAttention.call", "CachedMultiHeadAttention.call")
_KERAS_INNER = ("_compute_attention", "_masked_softmax")


def self_attention_projections(layer: Layer) -> list[Layer] | None:
    """Return the query, key and value projections of a self-attention layer.

    A layer counts as self-attention if its class has the library's own code: subclasses that
    override it and layers with options that change it do not.

    Returns:
        List of three layers, or None if the layer is not known to compute plain self-attention.
    """
    cls = original_class(layer)
    inner = (getattr(getattr(cls, name, None), "__qualname__", None) for name in _KERAS_INNER)
    if has_library_call(layer, *KERAS_ATTENTION) and list(inner) == [
        f"MultiHeadAttention.{name}" for name in _KERAS_INNER
    ]:
        changed = any(getattr(layer, name, None) for name in ("_use_gate", "_sliding_window"))
        # None before the first call.
        axes = layer._attention_axes or ()
        if changed or layer._key_dim != layer._value_dim or len(axes) != 1:
            return None
        names = ("_query_dense", "_key_dense", "_value_dense")
    elif flavors.of(layer).is_bert_self_attention(cls) and not layer.is_decoder:
        names = ("query", "key", "value")
    else:
        return None
    found = [getattr(layer, name, None) for name in names]
    return None if None in found else found


def attention_heads(layer: Layer) -> tuple[int, float]:
    """Return the number of heads of a self-attention layer, and the factor of its queries, 1/√d."""
    heads = getattr(layer, "_num_heads", None) or layer.num_attention_heads
    size = getattr(layer, "_key_dim", None) or layer.attention_head_size
    return heads, 1 / math.sqrt(size)
