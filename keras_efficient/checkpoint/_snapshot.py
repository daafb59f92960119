"""A run at one moment: taken into arrays and plain data, and set back to them."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient._errors import InputError
from keras_efficient.checkpoint import _callback_state as callback_state
from keras_efficient.checkpoint import _variables as variables_module
from keras_efficient.distribute._cluster import cluster_of
from keras_efficient.training import _train_step_hook as train_step_hook


@dataclass(frozen=True)
class Snapshot:
    """What there is to write.

    Attributes:
        specs: dict {array's name: (shape, NumPy dtype)}.
        read: function of a name that gives the array.
        state: dict of JSON values.
        unsavable: list of the callbacks' attributes that were left out.
    """

    specs: dict
    read: Any
    state: dict
    unsavable: list


def metrics_of(model) -> dict:
    """The metrics' arrays, as `take` has them."""
    variables = variables_module.of_model(model)
    metrics = {name: v for name, v in variables.items() if name.startswith("metrics.")}
    held = variables_module.Variables(model.distribute_strategy, metrics)
    return {name: held.read(name) for name in metrics}


def take(model, callbacks, metrics=None) -> Snapshot:
    """The state of `model`, of its optimizer and step, and of `callbacks`; for all workers to call.

    Args:
        metrics: dict, what `metrics_of` gave, in place of what the metrics are now.
    """
    remembered, arrays, unsavable = callback_state.state_of(callbacks)
    variables = variables_module.of_run(model)
    variables |= {name: v for name, v in arrays.items() if isinstance(v, tf.Variable)}
    arrays = {name: a for name, a in arrays.items() if name not in variables} | (metrics or {})
    held = variables_module.Variables(model.distribute_strategy, variables)
    held.gather()
    specs = held.specs() | {name: (array.shape, array.dtype) for name, array in arrays.items()}
    state = {
        "replicas": model.distribute_strategy.num_replicas_in_sync,
        "updates": int(flavors.of(model).optimizer(model).iterations.numpy()),
        "callbacks": remembered,
        "training_step": _step_state(model),
    }
    return Snapshot(
        specs, lambda name: arrays[name] if name in arrays else held.read(name), state, unsavable
    )


def put(model, callbacks, saved):
    """Set `model` and `callbacks`, whose variables must all exist, to what was saved.

    Args:
        saved: a `Saved`.

    Raises:
        InputError: it is not of this model.
    """
    state, arrays = saved.state, saved.arrays
    variables = variables_module.of_run(model, window_open="step.dirty" in arrays)
    variables |= callback_state.restore(callbacks, state["callbacks"], arrays)
    _check_fit(variables, arrays, saved.path)
    cluster = cluster_of(model)
    if cluster is None or cluster.index == 0:
        # (What only writes may be with the first worker alone.)
        _check_callbacks(callbacks, state["callbacks"])
    held = variables_module.Variables(model.distribute_strategy, variables)
    # (Every one is to be assigned.)
    counts = {held.assign(name, arrays[name]) for name in variables}
    _set_step_state(model, state["training_step"])
    now = model.distribute_strategy.num_replicas_in_sync
    if state["replicas"] != now or counts - {None}:
        warnings.warn(
            f"The run was saved with {state['replicas']} replicas and goes on with {now}: sums are "
            "divided anew, dropout draws other masks, and results agree no longer to the last bit.",
            stacklevel=2,
        )


def _check_fit(variables, arrays, path):
    wrong = [f"{name} is missing" for name in variables if name not in arrays]
    wrong += [
        f"{name} is not in the model"
        for name in arrays
        if name not in variables and not name.startswith("callbacks.")
    ]
    for name, variable in variables.items():
        if name not in arrays:
            continue
        shape, saved = tuple(variable.shape), arrays[name].shape
        dtype = np.dtype(variable.dtype.as_numpy_dtype)
        # (The values of several replicas are stacked.)
        if shape not in (saved, saved[1:]) or dtype != arrays[name].dtype:
            was = f"{arrays[name].dtype}{list(saved)}"
            wrong.append(f"{name} ({variable.name}): was {was}, now {dtype}{list(shape)}")
    if wrong:
        listed = "; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise InputError(
            "A saved run goes on with the model, the optimizer and the settings of its step that "
            f"it was started with. Received: {str(path)!r}, in which {listed}. Make them as they "
            "were, or start anew in another folder."
        )


def _check_callbacks(callbacks, remembered):
    then, now = set(remembered), set(callback_state.labelled(callbacks))
    # (`fit` adds a History of its own, and nothing else that remembers.)
    if then != now:
        warnings.warn(
            f"The callbacks that remember something were {sorted(then)} and are now {sorted(now)}: "
            "new ones start anew, and what others remembered is forgotten.",
            stacklevel=3,
        )


def _step_state(model):
    """What this package's training step knows once it has been traced, and its halvings."""
    step = train_step_hook.of(model)
    if not step.parts:
        return {}
    own = step.own
    sparse = sorted(getattr(own.sums, "sparse", ()))
    return {"halvings": own.halvings, "reached": own.reached, "kind": own.kind, "sparse": sparse}


def _set_step_state(model, state):
    if not state:
        return
    own = train_step_hook.of(model).own
    own.halvings, own.reached, own.kind = state["halvings"], state["reached"], state["kind"]
    # A window may be closed before the next step is traced.
    if hasattr(own.sums, "sparse"):
        own.sums.sparse |= set(state["sparse"])
