"""Snapshot of a run: its state as arrays and JSON values, and its restoration."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient._errors import InputError
from keras_efficient.checkpoint._array_file import Specs
from keras_efficient.checkpoint._callback_state import (
    callback_state,
    labelled_callbacks,
    restore_callback_state,
)
from keras_efficient.checkpoint._replica_values import ReplicaValues
from keras_efficient.checkpoint._store import StoredCheckpoint
from keras_efficient.checkpoint._variables import hook_of, model_variables, run_variables
from keras_efficient.distribute._cluster import cluster_of


@dataclass(frozen=True)
class Snapshot:
    """The state of a run at one moment, to be written.

    Attributes:
        specs: dict {array's name: (shape, NumPy dtype)}.
        read: function of a name that returns the array.
        state: dict of JSON values.
        unsupported: names of the callbacks' attributes that were left out.
    """

    specs: Specs
    read: Callable[[str], np.ndarray]
    state: dict[str, Any]
    unsupported: list[str]


def read_metrics(model: Any) -> dict[str, np.ndarray]:
    """Return the values of the model's metrics, under their names in a snapshot."""
    variables = model_variables(model)
    metrics = {name: v for name, v in variables.items() if name.startswith("metrics.")}
    values = ReplicaValues(model.distribute_strategy, metrics)
    return {name: values.read(name) for name in metrics}


def take_snapshot(
    model: Any, callbacks: list, metrics: dict[str, np.ndarray] | None = None
) -> Snapshot:
    """Return the state of a model, its optimizer and training step, and of callbacks.

    A collective: all workers must call it.

    Args:
        model: a compiled model whose `train_step` is hooked.
        callbacks: callbacks whose state is part of it.
        metrics: values from `read_metrics` to use instead of the present ones. Default: None.
    """
    remembered, arrays, unsupported = callback_state(callbacks)
    variables = run_variables(model)
    variables |= {name: v for name, v in arrays.items() if isinstance(v, tf.Variable)}
    arrays = {name: a for name, a in arrays.items() if name not in variables} | (metrics or {})
    values = ReplicaValues(model.distribute_strategy, variables)
    values.gather()
    specs = values.specs() | {name: (array.shape, array.dtype) for name, array in arrays.items()}
    state = {
        "replicas": model.distribute_strategy.num_replicas_in_sync,
        "updates": int(flavors.of(model).optimizer(model).iterations.numpy()),
        "callbacks": remembered,
        "training_step": _step_state(model),
    }

    def read(name):
        return arrays[name] if name in arrays else values.read(name)

    return Snapshot(specs, read, state, unsupported)


def restore_snapshot(model: Any, callbacks: list, checkpoint: StoredCheckpoint):
    """Set a model and callbacks, whose variables must all exist, to a stored state.

    Raises:
        InputError: the checkpoint is of another model, optimizer or training step.
    """
    state, arrays = checkpoint.state, checkpoint.arrays
    _restore_sums(model, state["training_step"].get("added"))
    variables = run_variables(model, window_open="step.dirty" in arrays)
    variables |= restore_callback_state(callbacks, state["callbacks"], arrays)
    _check_variables(variables, arrays, checkpoint)
    cluster = cluster_of(model)
    if cluster is None or cluster.index == 0:
        # Callbacks that only write files may be given to the first worker alone.
        _check_callbacks(callbacks, state["callbacks"])
    values = ReplicaValues(model.distribute_strategy, variables)
    saved_replicas = [values.assign(name, arrays[name]) for name in variables]
    _set_step_state(model, state["training_step"])
    replicas = model.distribute_strategy.num_replicas_in_sync
    if state["replicas"] != replicas or any(saved_replicas):
        warnings.warn(
            f"The run was saved with {state['replicas']} replicas and continues with {replicas}: "
            "sums are redistributed, dropout draws other masks, and results are no longer equal "
            "to the last bit.",
            stacklevel=2,
        )


def _check_variables(variables, arrays, checkpoint):
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
        # The values of several replicas are stacked.
        if shape not in (saved, saved[1:]) or dtype != arrays[name].dtype:
            was = f"{arrays[name].dtype}{list(saved)}"
            wrong.append(f"{name} ({variable.name}): was {was}, now {dtype}{list(shape)}")
    if wrong:
        listed = "; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise InputError(
            "A run resumes with the model, optimizer and training step it was started with. "
            f"Received: {str(checkpoint.path)!r}, in which {listed}. Use those of the first start, "
            "or start a new run in another folder."
        )


def _check_callbacks(callbacks, remembered):
    # `fit` adds a History of its own, and no other callback with state.
    then, now = set(remembered), set(labelled_callbacks(callbacks))
    if then != now:
        warnings.warn(
            f"The callbacks with state were {sorted(then)} and are now {sorted(now)}: new ones "
            "start afresh, and the state of missing ones is dropped.",
            stacklevel=3,
        )


def _step_state(model):
    """Return what this package's training step has learnt while it was traced, and its halvings."""
    hook = hook_of(model)
    if not hook.parts:
        return {}
    step = hook.training_step
    return {
        "added": None if step.added is None else step.added_indices,
        "halvings": step.halvings,
        "reached": step.reached,
        "weighting": step.weighting,
        "sparse": sorted(getattr(step.accumulator, "sparse", ())),
    }


def _restore_sums(model, added):
    """Create the gradient sums of added losses that the run had."""
    hook = hook_of(model)
    if hook.parts and added is not None:
        step = hook.training_step
        step.added = [step.flavor.value(model.trainable_variables[index]) for index in added]
        with model.distribute_strategy.scope():
            step.build_accumulator()


def _set_step_state(model, state):
    if not state:
        return
    step = hook_of(model).training_step
    step.halvings, step.reached = state["halvings"], state["reached"]
    step.weighting = state["weighting"]
    # A window may be closed before the next step is traced.
    if hasattr(step.accumulator, "sparse"):
        step.accumulator.sparse |= set(state["sparse"])
