"""Type aliases for annotations: objects of either library, which share no common class."""

from typing import Any, TypeAlias

#: A Keras 3 or tf_keras model.
Model: TypeAlias = Any
#: A layer of either library.
Layer: TypeAlias = Any
#: An optimizer of either library.
Optimizer: TypeAlias = Any
#: A `tf.Variable`, or the wrapper that either library puts around one.
Variable: TypeAlias = Any
#: A `tf.Tensor` or anything that TensorFlow converts to one.
Tensor: TypeAlias = Any
#: A `tf.data.Dataset`.
Dataset: TypeAlias = Any
