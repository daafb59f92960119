"""A model with transforms as the plain model that computes the same, for a while."""

import functools
import warnings
from contextlib import contextmanager, nullcontext

from keras_efficient import flavor as flavors
from keras_efficient.flavor._base import replaced
from keras_efficient.parametrize._parametrized_layer import parametrized_layers, transform_chains

#: Methods that write a whole model, of which a reader makes a plain one.
_SAVING = ("save", "save_pretrained")


@contextmanager
def folded_weights(model):
    """A context in which the weights' variables have the values seen, and layers read them so.

    Afterwards everything is as it was. Adapters, prefixes and ranges of activations stay.
    """
    before = []
    # (In `fit`, a callback may save: what was traced reads through the chains, and stays.)
    with flavors.of(model).aside(model):
        try:
            for chain in transform_chains(model):
                # (What stands in for a chain's value is left to who put it there.)
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
def plain_model(model):
    """A context in which the model has no transforms at all, but computes the same.

    Raises:
        NotImplementedError: it has adapters or the like, without which it would compute otherwise.
    """
    found = parametrized_layers(model)
    for view in found:
        view.check_plain()
    with folded_weights(model):
        try:
            for view in found:
                view.hide()
            yield
        finally:
            for view in found:
                view.show()


def save_plainly(model):
    """Let the methods that write a whole model write the plain one that computes the same.

    (A `.keras` file holds it anyway, by whichever function it is written: see `View`. Keras' older
    formats would hold the weights beneath.)
    """
    for name in _SAVING:
        if hasattr(model, name) and name not in vars(model):
            method = getattr(model, name)
            vars(model)[name] = functools.wraps(method)(functools.partial(_saved, model, method))


def save_as_before(model):
    """Undo `save_plainly`."""
    for name in _SAVING:
        if getattr(vars(model).get(name), "func", None) is _saved:
            del vars(model)[name]


def _saved(model, method, *args, **kwargs):
    rounding = [p.describe() for v in parametrized_layers(model) for p in v.calls if not p.exact]
    if rounding:
        warnings.warn(
            f"A plain model does not round its inputs: {len(rounding)} layers here do "
            f"({rounding[0]}), and the saved model will not. ke.export writes that too.",
            stacklevel=3,
        )
    with (
        plain_model(model),
        _without_state(getattr(model, "optimizer", None), parametrized_layers(model)),
    ):
        return method(*args, **kwargs)


def _without_state(optimizer, found):
    """A context in which no optimizer's state is saved that is of other variables."""
    trains = any(v.frozen or (v.store is not None and v.store.trainable_weights) for v in found)
    if optimizer is None or not trains:
        return nullcontext()
    return replaced(optimizer, save_own_variables=lambda store: None)
