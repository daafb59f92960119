"""Check of the CPU when an int8 SavedModel is loaded: it must add products of 8 bits exactly."""

import tensorflow as tf

from keras_efficient.exporters.inference_ops.loaded_floats import LoadedFloats
from keras_efficient.exporters.inference_ops.matmul import PROBE, largest_product

# Without quotation marks, which TensorFlow would print with backslashes.
_MESSAGE = (
    "This SavedModel was exported for CPUs that add products of 8 bits exactly (with VNNI or AMX). "
    f"Received: a CPU, or a limit by ONEDNN_MAX_CPU_ISA, where {PROBE:g} comes out as the number "
    "below. Export the model again with target avx2, or with quantize int8-weights."
)


def cpu_check() -> LoadedFloats:
    """Return a resource whose initializer fails where products of 8 bits saturate.

    `tf.saved_model.load`, sessions of TensorFlow 1 and TensorFlow Serving run it, so that a model
    is not loaded rather than wrong.
    """
    return LoadedFloats(tf.function(_checked_product), [], [], tf.float32)


def _checked_product():
    # Its outputs are equal.
    y = tf.reduce_min(largest_product())
    exact = tf.Assert(tf.abs(y - PROBE) < 0.1, [_MESSAGE, y])
    with tf.control_dependencies([exact]):
        return tf.identity(y)
