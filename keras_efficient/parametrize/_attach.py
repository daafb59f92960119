"""Attach transforms to the weights of a model, and take them off."""

from keras_efficient import flavor as flavors
from keras_efficient.parametrize._parametrized_layer import (
    TransformChain,
    parametrize_layer,
    parametrized_layer,
    parametrized_layers,
    transform_chains,
)
from keras_efficient.parametrize._plain_model import save_plainly
from keras_efficient.parametrize._weights import check_trains


def transforms(model, kind=object) -> list:
    """The transforms of a class on a model's weights, each once."""
    return [t for chain in transform_chains(model) for t in chain.transforms if isinstance(t, kind)]


def transform_chain(weight) -> TransformChain | None:
    """The chain of a weight, if it has one."""
    view = parametrized_layer(weight.layer)
    return None if view is None else view.chains.get(weight.attribute)


def transform_of(weight, name):
    """The weight's transform of this name, or None."""
    chain = transform_chain(weight)
    found = [t for t in chain.transforms if t.name == name] if chain is not None else []
    return found[0] if found else None


def attach(model, pairs):
    """See weights through one more transform each.

    Args:
        model: the model they are in; traced functions are dropped.
        pairs: list of `(Weight, Transform)`, each transform new.

    Raises:
        ValueError: a weight has a transform of this name already.
    """
    check_free(pairs)
    with model.distribute_strategy.scope():
        for weight, transform in pairs:
            for layer, _ in weight.owners:
                parametrize_layer(layer, weight.flavor, weight.layer_path)
            chain = transform_chain(weight) or TransformChain(
                weight, parametrized_layer(weight.layer)
            )
            # Its variables come before it is seen through them.
            transform.attach(weight, chain.owner)
            chain.add(transform)
    save_plainly(model)
    flavors.of(model).renew(model)


def check_free(pairs):
    """Refuse a weight that has such a transform already, before anything is attached."""
    for weight, transform in pairs:
        if transform.trains:
            check_trains([weight], transform.name)
        if transform_of(weight, transform.name) is not None:
            raise ValueError(
                f"A weight can have one transform of each kind. Received: {transform.name!r} for "
                f"{weight.path!r}, which has one. Fold it with ke.merge(model) first, or choose "
                "other weights with `layers=`."
            )


def detach(model, removed):
    """Take transforms off their weights; the weights beneath stay as they are."""
    for chain in transform_chains(model):
        for transform in list(chain.transforms):
            if any(transform is r for r in removed):
                chain.remove(transform)
    flavors.of(model).renew(model)


def freeze(model, weights, trainable=False):
    """Let weights train no longer, or again (`trainable=True`); the model is traced anew.

    Args:
        weights: list of `Weight`s, of any kind. Those that do not train stay as they are, and will
            not be let train again by `merge`.
    """
    flavor = flavors.of(model)
    for weight in weights:
        for layer, _ in weight.owners:
            if trainable:
                view = parametrized_layer(layer)
                kept = [w for w in view.frozen if w.variable is not weight.variable] if view else []
                if view is None or len(kept) == len(view.frozen):
                    continue
                flavor.set_trainable(layer, weight.variable, True)
                view.frozen = kept
                view.refresh()
            elif flavor.is_trainable(layer, weight.variable):
                view = parametrize_layer(layer, weight.flavor, weight.layer_path)
                view.frozen = [*view.frozen, weight]
                view.refresh()
                flavor.set_trainable(layer, weight.variable, False)
    flavor.renew(model)


def updaters(model) -> list:
    """Whoever has something to do after an update, each once."""
    found = [t.updater for t in transforms(model)]
    found += [
        getattr(part, "updater", None) for view in parametrized_layers(model) for part in view.calls
    ]
    return list({id(updater): updater for updater in found if updater is not None}.values())
