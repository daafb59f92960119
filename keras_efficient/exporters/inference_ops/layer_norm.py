"""Layer normalization by few operations."""

import numpy as np
import tensorflow as tf

from keras_efficient.architecture._row_functions import unit_rows
from keras_efficient.parametrize._parametrized_layer import CallWrapper


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
        unit, _ = unit_rows(x, layer.epsilon)
        return tf.cast(unit * scale + offset, inputs.dtype)


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
