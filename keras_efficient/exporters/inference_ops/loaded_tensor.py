"""Tensors that a SavedModel makes of its variables once, when it is loaded."""

import uuid
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from keras_efficient.exporters.inference_ops.encoding import Encoding

#: Name of a resource that lives as long as its handle; see TensorFlow's `context.anonymous_name`.
_ANONYMOUS = "cd2c89b7-88b7-44c8-ad83-06c2a9158347"
_BY_HANDLE: Any = weakref.WeakValueDictionary()


class LoadedTensor(tf.saved_model.experimental.TrackableResource):
    """A tensor that is computed by the initializer of a SavedModel, and not stored in it.

    `tf.saved_model.load`, sessions of TensorFlow 1 and TensorFlow Serving run the initializer after
    they have restored the variables. The tensor lives as long as the session or, with
    `tf.saved_model.load`, the process: a signature may be used after its model is gone.

    Args:
        make: function without arguments that returns the tensor.
        encodings: sequence of the `Encoding`s that it reads.
        shape: shape of the tensor.
        dtype: its dtype.
    """

    def __init__(
        self, make: Callable[[], Any], encodings: Sequence[Encoding], shape: Any, dtype: Any
    ):
        super().__init__()
        self._encodings = tuple(encodings)
        self._make, self._shape, self._dtype = make, tf.TensorShape(shape), tf.as_dtype(dtype)
        # Resources are found by name where a model is loaded in a session.
        self._shared_name = f"keras_efficient_{uuid.uuid4().hex}"
        with tf.init_scope():
            # In memory, too, the tensor is computed now.
            _BY_HANDLE[id(self.resource_handle)] = self
            self._initialize()

    @property
    def encodings(self) -> tuple[Encoding, ...]:
        """The `Encoding`s that the tensor is made of."""
        return self._encodings

    def _create_resource(self):
        # In memory the tensor is deleted with the last function that reads it.
        name = _ANONYMOUS if tf.executing_eagerly() else self._shared_name
        return tf.raw_ops.VarHandleOp(dtype=self._dtype, shape=self._shape, shared_name=name)

    def _initialize(self):
        tf.raw_ops.AssignVariableOp(resource=self.resource_handle, value=self._make())

    def value(self):
        """Return the tensor."""
        y = tf.raw_ops.ReadVariableOp(resource=self.resource_handle, dtype=self._dtype)
        y.set_shape(self._shape)
        return y


def loaded_tensors(function: Any) -> list[LoadedTensor]:
    """Return the `LoadedTensor`s that a concrete function reads."""
    handles = [outer for outer, _ in function.graph.captures if outer.dtype == tf.resource]
    return [_BY_HANDLE[id(handle)] for handle in handles if id(handle) in _BY_HANDLE]


def encodings_of(tensors: Sequence[LoadedTensor]) -> list[Encoding]:
    """Return the `Encoding`s that `LoadedTensor`s are made of, each once."""
    return list({id(x): x for tensor in tensors for x in tensor.encodings}.values())


def _to_tensor(loaded, dtype=None, name=None, as_ref=False):
    return loaded.value() if dtype is None else tf.cast(loaded.value(), dtype)


tf.register_tensor_conversion_function(LoadedTensor, _to_tensor)
