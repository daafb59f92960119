"""Dense layers of all libraries: their kernel, bias and activation."""

from typing import Any

from keras_efficient.architecture._layer_class import has_library_call
from keras_efficient.flavor import Layer

#: Hugging Face's Conv1D is a dense layer that calls its kernel `weight`.
_DENSE = ("Dense.call", "EinsumDense.call", "TFConv1D.call")


def is_dense(layer: Layer) -> bool:
    """Return whether a layer's `call` is that of a library's dense layer."""
    return has_library_call(layer, *_DENSE)


def kernel_of(layer: Layer) -> Any:
    """Return the kernel of a dense layer, read through its transforms."""
    return layer.kernel if hasattr(layer, "kernel") else layer.weight


def activation_after(layer: Layer) -> Any:
    """Return the activation function of a dense layer, or None."""
    return getattr(layer, "activation", None)
