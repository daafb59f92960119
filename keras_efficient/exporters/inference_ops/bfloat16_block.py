"""Transformer blocks whose products and attention are computed in bfloat16, on rows of tokens."""

from typing import Any

import tensorflow as tf

from keras_efficient.architecture import _row_functions as functions
from keras_efficient.architecture._activations import activation_of
from keras_efficient.architecture._run_block import is_changed
from keras_efficient.exporters.inference_ops.matmul import BFloat16MatMul, joined


class BFloat16Block:
    """Compute a described block with its products and attention in bfloat16.

    The residual stream and normalizations are computed in float32.

    Args:
        block: the `Block`.
        matrix: function of a dense layer and an activation, None for its own, that returns the
            layer's `MatMul`, or None.

    Raises:
        ValueError: the block must be computed layer by layer; the message says why.
    """

    def __init__(self, block, matrix):
        if block.chain and block.norm_first:
            raise ValueError("its layers are plain ones, and it ends in a sum")
        self.block = block
        part, forward = block.attention, block.feed_forward
        self.inputs = [matrix(layer, None) for layer in (part.query, part.key, part.value)]
        self.output, self.last = matrix(part.output, None), matrix(forward.output, None)
        self.intermediate = matrix(forward.intermediate, forward.activation)
        linear = [*self.inputs, self.output, self.last]
        if not all(isinstance(found, BFloat16MatMul) for found in (*linear, self.intermediate)):
            raise ValueError("a layer is no product of rows and a matrix")
        if any(found.activation != "linear" for found in linear):
            raise ValueError("a projection has an activation")
        own = activation_of(forward.intermediate.activation)
        if forward.activation is not None and own != "linear":
            raise ValueError("its feed-forward part has two activations")
        if any(map(is_changed, (block.attention_norm, block.feed_forward_norm))):
            raise ValueError("something is attached to its normalization")
        self._products: dict[bool, Any] = {}

    def run(self, block, x, rows, training, first):
        """Return the hidden states after the block; the arguments are those of `run_block`."""
        stream = x = tf.cast(x, tf.float32)
        if block.norm_first:
            x = _norm(block.attention_norm, x)
        context = self._attention(x, rows, first)
        if first:
            stream = tf.gather(stream, rows.first)
        x = stream + self.output(context)
        if not block.norm_first:
            x = _norm(block.attention_norm, x)
        stream = x
        if block.norm_first:
            x = _norm(block.feed_forward_norm, x)
        x = stream + self.last(self.intermediate.half_outputs(x))
        return x if block.norm_first else _norm(block.feed_forward_norm, x)

    def _attention(self, x, rows, first):
        part = self.block.attention
        # Keys and values side by side, and queries too unless they are those of first tokens.
        product = self._joined(first)
        back = rows.back(part.heads)
        number = 2 if first else 3
        parts = functions.split_heads(product.half_outputs(x), number, part.heads, rows.place, back)
        if first:
            query = self.inputs[0].half_outputs(tf.gather(x, rows.first))
            query = tf.reshape(query, [-1, part.heads, 1, query.shape[-1] // part.heads])
            parts = [query, *parts]
        bias = rows.attention_bias(part.causal)
        if bias is not None:
            bias = bias[:, :, :1] if first else bias
            bias = tf.cast(tf.maximum(bias, tf.bfloat16.min), tf.bfloat16)
        context = functions.attend(*parts, part.scale, bias, None, part.masked)
        if first:
            return tf.reshape(context, [-1, part.heads * context.shape[-1]])
        return functions.join_heads(context, rows.place, back, None)

    def _joined(self, first):
        """The product of several projections, made once, outside of the graph being traced."""
        if first not in self._products:
            with tf.init_scope():
                self._products[first] = joined(self.inputs[1 if first else 0 :])
        return self._products[first]


def _norm(layer, x):
    gamma, beta = (tf.cast(tf.convert_to_tensor(v), tf.float32) for v in (layer.gamma, layer.beta))
    return functions.layer_norm(x, gamma, beta, layer.epsilon)
