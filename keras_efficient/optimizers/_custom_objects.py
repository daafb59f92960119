"""What loading a model with one of these optimizers takes, in a process that made none."""

from keras_efficient import flavor as flavors


def custom_objects(library="keras"):
    """The classes of this package's optimizers and schedules, for `load_model`.

    Keras finds a custom class if the process has registered it, which making an optimizer does.

    Args:
        library: "keras" (default) or "tf_keras", or an object of one.

    Returns:
        A dict of names and classes.

    Example:
        >>> import keras
        >>> model.compile(ke.optimizers.LAMB(), loss)
        >>> model.save("model.keras")
        >>> objects = ke.optimizers.custom_objects()
        >>> loaded = keras.models.load_model("model.keras", custom_objects=objects)
    """
    from keras_efficient.optimizers import _adafactor as adafactor
    from keras_efficient.optimizers import _adamw as adamw
    from keras_efficient.optimizers import _lamb as lamb
    from keras_efficient.optimizers import _lion as lion
    from keras_efficient.optimizers import _sgd as sgd
    from keras_efficient.schedules import warmup_linear

    flavor = flavors.get(library)
    classes = [module.kind(flavor) for module in (adafactor, adamw, lamb, lion, sgd)]
    classes.append(type(warmup_linear(1.0, warmup_steps=0, total_steps=1).wrap(flavor)))
    return {flavor.keras.utils.get_registered_name(cls): cls for cls in classes}


def _unpickle(library, kind, config):
    """A pickled optimizer."""
    return custom_objects(library)[f"keras_efficient>{kind}"].from_config(config)
