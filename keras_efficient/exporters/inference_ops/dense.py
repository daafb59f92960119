"""Dense and EinsumDense layers as one product of rows and a constant matrix."""

from dataclasses import replace

import numpy as np
import tensorflow as tf

from keras_efficient.architecture._activations import activation_of
from keras_efficient.architecture._layer_class import has_library_call
from keras_efficient.architecture._weights import KERNEL
from keras_efficient.compression._activation_quantization import ActivationQuantizer, input_axes
from keras_efficient.exporters.inference_ops.matmul import (
    BFloat16MatMul,
    Int8MatMul,
)
from keras_efficient.exporters.inference_ops.packed_weights import Int8Weight
from keras_efficient.parametrize._parametrized_layer import CallWrapper, parametrized_layer


class DenseOp(CallWrapper):
    """Compute a layer as a `MatMul` over the last axes of its inputs.

    Args:
        matrix: the `MatMul`.
        inputs: int, number of axes of the input that are summed over.
        outputs: tuple, shape of an output without leading axes.
    """

    name = "inference dense"

    def __init__(self, matrix, inputs, outputs):
        self.inputs, self.outputs = inputs, outputs
        # An unknown activation may depend on all axes, so it is applied to the restored shape.
        known = isinstance(matrix.activation, str)
        self.after = None if known else matrix.activation
        self.matrix = matrix if known else replace(matrix, activation="linear")

    def wrap_call(self, call, inputs, *args, **kwargs):
        return tf.cast(self.compute(inputs), self.layer.compute_dtype)

    def compute(self, x):
        rows, restored = flat(x, self.matrix.inputs, self.inputs)
        y = restored(self.matrix(rows), self.outputs)
        return y if self.after is None else self.after(y)


def flat(x, size, axes=1):
    """Return `x` as rows of `size` numbers, and a function that restores the leading axes."""
    rank = len(x.shape) - axes
    rows = x if len(x.shape) == 2 and axes == 1 else tf.reshape(x, [-1, size])

    def restored(y, shape):
        if rank == 1 and len(shape) == 1:
            return y
        leading = x.shape[:rank]
        if leading[1:].is_fully_defined():
            first = -1 if leading[0] is None else leading[0]
            return tf.reshape(y, [first, *leading[1:], *shape])
        y = tf.reshape(y, tf.concat([tf.shape(x)[:rank], shape], 0))
        y.set_shape([*leading, *shape])
        return y

    return rows, restored


def matrix_of(layer, weight, pack, activation=None):
    """Return the `MatMul` of a layer, or None if it is not a product of rows and a matrix.

    Args:
        layer: one of the weight's owners.
        weight: `Weight`, the layer's kernel.
        pack: the `PackedWeight` of the weight.
        activation: function applied to the result. Default: None, the layer's own.
    """
    if weight.kind != KERNEL or not is_product(layer, weight):
        return None
    if isinstance(pack, Int8Weight) and len(pack.scales) > 1:
        return None
    outputs = [weight.shape[axis] for axis in weight.outputs]
    bias = getattr(layer, "bias", None)
    bias = np.zeros(outputs) if bias is None else np.asarray(tf.convert_to_tensor(bias))
    if np.ndim(bias) > len(outputs):
        # The bias varies along other axes, too.
        return None
    bias = np.broadcast_to(bias, outputs).reshape(-1).astype("float32")
    if activation is None:
        activation = getattr(layer, "activation", None)
    common = {"name": weight.path, "bias": bias, "activation": activation_of(activation)}
    if not isinstance(pack, Int8Weight):
        half = np.asarray(weight.matrix(tf.constant(pack.half)))
        # If the kernel already is a matrix, all layers that read it share one variable.
        plain = half.shape == pack.half.shape and weight.inputs == (0,)
        matrix = BFloat16MatMul(**common, half=half, variable=pack.table)
        return matrix if plain else matrix.with_variable()
    range_, smooth = _range(layer)
    if (smooth is None) != (pack.smooth is None):
        return None
    return Int8MatMul(
        **common,
        integers=pack.matrix,
        scales=np.ascontiguousarray(pack.scales[0]),
        range=range_,
        smooth=smooth,
        variable=pack.integers,
    )


def is_product(layer, weight):
    """Return whether a layer sums over the last axes of its input, in the kernel's order."""
    if not has_library_call(layer, "Dense.call", "EinsumDense.call"):
        return False
    equation = getattr(layer, "equation", None)
    if isinstance(equation, str):
        left, output = equation.replace(" ", "").split("->")
        x, kernel = left.split(",")
        inner = "".join(kernel[axis] for axis in weight.inputs)
        outer = "".join(kernel[axis] for axis in weight.outputs)
        return x.endswith(inner) and output == x.removesuffix(inner) + outer
    return input_axes(layer, weight, len(weight.shape)) is not None


def _range(layer):
    """Return the range in which a layer's inputs are quantized, and their SmoothQuant divisors."""
    view = parametrized_layer(layer)
    parts = [p for p in (view.call_wrappers if view else ()) if isinstance(p, ActivationQuantizer)]
    if not parts:
        return None, None
    low, high, sure = (float(x) for x in parts[0].range.numpy())
    smooth = parts[0].smooth
    known = sure > 0 and high > low and parts[0].bits == 8
    return (low, high) if known else None, None if smooth is None else smooth.numpy()
