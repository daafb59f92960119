"""What the recognisers of all libraries use."""

import inspect
from typing import Any

import tensorflow as tf

from keras_efficient.architecture._dense_layer import is_dense
from keras_efficient.architecture._description import Block, BlockInputs, SelfAttention
from keras_efficient.architecture._layer_class import original_class
from keras_efficient.architecture._norm_layer import reason_not_known
from keras_efficient.architecture._self_attention import attention_heads, self_attention_projections
from keras_efficient.flavor import Layer, Tensor


def calls(layer: Layer, library: str, name: str) -> bool:
    """Return whether a layer's `call` is that of a class called `name` in a library."""
    call = original_class(layer).call
    call = inspect.unwrap(call)
    return call.__qualname__ == f"{name}.call" and call.__module__.partition(".")[0] == library


def bound_arguments(layer: Layer, args: tuple, kwargs: dict) -> dict[str, Any]:
    """Return the arguments of a layer's own `call` by name; those left out have their default."""
    signature = inspect.signature(original_class(layer).call)
    bound = signature.bind(layer, *args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


def reason_not_described(norms: tuple, projections: tuple) -> str | None:
    """Return why these layers are not described, or None."""
    for norm in norms:
        if reason := reason_not_known(norm):
            return reason
    for layer in projections:
        if not is_dense(layer):
            return f"its projection {layer.name!r} is no dense layer"
    return None


def keras_added(mask: Tensor) -> Tensor:
    """Return what Keras' softmax adds to the scores for a mask of 1 and 0."""
    return -1e9 * (1 - tf.cast(mask, tf.float32))


def itself(hidden: Tensor, inputs: BlockInputs) -> Tensor:
    """Return the hidden states, as a block whose `call` returns nothing else."""
    return hidden


def as_tuple(hidden: Tensor, inputs: BlockInputs) -> tuple[Tensor]:
    """Return the hidden states in a tuple, as blocks that may return more."""
    return (hidden,)


def keras_attention(layer: Layer, causal: bool = False) -> SelfAttention | str:
    """Return the `SelfAttention` of a library's MultiHeadAttention, or why there is none."""
    projections = self_attention_projections(layer)
    if projections is None:
        return f"its attention, a {original_class(layer).__name__}, may compute something else"
    query, key, value = projections
    heads, scale = attention_heads(layer)
    masked = "added"
    if hasattr(layer, "_flash_attention"):
        # Keras 3 computes attention without dropout by another function than with it.
        masked = "zeroed" if layer._dropout else "overwritten"
    return SelfAttention(
        query=query,
        key=key,
        value=value,
        output=layer._output_dense,
        heads=heads,
        scale=scale,
        dropout=layer._dropout_layer,
        masked=masked,
        causal=causal,
    )


def described_block(
    path: str, layer: Layer, attention: SelfAttention | str, **parts: Any
) -> Block | str:
    """Return the `Block` of these parts, or why they are not described."""
    if isinstance(attention, str):
        return attention
    forward = parts["feed_forward"]
    norms = (parts["attention_norm"], parts["feed_forward_norm"])
    dense = (attention.query, attention.key, attention.value, attention.output)
    forward = [x for x in (forward.intermediate, forward.gate, forward.output) if x is not None]
    reason = reason_not_described(norms, (*dense, *forward))
    return reason or Block(path=path, layer=layer, attention=attention, **parts)
