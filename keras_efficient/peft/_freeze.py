"""Freeze single weights of a model, and unfreeze them."""

from keras_efficient.architecture._weights import EMBEDDING, KERNEL, OTHER
from keras_efficient.flavor import Model
from keras_efficient.parametrize import _attach as attach
from keras_efficient.parametrize._select import select
from keras_efficient.parametrize._typing import Layers
from keras_efficient.peft._report import TuningReport

_KINDS = (KERNEL, EMBEDDING, OTHER)


def freeze(model: Model, layers: Layers = None) -> TuningReport:
    """Stop weights of a model from training.

    Unlike `layer.trainable = False`, this acts on single weights. Call it before or after
    `compile`, or between two calls of `fit`.

    Args:
        model: a built Keras 3 or tf_keras model of any kind.
        layers: which weights of any kind, as in `ke.parametrize.select`; r"/kernel$" selects the
            kernels. Default: None, all.

    Returns:
        A `TuningReport`, to print.

    Raises:
        TypeError: `model` is not a Keras model, or `layers` has another type.
        ValueError: no weight is selected, or another strategy's scope is entered.

    Examples:
        >>> print(ke.peft.freeze(model, "kernel"))  # doctest: +ELLIPSIS
        freeze: ...

    Reference:
        `keras.layers.Layer.trainable`, for whole layers.
    """
    return _set_trainable(model, layers, False, "freeze")


def unfreeze(model: Model, layers: Layers = None) -> TuningReport:
    """Make weights train again that `freeze`, `ke.lora`, `ke.bitfit` and the like have frozen.

    Args:
        model: a built Keras 3 or tf_keras model of any kind.
        layers: which weights, as in `freeze`. Default: None, all. Weights frozen by
            `layer.trainable = False` stay frozen.

    Returns:
        A `TuningReport`, to print.

    Raises:
        TypeError: `model` is not a Keras model, or `layers` has another type.
        ValueError: no weight is selected, or another strategy's scope is entered.

    Examples:
        >>> print(ke.peft.unfreeze(model))  # doctest: +ELLIPSIS
        unfreeze: ...

    Reference:
        `keras.layers.Layer.trainable`, for whole layers.
    """
    return _set_trainable(model, layers, True, "unfreeze")


def _set_trainable(model, layers, trainable, method):
    weights = select(model, layers, _KINDS, caller=f"ke.peft.{method}")
    attach.freeze(model, weights, trainable)
    return TuningReport.of(model, method, [weight.path for weight in weights])
