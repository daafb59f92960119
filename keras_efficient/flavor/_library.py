"""Look up the flavor of a Keras object or of a library name."""

from typing import Any

from keras_efficient.flavor._flavor import Flavor

#: The values of `library=` by which users choose a flavor.
LIBRARIES = ("keras", "tf_keras")

_loaded: dict[str, Flavor] = {}


def of(obj: Any) -> Flavor:
    """Return the flavor of a Keras object.

    Args:
        obj: A model, layer, optimizer, schedule, metric or variable of either library.

    Returns:
        The flavor, the same object for every object of a library.

    Raises:
        TypeError: `obj` belongs to neither library.

    Examples:
        >>> ke.flavor.of(model).name
        'keras'

    Reference:
        `keras` (Keras 3) and `tf_keras` (Keras 2), https://keras.io/getting_started/.
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


def get(library: Any) -> Flavor:
    """Return the flavor of a library.

    Args:
        library: "keras", "tf_keras", a Keras object of either, or a flavor, which is returned.

    Returns:
        The flavor.

    Raises:
        ValueError: The name is unknown.
        TypeError: The object belongs to neither library.
        ImportError: Keras 3 runs on another backend than TensorFlow.

    Examples:
        >>> ke.flavor.get("tf_keras").keras.__name__
        'tf_keras'

    Reference:
        `keras` (Keras 3) and `tf_keras` (Keras 2), https://keras.io/getting_started/.
    """
    if isinstance(library, Flavor):
        return library
    if not isinstance(library, str):
        return of(library)
    if library not in _loaded:
        # Imported on first use: a process that trains with one library never loads the other.
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
