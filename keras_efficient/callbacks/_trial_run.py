"""Context that restores a model and its optimizer after a trial run."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from keras_efficient.checkpoint._variables import model_variables

_MISSING = object()
#: What `fit` leaves on a model besides variables.
_ATTRIBUTES = ("stop_training", "history")


@contextmanager
def trial_run(model: Any, variables: Iterable[tf.Variable] = ()) -> Iterator[None]:
    """Restore a model and its optimizer on leaving the context, also after an error.

    That is: weights, random seeds of Keras 3, the optimizer's moments, counter and loss scale,
    metrics, `stop_training` and `history`, bit by bit. Model and optimizer must be built. The
    copies are in the host's memory. The random state from which tf_keras draws dropout cannot be
    read, and is not restored.

    Args:
        model: a compiled, built model.
        variables: further variables to restore.
    """
    everything = [*model_variables(model).values(), *variables]
    everything = list({id(variable): variable for variable in everything}.values())
    values = [variable.numpy() for variable in everything]
    attributes = {name: vars(model).get(name, _MISSING) for name in _ATTRIBUTES}
    try:
        yield
    finally:
        with model.distribute_strategy.scope():
            # Metrics that were built within the context are reset only.
            model.reset_metrics()
            for variable, value in zip(everything, values, strict=True):
                variable.assign(value)
        for name, value in attributes.items():
            # Past Keras' own __setattr__, which would track the attribute.
            if value is not _MISSING:
                object.__setattr__(model, name, value)
            elif name in vars(model):
                object.__delattr__(model, name)
