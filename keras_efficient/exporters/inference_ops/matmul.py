"""Products of rows and a constant matrix, fused with bias and activation."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import op_def_library

from keras_efficient._errors import InputError
from keras_efficient.architecture._activations import ACTIVATIONS
from keras_efficient.exporters.inference_ops.packed_weights import written
from keras_efficient.exporters.inference_ops.size_dispatch import by_size

#: Name of every int8 operation, which TensorFlow prints if it has no kernel for it.
_NODE = "int8_needs_x86_TensorFlow_with_oneDNN__else_export_int8_weights"
#: Operations that oneDNN fuses into a product, by name of the activation.
_FUSED = {
    "linear": (),
    "relu": ("Relu",),
    "gelu": ("GeluExact",),
    "gelu_approximate": ("GeluApproximate",),
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
        variable: `tf.Variable` of `integers`.
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
        sums = self.scales * self.integers.sum(0, dtype="int64").astype("float32")
        low, high = _range_of(x) if self.range is None else self.range
        # The same rounding as in `ActivationQuantizer`.
        scale = (high - low) * np.float32(1 / 255)
        zero = (tf.round if self.range is None else np.round)(-low / scale)
        bias = self.bias - scale * zero * sums
        known = isinstance(self.activation, str)
        largest = (127 * self.scales).astype("float32")
        y = _multiply(
            _quantize(x, scale, zero),
            255 * scale,
            tf.bitcast(tf.convert_to_tensor(self.variable), tf.qint8),
            largest,
            tf.cast(bias, tf.float32),
            _FUSED[self.activation] if known else (),
            constant=self.range is not None,
        )
        return y if known else self.activation(y)

    @property
    def inputs(self):
        return self.integers.shape[0]

    def times(self, factor):
        # The integers are unchanged, so their variable is shared.
        factor = np.float32(factor)
        return replace(self, scales=self.scales * factor, bias=self.bias * factor)

    def with_variable(self):
        return replace(self, variable=written(self.integers, f"{self.name}.integers"))


@dataclass(frozen=True, eq=False)
class BFloat16MatMul(MatMul):
    """Multiply in bfloat16.

    Attributes:
        half: bfloat16 array [inputs, outputs].
        variable: `tf.Variable` of `half`.
    """

    half: Any = None
    variable: Any = None

    def __call__(self, x):
        y = tf.matmul(tf.cast(x, tf.bfloat16), tf.convert_to_tensor(self.variable))
        y = tf.nn.bias_add(y, tf.cast(self.bias, tf.bfloat16))
        return tf.cast(self._activated(y), tf.float32)

    @property
    def inputs(self):
        return self.half.shape[0]

    def times(self, factor):
        # This rounds once more, unless the factor is a power of two.
        half = (self.half.astype("float32") * factor).astype(self.half.dtype)
        return replace(self, half=half, bias=self.bias * np.float32(factor)).with_variable()

    def with_variable(self):
        return replace(self, variable=written(self.half, f"{self.name}.half"))


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


def _quantize(x, scale, zero):
    """Return clip(round(x / scale) + zero, 0, 255) as quint8."""
    y = by_size(_quantize_composed, _quantize_fused, x, scale, zero)
    y.set_shape(x.shape)
    return tf.bitcast(y, tf.quint8)


def _quantize_composed(x, scale, zero):
    y = tf.round(x * (1 / scale)) + zero
    # One operation, where `tf.clip_by_value` is two.
    return tf.cast(tf.raw_ops.ClipByValue(t=y, clip_value_min=0.0, clip_value_max=255.0), tf.uint8)


def _quantize_fused(x, scale, zero):
    low, high = -scale * zero, scale * (255 - zero)
    quantized = tf.raw_ops.QuantizeV2(
        input=x, min_range=low, max_range=high, T=tf.quint8, mode="MIN_FIRST"
    )
    return tf.bitcast(quantized.output, tf.uint8)


def _multiply(x, x_largest, matrix, largest, bias, fused, constant):
    # One constant for both limits, which is written once.
    largest = tf.constant(largest)
    result: Any = op_def_library.apply_op(
        "_QuantizedMatMul",
        name=_NODE,
        device_inputs=[x, matrix, bias],
        host_inputs=[
            tf.zeros([]),
            tf.cast(x_largest, tf.float32),
            -largest,
            largest,
        ],
        Tdevice_outputs=[tf.float32],
        Thost_outputs=[],
        T1=tf.quint8,
        T2=tf.qint8,
        Tbias=tf.float32,
        U=tf.float32,
        Tout=tf.float32,
        transpose_a=False,
        transpose_b=False,
        # The matrix is packed once, for all calls.
        is_weight_const=True,
        is_bias_const=constant,
        fused_ops=["BiasAdd", *fused, "Dequantize"],
        input_quant_mode="SCALED",
        output_quant_mode="SCALED",
        leakyrelu_alpha=0.2,
    )
    (y,), _ = result
    y.set_shape([x.shape[0], matrix.shape[1]])
    return y


def check_machine():
    """Refuse a machine without exact int8 products.

    Raises:
        InputError: TensorFlow lacks the operation, or it saturates.
    """
    matrix = Int8MatMul(
        "probe",
        np.zeros(8, "float32"),
        # The largest integers: CPUs without VNNI saturate their intermediate sums.
        integers=np.full((8, 8), 127, "int8"),
        scales=np.full(8, 1 / 127, "float32"),
        range=(0.0, 1.0),
    )
    matrix = matrix.with_variable()
    try:
        y = tf.function(lambda: matrix(tf.ones([1, 8])))().numpy()
    except Exception as error:
        last = str(error).strip().splitlines()[-1]
        raise InputError(
            "quantize='int8' multiplies integers with an operation that only TensorFlow for x86 "
            f"CPUs (with oneDNN) has. Received: a TensorFlow where it fails: {last}. Use "
            "quantize='int8-weights', which runs on any device."
        ) from error
    if np.abs(y - 8).max() > 0.1:
        raise InputError(
            "quantize='int8' needs a CPU whose int8 products are exact. Received: one on which "
            f"8 came out as {y.flat[0]:.3g}. Use quantize='int8-weights', which runs on any device."
        )
