"""Attach transforms to the weights of a model, and detach them."""

from collections.abc import Iterable

from keras_efficient import flavor as flavors
from keras_efficient.architecture._weights import Weight
from keras_efficient.flavor import Layer, Model
from keras_efficient.parametrize._checks import check_transform
from keras_efficient.parametrize._parametrized_layer import (
    CallWrapper,
    TransformChain,
    parametrize_layer,
    parametrized_layer,
    parametrized_layers,
    transform_chain,
    transform_chains,
    transforms,
)
from keras_efficient.parametrize._plain_model import restore_save_methods, wrap_save_methods
from keras_efficient.parametrize._transform import Transform


def attach(model: Model, pairs: Iterable[tuple[Weight, Transform]]) -> None:
    """Attach transforms to weights of a model, which its layers then read through them.

    The variables of the transforms become variables of the model. Traced functions of the model
    are dropped, so this may be called before or after `compile`, between two calls of `fit`.

    Args:
        model: a built Keras 3 or tf_keras model.
        pairs: `(weight, transform)` pairs, each weight from `select` and each transform new.

    Raises:
        ValueError: a weight has a transform of this name already, or is in a layer with
            `trainable=False` and the transform has trainable variables.

    Examples:
        >>> class Scaled(ke.parametrize.Transform):
        ...     name, place = "scaled", 1
        ...
        ...     def __call__(self, value):
        ...         return 0.5 * value
        >>> weights = ke.parametrize.select(model, caller="example", transform="scaled")
        >>> ke.parametrize.attach(model, [(weight, Scaled()) for weight in weights])
        >>> len(ke.merge(model).folded) == len(weights)
        True

    Reference:
        `torch.nn.utils.parametrize.register_parametrization`.
    """
    pairs = list(pairs)
    for weight, transform in pairs:
        check_transform(weight, transform.name, transform.trains)
    with model.distribute_strategy.scope():
        for weight, transform in pairs:
            owners = [
                parametrize_layer(layer, weight.flavor, weight.layer_path)
                for layer, _ in weight.owners
            ]
            chain = transform_chain(weight) or TransformChain(weight, owners[0])
            # The variables are created before the weight is read through them.
            transform.attach(weight, chain.owner)
            chain.add(transform)
    wrap_save_methods(model)
    flavors.of(model).retrace(model)


def detach(model: Model, transforms: Iterable[Transform]) -> None:
    """Remove transforms from the weights of a model, whose own values stay as they are.

    Args:
        model: the model.
        transforms: transforms that were attached to weights of the model.

    Examples:
        >>> class Scaled(ke.parametrize.Transform):
        ...     name, place = "scaled", 1
        ...
        ...     def __call__(self, value):
        ...         return 0.5 * value
        >>> transform, weights = Scaled(), ke.parametrize.select(model, caller="example")
        >>> ke.parametrize.attach(model, [(weights[0], transform)])
        >>> ke.parametrize.detach(model, [transform])

    Reference:
        `torch.nn.utils.parametrize.remove_parametrizations` with `leave_parametrized=False`.
    """
    removed = {id(transform) for transform in transforms}
    for chain in transform_chains(model):
        for transform in list(chain.transforms):
            if id(transform) in removed:
                chain.remove(transform)
    flavors.of(model).retrace(model)


def attach_call_wrappers(model: Model, wrappers: Iterable[tuple[str, Layer, CallWrapper]]) -> None:
    """Attach call wrappers to layers of a model, given as `(path, layer, wrapper)`."""
    flavor, wrappers = flavors.of(model), list(wrappers)
    with model.distribute_strategy.scope():
        for path, layer, wrapper in wrappers:
            parametrize_layer(layer, flavor, path).attach(wrapper)
    if not all(wrapper.droppable for *_, wrapper in wrappers):
        wrap_save_methods(model)
    flavor.retrace(model)


def detach_call_wrappers(model: Model, wrappers: Iterable[CallWrapper]) -> None:
    """Remove call wrappers from the layers of a model; those that were removed are skipped."""
    for wrapper in wrappers:
        if any(wrapper is other for other in wrapper.parametrized.call_wrappers):
            wrapper.parametrized.detach(wrapper)
    if not parametrized_layers(model):
        restore_save_methods(model)
    flavors.of(model).retrace(model)


def freeze(model: Model, weights: Iterable[Weight], trainable: bool = False) -> None:
    """Stop weights from training, or with `trainable=True` undo that; the model is traced again.

    Args:
        model: the model.
        weights: weights of any kind. Those that did not train before are not recorded as frozen, so
            that `merge` does not make them trainable.
        trainable: whether the weights are to train again. Default: False.
    """
    flavor = flavors.of(model)
    for weight in weights:
        for layer, _ in weight.owners:
            if trainable:
                parametrized = parametrized_layer(layer)
                if parametrized is None:
                    continue
                kept = [w for w in parametrized.frozen if w.variable is not weight.variable]
                if len(kept) == len(parametrized.frozen):
                    continue
                flavor.set_trainable(layer, weight.variable, True)
                parametrized.frozen = kept
                parametrized.refresh()
            elif flavor.is_trainable(layer, weight.variable):
                parametrized = parametrize_layer(layer, weight.flavor, weight.layer_path)
                parametrized.frozen = [*parametrized.frozen, weight]
                parametrized.refresh()
                flavor.set_trainable(layer, weight.variable, False)
    flavor.retrace(model)


def updaters(model: Model) -> list:
    """Return the updaters of a model's transforms and call wrappers, each once."""
    layers = parametrized_layers(model)
    found = [t.updater for t in transforms(model)]
    found += [wrapper.updater for layer in layers for wrapper in layer.call_wrappers]
    return list({id(updater): updater for updater in found if updater is not None}.values())
