"""Products of rows and a constant matrix, fused with bias and activation."""

import functools
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import op_def_library

from keras_efficient._errors import InputError
from keras_efficient.architecture._activations import ACTIVATIONS
from keras_efficient.exporters.inference_ops.packed_weights import written

#: Name of every int8 operation, which TensorFlow prints if it has no kernel for it.
_NODE = "int8_needs_x86_TensorFlow_with_oneDNN__else_export_int8_weights"
#: Operations that oneDNN fuses into a product, by name of the activation. Its exact GELU is faster
#: than its approximation by tanh. They differ by 5e-4 at most, less than a step of 8 bits.
FUSED = {
    "linear": (),
    "relu": ("Relu",),
    "gelu": ("GeluExact",),
    "gelu_approximate": ("GeluExact",),
}


@dataclass(frozen=True, eq=False)
class MatMul:
    """Compute y = activation(x · W + b) for rows x.

    Attributes:
        name: str, name of the weight.
        bias: float32 array [outputs].
        activation: a name in `ACTIVATIONS`, or a function.
    """

    name: str
    bias: np.ndarray
    activation: Any = "linear"

    def __call__(self, x):
        """Map a float tensor [rows, inputs] to float32 [rows, outputs]."""
        raise NotImplementedError

    @property
    def inputs(self) -> int:
        """Length of a row."""
        raise NotImplementedError

    def times(self, factor):
        """Return this product with all outputs multiplied by `factor`."""
        raise NotImplementedError

    def with_variable(self):
        """Return this product with a new variable for its matrix."""
        raise NotImplementedError

    def _activated(self, y):
        return ACTIVATIONS.get(self.activation, self.activation)(y)


@dataclass(frozen=True, eq=False)
class Int8MatMul(MatMul):
    """Quantize x to 8 bits and multiply integers with oneDNN.

    x ≈ s · (q - z) with q in 0 ... 255, and W ≈ t · i with a scale t per output. Hence
    y = s · t · (q · i) + (b - s · z · t · Σi).

    Attributes:
        integers: int8 array [inputs, outputs].
        scales: float32 array [outputs], t.
        range: (low, high) of x, which contains zero; None for the range of each batch of rows.
        smooth: float32 array [inputs] by which x is divided, or None.
        variable: `tf.Variable` or `LoadedTensor` of `integers`.
    """

    integers: Any = None
    scales: Any = None
    range: tuple | None = None
    smooth: np.ndarray | None = None
    variable: Any = None

    def __call__(self, x):
        x = tf.cast(x, tf.float32)
        if self.smooth is not None:
            x /= self.smooth
        known = isinstance(self.activation, str)
        fused = FUSED[self.activation] if known else ()
        if self.range is not None:
            y = self.folded()(quantize(self.grid.of(x)), fused)
        else:
            grid = _grid(*_range_of(x), tf.round)
            y = multiply(
                quantize(grid.of(x)),
                255 * grid.scale,
                self.variable,
                127 * self.scales,
                tf.cast(self._bias_on(grid), tf.float32),
                fused,
                constant=False,
            )
        return y if known else self.activation(y)

    @property
    def grid(self):
        """The `Grid` of x, if its range is known."""
        assert self.range is not None
        low, high = self.range
        return _grid(low, high, np.round)

    def _bias_on(self, grid):
        """The bias, and what the zero of a grid adds to each output."""
        sums = self.scales * self.integers.sum(0, dtype="int64").astype("float32")
        return self.bias - grid.scale * grid.zero * sums

    def folded(self, scale=1.0, shift=0.0):
        """Return the product of integers that gives `scale · (x · W + b) + shift`.

        Args:
            scale: float above 0, or array [outputs] of such.
            shift: float, or array [outputs].
        """
        grid = self.grid
        scale = np.broadcast_to(np.asarray(scale, "float32"), self.scales.shape)
        return FoldedProduct(
            self.variable,
            float(255 * grid.scale),
            (127 * self.scales * scale).astype("float32"),
            (scale * self._bias_on(grid) + shift).astype("float32"),
        )

    @property
    def inputs(self):
        return self.integers.shape[0]

    def times(self, factor):
        # The integers are unchanged, so their variable is shared.
        factor = np.float32(factor)
        return replace(self, scales=self.scales * factor, bias=self.bias * factor)

    def with_variable(self):
        return replace(self, variable=written(self.integers, self.name, "integers"))


