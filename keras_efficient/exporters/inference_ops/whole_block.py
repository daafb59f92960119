"""`WholeBlock`: a Transformer block that an export computes as a whole, by products of one kind."""

from collections.abc import Callable
from typing import Any, ClassVar

import tensorflow as tf

from keras_efficient.architecture._activations import activation_of
from keras_efficient.architecture._dense_layer import activation_after
from keras_efficient.architecture._norm_layer import is_rms_norm
from keras_efficient.architecture._run_block import is_changed
from keras_efficient.exporters.inference_ops.matmul import MatMul


class WholeBlock:
    """The products of a described block, for subclasses that compute it.

    Args:
        block: the `Block`.
        matrix: function of a dense layer and an activation, None for its own, that returns the
            layer's `MatMul`, or None.

    Attributes:
        kind: the class of all products.
        inputs: the products of queries, keys and values.
        output: that of the attention's output.
        intermediate: the first one of the feed-forward part.
        last: the second one.

    Raises:
        ValueError: the block must be computed layer by layer; the message says why.
    """

    kind: ClassVar[type[MatMul]]

    def __init__(self, block: Any, matrix: Callable):
        part, forward = block.attention, block.feed_forward
        norms = (block.attention_norm, block.feed_forward_norm)
        if block.chain and block.norm_first:
            raise ValueError("its layers are plain ones, and it ends in a sum")
        if part.joint:
            raise ValueError("one layer projects queries, keys and values")
        if forward.gate is not None or any(map(is_rms_norm, norms)):
            raise ValueError("its feed-forward part has a gate, or its norms subtract no mean")
        if any(map(is_changed, norms)):
            raise ValueError("something is attached to its normalization")
        self.block = block
        self.inputs = [matrix(layer, None) for layer in (part.query, part.key, part.value)]
        self.output, self.last = matrix(part.output, None), matrix(forward.output, None)
        self.intermediate = matrix(forward.intermediate, forward.activation)
        linear = [*self.inputs, self.output, self.last]
        if not all(isinstance(found, self.kind) for found in (*linear, self.intermediate)):
            raise ValueError("a layer is no product of rows and a matrix of this format")
        if any(found.activation != "linear" for found in linear):
            raise ValueError("a projection has an activation")
        own = activation_of(activation_after(forward.intermediate))
        if forward.activation is not None and own != "linear":
            raise ValueError("its feed-forward part has two activations")
        self._products: dict[Any, Any] = {}

    def product(self, name: Any, make: Callable) -> Any:
        """Return what `make` returns, made once, outside of the graph that is being traced."""
        if name not in self._products:
            with tf.init_scope():
                self._products[name] = make()
        return self._products[name]
