"""Layer normalization as one operation of oneDNN."""

import functools

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import op_def_library

from keras_efficient.exporters.inference_ops.size_dispatch import by_size
from keras_efficient.parametrize._parametrized_layer import CallWrapper


@functools.cache
def _implementations(epsilon):
    """Return the implementations for small and for large inputs."""

    def composed(x, scale, offset):
        centred = x - tf.reduce_mean(x, -1, keepdims=True)
        variance = tf.reduce_mean(tf.square(centred), -1, keepdims=True)
        return centred * tf.math.rsqrt(variance + epsilon) * scale + offset

    def fused(x, scale, offset):
        return op_def_library.apply_op(
            "_MklLayerNorm", name="norm", x=x, scale=scale, offset=offset, epsilon=epsilon
        )

    return composed, fused


class LayerNormOp(CallWrapper):
    """Compute a LayerNormalization layer over the last axis."""

    name = "inference layer norm"

    def wrap_call(self, call, inputs, *args, **kwargs):
        if len(inputs.shape) != 3:
            return call(inputs, *args, **kwargs)
        layer = self.layer
        size = inputs.shape[-1]
        scale = tf.ones([size]) if layer.gamma is None else tf.cast(layer.gamma, tf.float32)
        offset = tf.zeros([size]) if layer.beta is None else tf.cast(layer.beta, tf.float32)
        x = tf.cast(inputs, tf.float32)
        y = by_size(*_implementations(layer.epsilon), x, scale, offset)
        y.set_shape(inputs.shape)
        return tf.cast(y, inputs.dtype)


def is_last_axis(layer):
    """Return whether a layer is a plain LayerNormalization over the last axis."""
    if type(layer).__name__ != "LayerNormalization":
        return False
    axis = np.atleast_1d(layer.axis)
    gamma = layer.gamma if layer.gamma is not None else layer.beta
    return (
        len(axis) == 1
        and (axis[0] == -1 or axis[0] == 2)
        and not getattr(layer, "rms_scaling", False)
        and gamma is not None
    )
