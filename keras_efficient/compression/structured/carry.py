"""Copy the weights of a model into a smaller one of the same class."""

from collections.abc import Callable, Iterable

import numpy as np

from keras_efficient import flavor as flavors
from keras_efficient.architecture._layer_class import original_class
from keras_efficient.architecture._layer_paths import is_in, layer_paths
from keras_efficient.architecture._weights import Weight, all_weights
from keras_efficient.flavor import Model


def carry(
    old: Model,
    new: Model,
    kept: Callable[[Weight, int], np.ndarray | None],
    *,
    without: Iterable[str] = (),
) -> None:
    """Assign the weights of `old` to `new`, and what else its layers were given.

    The weights of both are in the same order, since one class made them. Where an axis is shorter
    in the new model, only some of its indices are copied. So nothing that a size of the class
    changes can be overlooked.

    Args:
        old: the model.
        new: one of the same class, with other sizes.
        kept: function of a weight of `old` and an axis that returns the indices to keep, an int
            array, or None if the axis should not have changed.
        without: paths of layers of `old` that `new` does not have. Default: ().

    Raises:
        ValueError: the weights do not correspond to each other; the message names one.
    """
    flavor, without = flavors.of(old), list(without)
    sources = [w for w in all_weights(old) if not is_in(w.path, without)]
    targets = all_weights(new)
    if len(sources) != len(targets):
        raise _error(old, f"{len(sources)} weights, and {len(targets)} in one with other sizes")
    with old.distribute_strategy.scope():
        for source, target in zip(sources, targets, strict=True):
            if _kind(source) != _kind(target) or len(source.shape) != len(target.shape):
                raise _error(old, f"{source.path!r}, where another one has {target.path!r}")
            value = source.value.numpy()
            for axis, (before, after) in enumerate(zip(source.shape, target.shape, strict=True)):
                if before != after:
                    indices = kept(source, axis)
                    if indices is None or len(indices) != after:
                        raise _error(
                            old,
                            f"{source.path!r} of shape {list(source.shape)}, which has shape "
                            f"{list(target.shape)} then",
                        )
                    value = value.take(indices, axis)
            target.value.assign(value)
            _copy_settings(source.layer, target.layer)
    _copy_policies(flavor, old, new, without)


def _kind(weight):
    return original_class(weight.layer).__name__, weight.attribute


def _error(model, received):
    return ValueError(
        "ke.shrink must know for each weight which of its numbers to keep. Received: "
        f"{original_class(model).__name__} {model.name!r} with {received}. This size of this model "
        "cannot be changed; change others."
    )


def _copy_settings(old, new):
    """Copy what a layer may have been given after it was made: its activation, and freezing."""
    activation = getattr(old, "activation", None)
    if callable(activation) and getattr(new, "activation", None) is not activation:
        new.activation = activation
    if not old.trainable:
        new.trainable = False


def _copy_policies(flavor, old, new, without):
    """Copy dtype policies that layers were given after they were made."""
    olds = {path: layer for path, layer in layer_paths(old) if not is_in(path, without)}
    news = dict(layer_paths(new))
    # Functional models lose layers without weights, and others get new numbers.
    if len(olds) == len(news):
        pairs = zip(olds.values(), news.values(), strict=True)
    else:
        pairs = [(olds[path], news[path]) for path in olds if path in news]
    for before, after in pairs:
        policy = getattr(before, "dtype_policy", None)
        if policy is not None and policy.name != after.dtype_policy.name:
            flavor.set_policy(after, policy.name)