@dataclass(frozen=True, eq=False)
class BFloat16MatMul(MatMul):
    """Multiply in bfloat16.

    Attributes:
        half: bfloat16 array [inputs, outputs].
        variable: `tf.Variable` or `LoadedTensor` of `half`.
    """

    half: Any = None
    variable: Any = None

    def __call__(self, x):
        return tf.cast(self.half_outputs(x), tf.float32)

    def half_outputs(self, x):
        """Map a float tensor [rows, inputs] to bfloat16 [rows, outputs]."""
        y = tf.matmul(tf.cast(x, tf.bfloat16), tf.convert_to_tensor(self.variable))
        return self._activated(tf.nn.bias_add(y, tf.cast(self.bias, tf.bfloat16)))

    @property
    def inputs(self):
        return self.half.shape[0]

    def times(self, factor):
        # This rounds once more, unless the factor is a power of two.
        half = (self.half.astype("float32") * factor).astype(self.half.dtype)
        return replace(self, half=half, bias=self.bias * np.float32(factor)).with_variable()

    def with_variable(self):
        return replace(self, variable=written(self.half, self.name, "half"))


def joined(matrices):
    """Concatenate the outputs of products of the same inputs, or return None if not possible."""
    first = matrices[0]
    arrays = {"bias": np.concatenate([m.bias for m in matrices])}
    if any(m.activation != "linear" for m in matrices):
        return None
    if isinstance(first, BFloat16MatMul):
        arrays["half"] = np.concatenate([m.half for m in matrices], 1)
    else:
        same = all(m.range == first.range for m in matrices)
        if not same or any(m.smooth is not None for m in matrices):
            return None
        arrays["integers"] = np.concatenate([m.integers for m in matrices], 1)
        arrays["scales"] = np.concatenate([m.scales for m in matrices])
    return replace(first, **arrays).with_variable()


def _range_of(x):
    low = tf.minimum(tf.reduce_min(x), 0.0)
    high = tf.maximum(tf.reduce_max(x), 0.0)
    # An input of zeros only would have an empty range.
    return low, tf.maximum(high, low + 1e-12)


class Grid(NamedTuple):
    """The numbers that 8 bits stand for: x = scale · (q - zero) for q = 0 ... 255.

    Attributes:
        scale: float above 0, or an array of one per column.
        zero: integral float.
    """

    scale: Any
    zero: Any

    def of(self, x):
        """Return x in units of the grid, `x / scale + zero`, not yet rounded."""
        return x * (1 / self.scale) + self.zero

    @property
    def limits(self):
        """The smallest and the largest number."""
        return float(-self.scale * self.zero), float(self.scale * (255 - self.zero))


def _grid(low, high, round_to_integer):
    """The `Grid` of a range that contains zero, with the rounding of `ActivationQuantizer`."""
    scale = (high - low) * np.float32(1 / 255)
    return Grid(scale, round_to_integer(-low / scale))


def quantize(x):
    """Return clip(round(x), 0, 255) as quint8, which is one operation."""
    # With this rounding, ties away from zero, TensorFlow does not rewrite it to a slower form.
    return tf.raw_ops.QuantizeV2(
        input=x,
        min_range=0.0,
        max_range=255.0,
        T=tf.quint8,
        mode="SCALED",
        round_mode="HALF_AWAY_FROM_ZERO",
    ).output


