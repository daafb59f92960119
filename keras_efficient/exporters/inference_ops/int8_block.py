"""Transformer blocks in integers, with hidden states in units of the products that read them."""

from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient.architecture import _row_functions as functions
from keras_efficient.exporters.inference_ops.matmul import (
    FUSED,
    Int8MatMul,
    joined,
    quantize,
)
from keras_efficient.exporters.inference_ops.whole_block import WholeBlock


class Hidden:
    """Hidden states `rows · scale + offset`, whose scale and offset a reader may still change.

    A layer normalization ends in such a product and sum. The next product rounds `x / s + z`, and
    computing `rows · (scale / s) + (offset / s + z)` takes no further operation.

    Args:
        rows: float32 tensor [rows, width].
        scale: float32 array [width], or None if the rows are the hidden states themselves.
        offset: the same.
    """

    def __init__(self, rows, scale=None, offset=None):
        self.rows, self.scale, self.offset = rows, scale, offset

    def on(self, grid):
        """Return the hidden states in units of a `Grid`, not rounded."""
        if self.scale is None:
            return grid.of(self.rows)
        scale = np.asarray(self.scale / grid.scale, "float32")
        return self.rows * scale + np.asarray(self.offset / grid.scale + grid.zero, "float32")

    def plain(self):
        """Return the hidden states."""
        return self.rows if self.scale is None else self.rows * self.scale + self.offset


class Int8Block(WholeBlock):
    """Compute a described block by products of integers.

    The residual stream of a block that ends in a normalization is computed in units of the grid of
    the next product. Normalizing removes a scale and an offset anyway, so it changes nothing but
    the epsilon; and the residual sum is part of the product before.

    The arguments are those of `WholeBlock`.

    Raises:
        ValueError: as `WholeBlock`; or inputs have no ranges, or several.
    """

    kind = Int8MatMul

    def __init__(self, block, matrix):
        super().__init__(block, matrix)
        products = [*self.inputs, self.output, self.intermediate, self.last]
        if any(found.range is None or found.smooth is not None for found in products):
            raise ValueError("a layer has no product of integers with a range for all inputs")
        if any(found.range != self.inputs[0].range for found in self.inputs):
            raise ValueError("queries, keys and values round their inputs differently")
        self.before, self.after = map(_Norm, (block.attention_norm, block.feed_forward_norm))

    def run(self, block, x, rows, training, first):
        """Return the `Hidden` states after the block; the arguments are those of `run_block`."""
        hidden = x if isinstance(x, Hidden) else Hidden(tf.cast(x, tf.float32))
        grid, scale = self.inputs[0].grid, 1.0
        if self.block.norm_first:
            stream = hidden.plain()
            x = quantize(self.before(stream).on(grid))
        else:
            stream, scale = hidden.on(grid), grid.scale
            x = quantize(stream)
        context = self._attention(x, rows, first)
        if first:
            stream = tf.gather(stream, rows.first)
        output = self.product("output", lambda: self.output.folded(1 / scale))
        x = output(quantize(context), add=stream)
        grid = self.intermediate.grid
        if self.block.norm_first:
            stream, x = x, self.after(x).on(grid)
        else:
            stream = x = self.before(x, scale).on(grid)
            scale = grid.scale
        x = self._feed_forward(quantize(x), stream, 1 / scale)
        return Hidden(x) if self.block.norm_first else self.after(x, scale)

    def _attention(self, x, rows, first):
        """Return the context in units of the next product's grid."""
        part, target = self.block.attention, self.output.grid
        size = len(self.inputs[0].scales)
        # An example without tokens may have no context at all, which would lack an offset.
        zeroed = part.masked == "zeroed" and rows.bias is not None
        scales = [part.scale, 1.0, 1 / target.scale]
        shifts = [0.0, 0.0, 0.0 if zeroed else target.zero]
        used = slice(1 if first else 0, 3)

        def inputs():
            matrix: Any = joined(self.inputs[used])
            return matrix.folded(np.repeat(scales[used], size), np.repeat(shifts[used], size))

        product = self.product("inputs", inputs)
        back = rows.back(part.heads)
        number = 2 if first else 3
        parts = functions.split_heads(product(x), number, part.heads, rows.place, back)
        if first:
            query = self.product("query", lambda: self.inputs[0].folded(part.scale))
            query = query(tf.gather(x, rows.first))
            parts = [tf.reshape(query, [-1, part.heads, 1, size // part.heads]), *parts]
        bias = rows.attention_bias(part.causal)
        if bias is not None and first:
            bias = bias[:, :, :1]
        context = functions.attend(*parts, None, bias, None, part.masked)
        if zeroed:
            context += target.zero
        if first:
            return tf.reshape(context, [-1, size])
        return functions.join_heads(context, rows.place, back, None)

    def _feed_forward(self, x, stream, scale):
        """Return the stream plus `scale` times the feed-forward part of quint8 rows."""
        first, last = self.intermediate, self.last
        product = self.product("intermediate", first.folded)
        if isinstance(first.activation, str):
            x = product(x, FUSED[first.activation], grid=last.grid)
        else:
            activated = functions.faster_activation(first.activation)(product(x))
            x = quantize(last.grid.of(activated))
        return self.product("last", lambda: last.folded(scale))(x, add=stream)


class _Norm:
    """A normalization of rows, with constants for its weights."""

    def __init__(self, layer):
        self.epsilon = layer.epsilon
        self.gamma, self.beta = (
            np.asarray(tf.convert_to_tensor(v), "float32") for v in (layer.gamma, layer.beta)
        )

    def __call__(self, x, scale=1.0):
        """Return the `Hidden` states of `scale` times the rows."""
        unit, _ = functions.unit_rows(x, self.epsilon / scale**2)
        return Hidden(unit, self.gamma, self.beta)
