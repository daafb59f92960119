"""Transformer blocks whose products and attention are computed in bfloat16, on rows of tokens."""

import tensorflow as tf

from keras_efficient.architecture import _row_functions as functions
from keras_efficient.exporters.inference_ops.matmul import BFloat16MatMul, joined
from keras_efficient.exporters.inference_ops.whole_block import WholeBlock


class BFloat16Block(WholeBlock):
    """Compute a described block with its products and attention in bfloat16.

    The residual stream and normalizations are computed in float32. The arguments are those of
    `WholeBlock`.
    """

    kind = BFloat16MatMul

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
        used = self.inputs[1 if first else 0 :]
        product = self.product(("inputs", first), lambda: joined(used))
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


def _norm(layer, x):
    gamma, beta = (tf.cast(tf.convert_to_tensor(v), tf.float32) for v in (layer.gamma, layer.beta))
    return functions.layer_norm(x, gamma, beta, layer.epsilon)
