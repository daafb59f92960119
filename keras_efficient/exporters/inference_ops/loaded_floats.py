"""Floats that a SavedModel makes of its integers once, when it is loaded."""

import uuid
from collections.abc import Callable
from typing import Any

import tensorflow as tf


class LoadedFloats(tf.saved_model.experimental.TrackableResource):
    """A tensor that is computed by the initializer of a SavedModel, and not stored in it.

    `tf.saved_model.load`, sessions of TensorFlow 1 and TensorFlow Serving run the initializer after
    they have restored the variables. The floats live as long as the session or, with
    `tf.saved_model.load`, the process: a signature may be used after its model is gone.

    Args:
        make: function without arguments that returns the tensor.
        variables: list of the `tf.Variable`s that it reads.
        shape: shape of the tensor.
        dtype: its dtype.
    """

    def __init__(self, make: Callable[[], Any], variables: list, shape: Any, dtype: Any):
        super().__init__()
        self.variables = variables
        self._make, self._shape, self._dtype = make, tf.TensorShape(shape), tf.as_dtype(dtype)
        # Resources are found by name where a model is loaded in a session.
        self._shared_name = f"keras_efficient_floats_{uuid.uuid4().hex}"
        with tf.init_scope():
            # In memory, too, the tensor is computed now.
            _ = self.resource_handle
            self._initialize()

    def _create_resource(self):
        return tf.raw_ops.VarHandleOp(
            dtype=self._dtype, shape=self._shape, shared_name=self._shared_name
        )

    def _initialize(self):
        tf.raw_ops.AssignVariableOp(resource=self.resource_handle, value=self._make())

    def value(self):
        """Return the tensor."""
        y = tf.raw_ops.ReadVariableOp(resource=self.resource_handle, dtype=self._dtype)
        y.set_shape(self._shape)
        return y
