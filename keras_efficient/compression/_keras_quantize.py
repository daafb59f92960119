"""Keras 3's own post-training quantization."""

import warnings

from keras_efficient import flavor as flavors
from keras_efficient.parametrize._checks import check_model
from keras_efficient.parametrize._parametrized_layer import parametrized_layers

#: Methods of this package, and of Keras.
METHODS = ("minmax", "percentile", "mse", "smoothquant", "reconstruction")
KERAS = ("int8", "int4")


def name_of(method) -> str:
    return repr(method) if isinstance(method, str) else type(method).__name__


def quantize_with_keras(model, method, layers, data, plain):
    """`model.quantize(method)`, or of a config.

    Args:
        data: what the caller was given to measure on; a config has its own.
        plain: whether no other setting was given.

    Returns:
        (tuple of the paths of the layers that hold integers now, bits).
    """
    check_model(model, "ke.calibrate", strategy=False)
    flavor, shown, named = flavors.of(model), name_of(method), isinstance(method, str)
    config = any(c.__name__ == "QuantizationConfig" for c in type(method).__mro__)
    if not config and (not named or method not in KERAS):
        hints = {"gptq": "GPTQConfig", "awq": "AWQConfig"}
        hint = hints.get(method) if named else None
        raise ValueError(
            f"`method` must be one of {', '.join(map(repr, (*METHODS, *KERAS)))} or a config of "
            f"keras.quantizers. Received: {method!r}."
            + (f" Pass keras.quantizers.{hint}(...), which brings its data." if hint else "")
        )
    if not flavor.has_quantize:
        raise ValueError(
            f"method={shown} is `model.quantize` of Keras 3. Received: a tf_keras model. Choose "
            f"one of {', '.join(METHODS)}."
        )
    if parametrized_layers(model):
        raise ValueError(
            f"method={shown} replaces the variables of layers. Received: a model whose weights are "
            f"seen through transforms. Use ke.merge first, or one of {', '.join(METHODS)}."
        )
    if not plain or (config and data is not None):
        raise ValueError(
            f"method={shown} is Keras' own and says all itself. Received: other settings with it. "
            "Leave out `weight_bits`, `activation_bits` and `group_size`, and `data` with a config."
        )
    if layers is not None and not isinstance(layers, str):
        raise ValueError(
            f"method={shown} chooses layers by a regular expression of their names, None: all. "
            f"Received: layers={layers!r}."
        )
    before = _quantized(model)
    with warnings.catch_warnings():
        # It says of every Dropout that it has no weights to quantize.
        warnings.filterwarnings("ignore", message=".*does not have a `quantize` method")
        warnings.filterwarnings("ignore", message=".*__array__ implementation")
        if named:
            model.quantize(method, filters=layers)
        else:
            model.quantize(config=method, filters=layers)
    done = [layer.path for layer in _quantized(model) if all(layer is not b for b in before)]
    if not done:
        raise ValueError(
            f"method={shown} found no layer that Keras can quantize. Received: layers={layers!r}. "
            "Choose by a regular expression of layers' names, and no layer twice."
        )
    own = getattr(method, "weight_bits", None)
    return tuple(done), own or (4 if "int4" in shown.lower() else 8)


def _quantized(model):
    layers = model._flatten_layers()
    return [layer for layer in layers if getattr(layer, "quantization_mode", None) is not None]
