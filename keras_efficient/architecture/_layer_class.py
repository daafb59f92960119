"""The class of a layer, and whether its `call` is known code of a library."""

from keras_efficient.flavor import Layer

#: Attribute of the classes that `parametrize` gives to layers: the class that a layer had before.
ORIGINAL = "_keras_efficient_original_class"
_LIBRARIES = ("keras", "tf_keras", "keras_hub", "official", "transformers")


def original_class(layer: Layer) -> type:
    """Return the class of a layer without its parametrization."""
    return vars(type(layer)).get(ORIGINAL, type(layer))


def has_library_call(layer: Layer, *methods: str) -> bool:
    """Return whether a layer's `call` is a library's own: a subclass may compute anything.

    Args:
        layer: the layer.
        methods: qualified names of the methods to accept, such as "Dense.call".
    """
    call = original_class(layer).call
    return call.__qualname__ in methods and call.__module__.partition(".")[0] in _LIBRARIES


def is_attention(layer: Layer) -> bool:
    """Return whether a layer's class is called an attention layer."""
    return "attention" in original_class(layer).__name__.lower()
