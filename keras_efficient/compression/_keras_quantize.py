"""Post-training quantization by Keras 3's own `model.quantize`."""

import warnings
from typing import Any

from keras_efficient import flavor as flavors
from keras_efficient.flavor import Model
from keras_efficient.parametrize._checks import check_model, check_permanent
from keras_efficient.parametrize._parametrized_layer import parametrized_layers

#: Methods of this package.
METHODS = ("minmax", "percentile", "mse", "smoothquant", "reconstruction")
#: Methods of Keras.
KERAS = ("int8", "int4")


def name_of(method: Any) -> str:
    """Return the name of a method or of the class of a Keras config."""
    return repr(method) if isinstance(method, str) else type(method).__name__


def quantize_with_keras(
    model: Model, method: Any, layers: Any, data: Any, plain: bool
) -> tuple[tuple[str, ...], int]:
    """Call `model.quantize(method)` or `model.quantize(config=method)`.

    Args:
        model: a built Keras 3 model without transforms.
        method: "int8", "int4" or a config of `keras.quantizers`.
        layers: regular expression of layer names, or None for all layers.
        data: the caller's `data`, which must be None for a config, since that has its own.
        plain: whether all other settings have their defaults.

    Returns:
        (tuple of the paths of the quantized layers, bits).

    Raises:
        ValueError: an argument is none of these, or no layer can be quantized.
    """
    check_model(model, "ke.calibrate", changes=False)
    check_permanent(model, "ke.calibrate")
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
            f"method={shown} replaces the variables of layers. Received: a model whose weights "
            f"have transforms. Use ke.merge first, or one of {', '.join(METHODS)}."
        )
    if not plain or (config and data is not None):
        raise ValueError(
            f"method={shown} is Keras' own and takes no other settings. Received: some. Leave out "
            "`weight_bits`, `activation_bits`, `reduce_range` and `group_size`, and `data` with a "
            "config."
        )
    if layers is not None and not isinstance(layers, str):
        raise ValueError(
            f"method={shown} selects layers by a regular expression of their names. Received: "
            f"layers={layers!r}. Give a string, or leave it out for all layers."
        )
    before = _quantized(model)
    with warnings.catch_warnings():
        # Keras warns for every Dropout that it has no weights to quantize.
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
            "Give a regular expression of the names of layers that are not quantized yet."
        )
    own = getattr(method, "weight_bits", None)
    return tuple(done), own or (4 if "int4" in shown.lower() else 8)


def _quantized(model):
    layers = model._flatten_layers()
    return [layer for layer in layers if getattr(layer, "quantization_mode", None) is not None]
