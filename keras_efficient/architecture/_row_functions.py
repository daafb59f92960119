"""Functions of rows `[tokens, width]`, with gradients that need few operations.

The rules of TensorFlow would give the same gradients by more and slower operations.
"""

import functools
import math
from typing import Any

import tensorflow as tf

from keras_efficient.architecture._activations import activation_of
from keras_efficient.flavor import Tensor


def dense(x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """Return `x · kernel + bias` for rows `[rows, inputs]` and a kernel `[inputs, outputs]`."""
    y = tf.matmul(x, kernel)
    return y if bias is None else tf.nn.bias_add(y, bias)


def unit_rows(x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return `x` with mean 0 and variance 1 along the last axis, and what it was multiplied by."""
    centred = x - tf.reduce_mean(x, -1, keepdims=True)
    factor = tf.math.rsqrt(tf.reduce_mean(tf.square(centred), -1, keepdims=True) + epsilon)
    return centred * factor, factor


def layer_norm(x: Tensor, gamma: Tensor, beta: Tensor, epsilon: float) -> Tensor:
    """Normalize rows to mean 0 and variance 1, times `gamma`, plus `beta`."""

    @tf.custom_gradient
    def normalized(x, gamma, beta):
        unit, factor = unit_rows(x, epsilon)

        def gradient(dy):
            d = dy * gamma
            along = tf.reduce_mean(d * unit, -1, keepdims=True)
            dx = factor * (d - tf.reduce_mean(d, -1, keepdims=True) - unit * along)
            return dx, tf.reduce_sum(dy * unit, 0), tf.reduce_sum(dy, 0)

        return unit * gamma + beta, gradient

    return normalized(x, gamma, beta)


def rms_norm(x: Tensor, gamma: Tensor, epsilon: float) -> Tensor:
    """Divide rows by their root mean square, times `gamma`."""

    @tf.custom_gradient
    def normalized(x, gamma):
        factor = tf.math.rsqrt(tf.reduce_mean(tf.square(x), -1, keepdims=True) + epsilon)
        unit = x * factor

        def gradient(dy):
            d = dy * gamma
            dx = factor * (d - unit * tf.reduce_mean(d * unit, -1, keepdims=True))
            return dx, tf.reduce_sum(dy * unit, 0)

        return unit * gamma, gradient

    return normalized(x, gamma)


def gelu(x: Tensor) -> Tensor:
    """Return `x · Φ(x)`, the exact GELU."""

    @tf.custom_gradient
    def activated(x):
        below = 0.5 * tf.math.erfc(x * -math.sqrt(0.5))

        def gradient(dy):
            density = tf.exp(-0.5 * tf.square(x)) * (1 / math.sqrt(2 * math.pi))
            return dy * (below + x * density)

        return x * below, gradient

    return activated(x)


def gelu_tanh(x: Tensor) -> Tensor:
    """Return the approximation of the GELU by the hyperbolic tangent."""
    slope, cubic = math.sqrt(2 / math.pi), 0.044715

    @tf.custom_gradient
    def activated(x):
        square = tf.square(x)
        half = 0.5 + 0.5 * tf.tanh(x * (slope + slope * cubic * square))

        def gradient(dy):
            inner = slope + 3 * slope * cubic * square
            return dy * (half + 2 * x * half * (1 - half) * inner)

        return x * half, gradient

    return activated(x)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None,
    bias: Tensor | None,
    keep: Tensor | None,
    masked: str = "added",
    position_bias: Tensor | None = None,
) -> Tensor:
    """Return the attention's context `[batch, heads, queries, size]`.

    Args:
        query: `[batch, heads, queries, size]`.
        key: `[batch, heads, keys, size]`.
        value: like `key`.
        scale: factor of the scores; None for 1.
        bias: `[batch, 1, 1, keys]`, added to the scores: 0 for real tokens, a large negative
            number for others; or None.
        keep: dropout mask of the probabilities, 0 or 1/(1-rate), in the shape of the scores, or
            None.
        masked: as in `SelfAttention`.
        position_bias: `[batch, heads, queries, keys]`, added to the scores, too, and with a
            gradient; or None.
    """
    learned = () if position_bias is None else (position_bias,)
    real = None
    if bias is not None and masked != "added":
        real = tf.cast(bias > -1, query.dtype)

    @tf.custom_gradient
    def attended(query, key, value, *learned):
        scaled = query if scale is None else query * tf.cast(scale, query.dtype)
        scores = tf.matmul(scaled, key, transpose_b=True)
        scores = scores + learned[0] if learned else scores
        if real is not None:
            scores *= real
        probabilities = tf.nn.softmax(scores if bias is None else scores + bias)
        if real is not None and masked == "zeroed":
            probabilities *= real
        kept = probabilities if keep is None else probabilities * keep
        context = tf.matmul(kept, value)

        def gradient(d_context):
            d_value = tf.matmul(kept, d_context, transpose_a=True)
            d_kept = tf.matmul(d_context, value, transpose_b=True)
            total = tf.reduce_sum(d_context * context, -1, keepdims=True)
            d_scores = kept * d_kept - probabilities * total
            if real is not None:
                d_scores *= real
            d_query = tf.matmul(d_scores, key)
            d_query = d_query if scale is None else d_query * tf.cast(scale, query.dtype)
            d_key = tf.matmul(d_scores, scaled, transpose_a=True)
            return d_query, d_key, d_value, *([d_scores] if learned else [])

        return context, gradient

    return attended(query, key, value, *learned)


def dropout_mask(shape: Any, rate: float, seed: Tensor, dtype: Any) -> Tensor:
    """Return 0 with probability `rate` and else 1/(1-rate), from 16 random bits per element.

    The libraries draw 32 bits, make a float of them and select. Here the rate is rounded to a
    multiple of 2⁻¹⁶.
    """
    number = tf.reduce_prod(shape)
    key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=tf.cast(seed, tf.int64))
    words: Any = tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=[(number + 3) // 4],
        key=key,
        counter=counter,
        alg=1,  # Philox
        dtype=tf.uint64,
    )
    bits: Any = tf.reshape(tf.bitcast(words, tf.int16), [-1])[:number]
    dropped = round(rate * 2**16)
    kept = tf.cast(bits >= tf.constant(dropped - 2**15, tf.int16), dtype)
    return tf.reshape(kept, shape) * tf.cast(1 / (1 - dropped / 2**16), dtype)


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """Return the rows of `x` at distinct indices; the gradient is a scatter."""

    @tf.custom_gradient
    def taken(x):
        def gradient(dy):
            # The shape is taken here, because XLA must know it when it compiles a gradient.
            return tf.scatter_nd(index[:, None], dy, tf.shape(x))

        return tf.gather(x, index), gradient

    return taken(x)


def put_rows(rows: Tensor, index: Tensor, size: Tensor) -> Tensor:
    """Return `size` rows that are zero except for `rows` at distinct indices."""

    @tf.custom_gradient
    def put(rows):
        shape = tf.stack([size, tf.shape(rows)[1]])
        return tf.scatter_nd(index[:, None], rows, shape), lambda dy: tf.gather(dy, index)

    return put(rows)


def split_heads(rows: Tensor, parts: int, heads: int, place: Tensor, back: Tensor) -> Any:
    """Divide the products of queries, keys and values into heads, each example padded.

    Args:
        rows: `[tokens, parts · heads · size]`.
        parts: number of tensors to return.
        heads: number of heads.
        place: int `[batch, places]`, the row at each place of the padded layout, which may be any
            row where there is no token. The gradient must be zero there.
        back: int `[tokens · heads]`, the index in `[batch · heads · places]` of each head of each
            row.

    Returns:
        List of `parts` tensors `[batch, heads, places, size]`.
    """
    size = rows.shape[1] // (parts * heads)
    head = tf.range(heads)[:, None]

    @tf.custom_gradient
    def divided(rows):
        pieces = tf.reshape(rows, [-1, size])
        outputs = [
            tf.gather(pieces, tf.expand_dims(place, 1) * (parts * heads) + head + heads * part)
            for part in range(parts)
        ]

        def gradient(*upstream):
            found = [
                tf.reshape(tf.gather(tf.reshape(d, [-1, size]), back), [-1, heads * size])
                for d in upstream
            ]
            return found[0] if parts == 1 else tf.concat(found, 1)

        return outputs, gradient

    return divided(rows)


def join_heads(context: Tensor, place: Tensor, back: Tensor, used: Tensor | None) -> Tensor:
    """Return the rows `[tokens, heads · size]` of a context `[batch, heads, places, size]`.

    Args:
        context: the padded layout.
        place: as in `split_heads`.
        back: as in `split_heads`.
        used: `[batch, 1, places, 1]`, 1 where there is a token and 0 elsewhere, or None if there
            is one everywhere.
    """
    heads, size = context.shape[1], context.shape[3]

    @tf.custom_gradient
    def joined(context):
        def gradient(dy):
            head = tf.range(heads)[:, None]
            pieces = tf.gather(tf.reshape(dy, [-1, size]), tf.expand_dims(place, 1) * heads + head)
            return tf.reshape(pieces if used is None else pieces * used, tf.shape(context))

        rows = tf.gather(tf.reshape(context, [-1, size]), back)
        return tf.reshape(rows, [-1, heads * size]), gradient

    return joined(context)


#: By name of the activation in `ACTIVATIONS`.
_FASTER = {"gelu": gelu, "gelu_approximate": gelu_tanh}


@functools.lru_cache(maxsize=256)
def faster_activation(function: Any) -> Any:
    """Return an equal function from this file, or else the activation itself."""
    name = activation_of(function)
    return _FASTER.get(name, function) if isinstance(name, str) else function
