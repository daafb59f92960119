"""Train a model for a try, and put everything back."""

from contextlib import contextmanager

from keras_efficient.checkpoint import _variables as variables_module

_MISSING = object()
#: What `fit` leaves on a model besides variables.
_ATTRIBUTES = ("stop_training", "history")


@contextmanager
def restored(model, variables=()):
    """A context that puts a model and its optimizer back, however it is left.

    That is: weights, random seeds (Keras 3's), the optimizer's slots, counter and loss scale,
    metrics, `stop_training` and `history`, and `variables`, bit by bit. Model and optimizer must
    be built. The copies are in the host's memory. tf_keras draws dropout from a state that
    nobody can read: it goes on from where it was.
    """
    everything = [*variables_module.of_model(model).values(), *variables]
    everything = list({id(variable): variable for variable in everything}.values())
    values = [variable.numpy() for variable in everything]
    attributes = {name: vars(model).get(name, _MISSING) for name in _ATTRIBUTES}
    try:
        yield
    finally:
        with model.distribute_strategy.scope():
            # Of metrics that were built in between, there is nothing to put back.
            model.reset_metrics()
            for variable, value in zip(everything, values, strict=True):
                variable.assign(value)
        for name, value in attributes.items():
            # Past Keras' own __setattr__, which would track the attribute.
            if value is not _MISSING:
                object.__setattr__(model, name, value)
            elif name in vars(model):
                object.__delattr__(model, name)