class FoldedProduct(NamedTuple):
    """A product of quint8 rows and an int8 matrix whose scales and offsets are constants.

    Attributes:
        variable: `tf.Variable` or `LoadedTensor` of the matrix, int8 [inputs, outputs].
        largest_input: what 255 in a row stands for.
        largest: float32 array [outputs], what 127 in the matrix stands for.
        bias: float32 array [outputs].
    """

    variable: Any
    largest_input: float
    largest: np.ndarray
    bias: np.ndarray

    def __call__(self, x, fused=(), add=None, grid=None):
        """Return float32 [rows, outputs], or with a `grid` quint8 on it.

        Args:
            x: quint8 [rows, inputs].
            fused: names of fused activations.
            add: float32 [rows, outputs] to add to the result. Default: None.
            grid: `Grid` of the result. Default: None, the result is not rounded.
        """
        return multiply(
            x, self.largest_input, self.variable, self.largest, self.bias, fused, add, grid
        )


def multiply(x, x_largest, matrix, largest, bias, fused, add=None, grid=None, constant=True):
    """Return the product of quint8 rows and an int8 matrix, by one operation of oneDNN.

    Its ranges are constants where they can be: oneDNN prepares the operation anew for others.
    """
    matrix = tf.bitcast(tf.convert_to_tensor(matrix), tf.qint8)
    # One constant for both limits, which is written once.
    largest = tf.constant(largest, tf.float32)
    devices, hosts = [x, matrix, bias], [tf.zeros([]), tf.cast(x_largest, tf.float32)]
    hosts += [-largest, largest]
    types, host_types, last, mode = [tf.float32], [], "Dequantize", "SCALED"
    if add is not None:
        devices, fused = [*devices, add], [*fused, "Add"]
    if grid is not None:
        hosts += [tf.constant(limit, tf.float32) for limit in grid.limits]
        types, host_types, last, mode = [tf.quint8], [tf.float32] * 2, "Requantize", "MIN_FIRST"
    result: Any = op_def_library.apply_op(
        "_QuantizedMatMul",
        name=_NODE,
        device_inputs=devices,
        host_inputs=hosts,
        Tdevice_outputs=types,
        Thost_outputs=host_types,
        T1=tf.quint8,
        T2=tf.qint8,
        Tbias=tf.float32,
        U=tf.float32,
        Tout=types[0],
        transpose_a=False,
        transpose_b=False,
        # The matrix is packed once, for all calls.
        is_weight_const=True,
        is_bias_const=constant,
        fused_ops=["BiasAdd", *fused, last],
        input_quant_mode="SCALED",
        output_quant_mode=mode,
        leakyrelu_alpha=0.2,
    )
    y = result[0][0]
    y.set_shape([x.shape[0], matrix.shape[1]])
    return y


#: What each output of `largest_product` is where products are added exactly.
PROBE = 8.0


def largest_product():
    """Return float32 [1, 8], a product of the largest integers of 8 bits, in a graph.

    Its outputs are `PROBE`, or about half of it where two products are added in 16 bits.
    """
    matrix = Int8MatMul(
        "probe",
        np.zeros(8, "float32"),
        integers=np.full((8, 8), 127, "int8"),
        scales=np.full(8, 1 / 127, "float32"),
        range=(0.0, 1.0),
    )
    return replace(matrix, variable=matrix.integers)(tf.ones([1, 8]))


@functools.cache
def saturates() -> bool:
    """Return whether this machine adds products of 8 bits in 16 bits, which 7 bits must fit in.

    CPUs with VNNI or AMX add them in 32 bits.

    Raises:
        InputError: TensorFlow lacks the operation.
    """
    try:
        y = tf.function(largest_product)().numpy()
    except Exception as error:
        last = str(error).strip().splitlines()[-1]
        raise InputError(
            "quantize='int8' multiplies integers with an operation that only TensorFlow for x86 "
            f"CPUs (with oneDNN) has. Received: a TensorFlow where it fails: {last}. Use "
            "quantize='int8-weights', which runs on any device."
        ) from error
    return bool(np.abs(y - PROBE).max() > 0.1)
