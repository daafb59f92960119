"""Compute a described Transformer block on rows of tokens."""

import contextvars
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.architecture import _row_functions as functions
from keras_efficient.architecture._activations import ACTIVATIONS, activation_of
from keras_efficient.architecture._dense_layer import activation_after, kernel_of
from keras_efficient.architecture._description import Block
from keras_efficient.architecture._layer_class import has_library_call, original_class
from keras_efficient.architecture._norm_layer import is_rms_norm, norm_weights
from keras_efficient.architecture._token_rows import TokenRows
from keras_efficient.flavor import Layer, Tensor

_HALF = (tf.float16, tf.bfloat16)
#: The function of `for_inference`, in its context.
_JOIN: contextvars.ContextVar[Callable | None] = contextvars.ContextVar("join", default=None)


@contextmanager
def for_inference(
    join: Callable[[list[Layer], int], Any] = lambda layers, inputs: None,
) -> Iterator[None]:
    """Compute blocks in the form that is fastest without gradients, within the context.

    Activations are in the form that TensorFlow fuses into products, and that LiteRT has operations
    for.

    Args:
        join: function of dense layers and the length of a row that returns their kernels side by
            side, `[inputs, outputs]`, as something that converts to a tensor; or None, and they are
            joined in each call. Default: None for all layers.
    """
    token = _JOIN.set(join)
    try:
        yield
    finally:
        _JOIN.reset(token)


def is_changed(layer: Layer) -> bool:
    """Whether something besides its class decides what a layer computes."""
    # A call wrapper gives a layer a class with another `call`.
    wrapped = type(layer).call is not original_class(layer).call
    return wrapped or has_own_call(layer)


def has_own_call(layer: Layer) -> bool:
    """Whether a layer's `call` is not that of its class, or its outputs are regularized."""
    own = vars(layer).get("call")
    # `ke.unpad` replaces the `call` of plain layers, for each block that has them, and keeps the
    # one before.
    while hasattr(own, "replaced_call"):
        own = own.replaced_call
    return own is not None or getattr(layer, "activity_regularizer", None) is not None


def run_block(
    block: Block,
    x: Tensor,
    rows: TokenRows,
    training: Any,
    first: bool,
    residual: bool = True,
    position_bias: Tensor | None = None,
) -> Tensor:
    """Return the hidden states after a block.

    Weights are read through their transforms. Layers inside the block that something was attached
    to, such as adapters, are called themselves, on one long example of all tokens.

    Args:
        block: the `Block`.
        x: rows `[tokens, width]`.
        rows: the `TokenRows` of `x`.
        training: as in `BlockInputs`.
        first: whether to compute the first token of each example only.
        residual: whether to add the hidden states before the block, in one with `norm_first`.
        position_bias: as in `BlockInputs`.

    Returns:
        Rows `[tokens, width]`, or `[batch, width]` for first tokens.
    """
    read = x
    if block.norm_first:
        x = _norm(block.attention_norm, x)
    context = _attention(block, x, rows, training, first, position_bias)
    if first:
        read = functions.take_rows(read, rows.first)
    x = _dropout(block.attention_dropout, _dense(block.attention.output, context), training)
    change = x
    x = _add(x, read)
    if not block.norm_first:
        x = _norm(block.attention_norm, x)
    read = x
    if block.norm_first:
        x = _norm(block.feed_forward_norm, x)
    part = block.feed_forward
    gate = None if part.gate is None else _dense(part.gate, x)
    x = _dense(part.intermediate, x, part.activation)
    x = x if gate is None else x * gate
    x = _dropout(part.dropout, x, training)
    x = _dropout(block.feed_forward_dropout, _dense(part.output, x), training)
    x = _add(x, read if residual else change)
    return x if block.norm_first else _norm(block.feed_forward_norm, x)


def project(block: Block, x: Tensor) -> list[Tensor]:
    """Return the queries, keys and values of a block's attention, rows `[tokens, heads · size]`.

    Args:
        block: the `Block`.
        x: rows `[tokens, width]` of its `BlockInputs.hidden`.
    """
    # What the attention layer of a block of plain layers receives is normalized already.
    if block.norm_first and not block.chain:
        x = _norm(block.attention_norm, x)
    part = block.attention
    if part.joint:
        return tf.split(_dense(part.query, x), 3, axis=1)
    return [_dense(layer, x) for layer in (part.query, part.key, part.value)]


def _attention(block, x, rows, training, first, position_bias):
    part = block.attention
    back = rows.back(part.heads)
    used = rows.used if rows.used is None else tf.cast(rows.used, _compute_dtype(part.key))
    products, query = _projected(part, x, rows, first)
    if rows.present is not None:
        # So that rows which stand for nothing get no gradient.
        products *= tf.cast(rows.present, products.dtype)
    parts = functions.split_heads(products, 2 if first else 3, part.heads, rows.place, back)
    if first:
        size = query.shape[-1] // part.heads
        parts = [tf.reshape(query, [-1, part.heads, 1, size]), *parts]
    query, key, value = parts
    bias = rows.attention_bias(part.causal)
    if position_bias is not None:
        position_bias = tf.cast(rows.position_bias(position_bias), query.dtype)
    if first:
        bias, position_bias = (b if b is None else b[:, :, :1] for b in (bias, position_bias))
    if bias is not None:
        bias = tf.cast(tf.maximum(bias, query.dtype.min), query.dtype)
    keep = None
    if part.dropout is not None:
        shape = tf.concat([tf.shape(query)[:3], tf.shape(key)[2:3]], 0)
        keep = _mask(part.dropout, shape, query.dtype, training)
    context = functions.attend(
        query, key, value, part.scale, bias, keep, part.masked, position_bias
    )
    if first:
        return tf.reshape(context, [-1, part.heads * context.shape[-1]])
    return functions.join_heads(context, rows.place, back, used)


