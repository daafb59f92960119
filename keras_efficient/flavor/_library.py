"""Choose the flavour of a Keras object or of a library name."""

from keras_efficient.flavor._base import Flavor

#: The names by which users choose a flavour (`library=`).
LIBRARIES = ("keras", "tf_keras")

_loaded: dict[str, Flavor] = {}


def of(obj) -> Flavor:
    """The flavour of a Keras object (model, layer, optimizer, schedule, metric or variable).

    Raises:
        TypeError: `obj` is of neither library.
    """
    for cls in type(obj).__mro__:
        root = cls.__module__.partition(".")[0]
        if root in LIBRARIES:
            return get(root)
    raise TypeError(
        "Expected a Keras object: an instance of a class of `keras` (Keras 3) or `tf_keras`. "
        f"Received: {obj!r} of type {type(obj).__module__}.{type(obj).__qualname__}. "
        "Models of PyTorch or plain tf.Module need a Keras model around them."
    )


def get(library) -> Flavor:
    """The flavour named `library` ("keras" or "tf_keras"), or the one of a Keras object.

    Raises:
        ValueError: the name is unknown.
        TypeError: the object is of neither library.
    """
    if isinstance(library, Flavor):
        return library
    if not isinstance(library, str):
        return of(library)
    if library not in _loaded:
        # Imported on first use: a process that trains one flavour never loads the other.
        if library == "keras":
            from keras_efficient.flavor._keras3 import Keras3

            _loaded[library] = Keras3()
        elif library == "tf_keras":
            from keras_efficient.flavor._tf_keras import TfKeras

            _loaded[library] = TfKeras()
        else:
            raise ValueError(
                f"`library` must be one of {LIBRARIES}. Received: {library!r}. Use 'keras' for "
                "Keras 3 and KerasHub models, 'tf_keras' for Hugging Face TF and Model Garden."
            )
    return _loaded[library]
