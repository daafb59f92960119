"""Tensors that a SavedModel makes of its variables once, when it is loaded."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.ops.resource_variable_ops import ResourceVariable

from keras_efficient.exporters.inference_ops.encoding import Encoding


class LoadedTensor(ResourceVariable):
    """A variable whose value a SavedModel does not store, but makes when it is loaded.

    A `LoadedTensorInitializer` in the same module makes it. TensorFlow recreates a variable in far
    less time than another resource, which takes three functions.

    Args:
        make: function without arguments that returns the value.
        encodings: sequence of the `Encoding`s that it reads.
    """

    def __init__(self, make: Callable[[], Any], encodings: Sequence[Encoding]):
        with tf.init_scope():
            # In memory, too, the value is computed now.
            super().__init__(initial_value=make(), trainable=False, name="loaded")
        self.make, self.encodings = make, tuple(encodings)

    # Checkpoints do not hold it, neither that which is written nor the one that sessions restore.

    def _serialize_to_tensors(self):
        return {}

    def _export_to_saved_model_graph(self, object_map, tensor_map, options, **kwargs):
        handles = super()._export_to_saved_model_graph(object_map, tensor_map, options, **kwargs)
        object_map[self]._serialize_to_tensors = dict
        return handles


class LoadedTensorInitializer(tf.saved_model.experimental.TrackableResource):
    """A resource whose initializer makes `LoadedTensor`s.

    `tf.saved_model.load`, sessions of TensorFlow 1 and TensorFlow Serving run the initializer after
    they have restored the variables.
    """

    def __init__(self, tensors: Sequence[LoadedTensor]):
        super().__init__()
        self._tensors = tuple(tensors)

    def _create_resource(self):
        # Every resource has a handle; nothing reads this one.
        return tf.raw_ops.VarHandleOp(
            dtype=tf.float32, shape=[], shared_name="keras_efficient_loaded_tensors"
        )

    def _initialize(self):
        for tensor in self._tensors:
            tensor.assign(tensor.make())


def loaded_tensors(functions: Iterable[Any]) -> list[LoadedTensor]:
    """Return the `LoadedTensor`s that concrete functions read, each once."""
    graphs = [function.graph for function in functions]
    read = (x for graph in graphs for x in graph.variables if isinstance(x, LoadedTensor))
    found = {id(x.handle): x for x in read}
    captured = (id(outer) for graph in graphs for outer, _ in graph.captures)
    return list({key: found[key] for key in captured if key in found}.values())


def encodings_of(tensors: Sequence[LoadedTensor]) -> list[Encoding]:
    """Return the `Encoding`s that `LoadedTensor`s are made of, each once."""
    return list({id(x): x for tensor in tensors for x in tensor.encodings}.values())