def _projected(part, x, rows, first) -> tuple[Any, Any]:
    """The queries, keys and values side by side; for `first`, the queries of first tokens apart."""
    layers = [part.query] if part.joint else [part.query, part.key, part.value]
    if not first:
        return _joined(layers, x), None
    if part.joint:
        products: Any = _dense(part.query, x)
        width = products.shape[1] // 3
        return products[:, width:], functions.take_rows(products[:, :width], rows.first)
    return _joined(layers[1:], x), _dense(part.query, functions.take_rows(x, rows.first))


def _joined(layers, x):
    """The outputs of layers side by side, `[tokens, outputs]`, by one product if possible."""
    if any(map(is_changed, layers)) or len({layer.bias is None for layer in layers}) > 1:
        return tf.concat([_dense(layer, x) for layer in layers], 1)
    join = _JOIN.get()
    kernel = None if join is None else join(layers, x.shape[-1])
    if kernel is None:
        kernel = tf.concat([_kernel(layer, x) for layer in layers], 1)
    kernel = tf.cast(tf.convert_to_tensor(kernel), _compute_dtype(layers[0]))
    biases: list[Any] = [_bias(layer) for layer in layers if layer.bias is not None]
    bias = tf.concat(biases, 0) if biases else None
    return functions.dense(tf.cast(x, kernel.dtype), kernel, bias)


def _dense(layer, x, activation=None):
    """The outputs of a Dense or EinsumDense layer, its last axes joined."""
    if is_changed(layer):
        y = _call_on_rows(layer, x)
    else:
        kernel, bias = _kernel(layer, x), _bias(layer)
        y = functions.dense(tf.cast(x, kernel.dtype), kernel, bias)
        if activation_after(layer) is not None:
            y = _activated(activation_after(layer), y)
    return y if activation is None else _activated(activation, y)


def _kernel(layer, x):
    kernel = tf.cast(tf.convert_to_tensor(kernel_of(layer)), _compute_dtype(layer))
    return tf.reshape(kernel, [x.shape[-1], -1])


def _bias(layer):
    if layer.bias is None:
        return None
    bias = tf.cast(tf.convert_to_tensor(layer.bias), _compute_dtype(layer))
    return tf.reshape(bias, [-1])


def _activated(activation, x):
    if _JOIN.get() is not None:
        name = activation_of(activation)
        return (ACTIVATIONS.get(name, activation) if isinstance(name, str) else activation)(x)
    # A library's layer may cast its input.
    return functions.faster_activation(activation)(x)


def _norm(layer, x):
    if is_changed(layer):
        return _call_on_rows(layer, x)
    dtype = _compute_dtype(layer)
    inner = tf.float32 if dtype in _HALF else dtype
    gamma, beta, epsilon = norm_weights(layer)
    x, gamma = tf.cast(x, inner), tf.cast(tf.convert_to_tensor(gamma), inner)
    if is_rms_norm(layer):
        return tf.cast(functions.rms_norm(x, gamma, epsilon), dtype)
    beta = tf.cast(tf.convert_to_tensor(beta), inner)
    return tf.cast(functions.layer_norm(x, gamma, beta, epsilon), dtype)


def _dropout(layer, x, training):
    keep = None if layer is None else _mask(layer, tf.shape(x), x.dtype, training)
    return x if keep is None else x * keep


def _mask(layer, shape, dtype, training):
    """The mask of a Dropout layer, 0 or 1/(1-rate), or None if it drops nothing."""
    if not layer.rate or training is False:
        return None
    plain = has_library_call(layer, "Dropout.call") and not is_changed(layer)
    if training is True and plain and layer.noise_shape is None and layer.rate < 0.999:
        seed = flavors.of(layer).dropout_seed(layer)
        return functions.dropout_mask(shape, layer.rate, seed, dtype)
    ones = tf.ones(shape, dtype)
    return layer(ones) if training is None else layer(ones, training=training)


def _add(x, read):
    """The sum of a part's output and its input, which a norm may have left in float32."""
    if x.dtype == read.dtype:
        return x + read
    wider = x.dtype if read.dtype in _HALF else read.dtype
    return tf.cast(x, wider) + tf.cast(read, wider)


def _call_on_rows(layer, x):
    """Call a layer itself, on rows as one example of all tokens."""
    if _inputs_rank(layer) == 2:
        heads, size = layer.kernel.shape[:2]
        x = tf.reshape(x, [1, -1, heads, size])
    else:
        x = x[None]
    y = layer(x)
    return tf.reshape(y, [-1, math.prod(y.shape[2:])])


def _inputs_rank(layer):
    """Number of axes that a layer sums over."""
    equation = getattr(layer, "equation", None)
    if equation is None:
        return 1
    left, output = equation.replace(" ", "").split("->")
    _, kernel = left.split(",")
    return sum(letter not in output for letter in kernel)


def _compute_dtype(layer):
    return tf.as_dtype(layer.compute_dtype)
