"""The classes that Keras needs to load a saved model with an optimizer of this package."""

from keras_efficient import flavor as flavors
from keras_efficient.flavor import Model
from keras_efficient.optimizers import _adafactor, _adamw, _lamb, _lion, _sgd
from keras_efficient.schedules import constant


def custom_objects(library: str | Model = "keras") -> dict[str, type]:
    """Return the optimizer and schedule classes of this package, for `load_model`.

    Keras finds a custom class once the process has registered it. Creating an optimizer of this
    package does that; a process that has created none passes these classes instead.

    Args:
        library: "keras" or "tf_keras", or an object of either library. Default: "keras".

    Returns:
        Dict from registered names to classes.

    Raises:
        ValueError: `library` is unknown.

    Examples:
        >>> import keras
        >>> model.compile(ke.optimizers.LAMB(), loss)
        >>> model.save("model.keras")
        >>> objects = ke.optimizers.custom_objects()
        >>> loaded = keras.models.load_model("model.keras", custom_objects=objects)

    Reference:
        The argument `custom_objects` of `keras.models.load_model`.
    """
    flavor = flavors.get(library)
    modules = (_adafactor, _adamw, _lamb, _lion, _sgd)
    classes = [module.optimizer_class(flavor) for module in modules]
    classes.append(type(constant(1.0).wrap(flavor)))
    return {flavor.keras.utils.get_registered_name(cls): cls for cls in classes}
