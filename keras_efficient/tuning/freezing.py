"""Freeze weights of a model one by one, as `layer.trainable` cannot, and let them train again."""

from keras_efficient.parametrize import attaching
from keras_efficient.parametrize.merging import check_strategy
from keras_efficient.parametrize.weights import EMBEDDING, KERNEL, OTHER, select
from keras_efficient.tuning.training import Tuned

_KINDS = (KERNEL, EMBEDDING, OTHER)


def freeze(model, layers=None) -> Tuned:
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
        >>> print(ke.tuning.freeze(model, "kernel"))  # doctest: +ELLIPSIS
        freeze: ...
    """
    return _set(model, layers, False, "freeze")


def unfreeze(model, layers=None) -> Tuned:
    """Let weights train again that `freeze`, ke.lora, ke.bitfit and the like have frozen.

    Args:
        model, layers: as in `freeze`. What a layer's `trainable` froze stays frozen.

    Returns:
        A `Tuned`, to print.

    Raises:
        ValueError: no such weights.

    Example:
        >>> print(ke.tuning.unfreeze(model))  # doctest: +ELLIPSIS
        unfreeze: ...
    """
    return _set(model, layers, True, "unfreeze")


def _set(model, layers, trainable, verb):
    weights = select(model, layers, _KINDS, verb=f"ke.tuning.{verb}")
    check_strategy(model, f"ke.tuning.{verb}")
    attaching.freeze(model, weights, trainable)
    return Tuned.of(model, verb, [weight.path for weight in weights])
