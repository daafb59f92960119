"""Contexts in which a model has plain weights with the transformed values."""

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from keras_efficient import flavor as flavors
from keras_efficient.flavor import Model
from keras_efficient.flavor._patched import patched
from keras_efficient.parametrize._parametrized_layer import parametrized_layers, transform_chains

#: Methods that save a whole model, which is loaded with plain layers.
_SAVE_METHODS = ("save", "save_pretrained")


@contextmanager
def folded_weights(model: Model) -> Iterator[None]:
    """Fold the transforms of a model into its weights for the duration of a `with` block.

    Inside the block, the weights' variables have the transformed values and layers read them
    directly. Afterwards everything is as before. Adapters, prefixes and the rounding of inputs stay
    active.

    Args:
        model: a built Keras 3 or tf_keras model.

    Returns:
        A context manager.

    Examples:
        >>> report = ke.lora(model, rank=2)
        >>> with ke.parametrize.folded_weights(model):
        ...     weights = model.get_weights()

    Reference:
        `merge_adapter` and `unmerge_adapter` of PEFT.
    """
    before = []
    # In `fit`, a callback may save the model: traced functions read through the chains and are
    # kept for afterwards.
    with flavors.of(model).untraced(model):
        try:
            for chain in transform_chains(model):
                # A chain whose `value` is replaced is left to the one who replaced it.
                if chain.transforms and "value" not in vars(chain):
                    before.append((chain, chain.transforms, chain.weight.value.numpy()))
                    value = chain.value()
                    chain.transforms = []
                    chain.weight.value.assign(value)
            yield
        finally:
            for chain, transforms, value in before:
                chain.transforms = transforms
                chain.weight.value.assign(value)


@contextmanager
def plain_model(model: Model) -> Iterator[None]:
    """Give a model its original layer classes and the folded weights for a `with` block.

    Raises:
        NotImplementedError: the model has adapters or the like, without which it would compute
            something else.
    """
    found = parametrized_layers(model)
    for parametrized in found:
        parametrized.check_serializable()
    with folded_weights(model):
        try:
            for parametrized in found:
                parametrized.hide()
            yield
        finally:
            for parametrized in found:
                parametrized.show()


def wrap_save_methods(model: Model) -> None:
    """Make the methods that save a whole model save the equivalent plain model.

    A `.keras` file holds the plain model in any case, since parametrized layers save themselves
    so; Keras' older formats would hold the untransformed weights.
    """
    for name in _SAVE_METHODS:
        if hasattr(model, name) and name not in vars(model):
            method = getattr(model, name)
            vars(model)[name] = functools.wraps(method)(
                functools.partial(_save_plain, model, method)
            )


def restore_save_methods(model: Model) -> None:
    """Undo `wrap_save_methods`."""
    for name in _SAVE_METHODS:
        if getattr(vars(model).get(name), "func", None) is _save_plain:
            del vars(model)[name]


def _save_plain(model, method, *args, **kwargs):
    layers = parametrized_layers(model)
    rounding = [w.describe() for layer in layers for w in layer.call_wrappers if not w.exact]
    if rounding:
        warnings.warn(
            f"A plain model does not round its inputs: {len(rounding)} layers here do "
            f"({rounding[0]}), and the saved model will not. ke.export writes that too.",
            stacklevel=3,
        )
    with plain_model(model), _without_state(getattr(model, "optimizer", None), layers):
        return method(*args, **kwargs)


def _without_state(optimizer, layers):
    """A context in which an optimizer's state is not saved if its variables are not the model's."""
    differs = any(x.frozen or (x.store is not None and x.store.trainable_weights) for x in layers)
    if optimizer is None or not differs:
        return nullcontext()
    return patched(optimizer, save_own_variables=lambda store: None)
