"""Freeze weights of a model one by one, as `layer.trainable` cannot, and let them train again."""

from keras_efficient.parametrize import _attach as attach
from keras_efficient.parametrize._select import select
from keras_efficient.parametrize._weights import EMBEDDING, KERNEL, OTHER
from keras_efficient.peft._report import TuningReport

_KINDS = (KERNEL, EMBEDDING, OTHER)


def freeze(model, layers=None) -> TuningReport:
    """Let weights of a model train no longer, before or after `compile`, between two `fit`s.

    Args:
        model: a built Keras 3 or tf_keras model of any kind.
        layers: which weights, of any kind; see `parametrize.select`. r"/kernel$" are kernels.
            Default: all.

    Returns:
        A `Tuned`, to print.

    Raises:
        ValueError: no such weights.

    Example:
        >>> print(ke.peft.freeze(model, "kernel"))  # doctest: +ELLIPSIS
        freeze: ...
    """
    return _set(model, layers, False, "freeze")


def unfreeze(model, layers=None) -> TuningReport:
    """Let weights train again that `freeze`, ke.lora, ke.bitfit and the like have frozen.

    Args:
        model, layers: as in `freeze`. What a layer's `trainable` froze stays frozen.

    Returns:
        A `Tuned`, to print.

    Raises:
        ValueError: no such weights.

    Example:
        >>> print(ke.peft.unfreeze(model))  # doctest: +ELLIPSIS
        unfreeze: ...
    """
    return _set(model, layers, True, "unfreeze")


def _set(model, layers, trainable, caller):
    weights = select(model, layers, _KINDS, caller=f"ke.peft.{caller}")
    attach.freeze(model, weights, trainable)
    return TuningReport.of(model, caller, [weight.path for weight in weights])
