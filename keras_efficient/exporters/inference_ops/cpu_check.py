"""Check of the CPU when an int8 SavedModel is loaded: it must add products of 8 bits exactly."""

import tensorflow as tf

from keras_efficient.exporters.inference_ops.matmul import PROBE, largest_product

# Without quotation marks, which TensorFlow would print with backslashes.
_MESSAGE = (
    "This SavedModel was exported for CPUs that add products of 8 bits exactly (with VNNI or AMX). "
    f"Received: a CPU, or a limit by ONEDNN_MAX_CPU_ISA, where {PROBE:g} comes out as the number "
    "below. Export the model again with target avx2, or with quantize int8-weights."
)


class CpuCheck(tf.saved_model.experimental.TrackableResource):
    """A resource whose initializer fails where products of 8 bits saturate.

    `tf.saved_model.load`, sessions of TensorFlow 1 and TensorFlow Serving run the initializer, so
    that a model which would compute wrong numbers is not loaded.
    """

    def _create_resource(self):
        # Every resource has a handle; nothing reads this one.
        return tf.raw_ops.VarHandleOp(
            dtype=tf.float32, shape=[], shared_name="keras_efficient_cpu_check"
        )

    def _initialize(self):
        # The outputs of the product are equal.
        y = tf.reduce_min(largest_product())
        tf.Assert(tf.abs(y - PROBE) < 0.1, [_MESSAGE, y])
