"""Variables that training changes, by name, and their creation before the first step."""

from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.training import _train_step_hook as train_step_hook


def hook_of(model: Any) -> train_step_hook.TrainStepHook:
    """Return the hook of a model whose `train_step` is hooked."""
    hook = train_step_hook.of(model)
    assert hook is not None
    return hook


def optimizer_chain(optimizer: Any) -> Iterator[Any]:
    """Yield the optimizer and those it wraps (LossScaleOptimizer), from the outermost."""
    while optimizer is not None:
        yield optimizer
        optimizer = getattr(optimizer, "inner_optimizer", None)


def model_variables(model: Any) -> dict[str, tf.Variable]:
    """Return what a plain training step changes; model and optimizer must be built.

    That is: weights, Keras 3's random seeds, the optimizer's moments, counter and loss scale, the
    scale of a `ke.schedules` schedule, metrics, and the step counter of tf_keras.
    """
    flavor, optimizer = flavors.of(model), []
    for part in optimizer_chain(model.optimizer):
        own: Any = part.variables
        variables: Any = own() if callable(own) else own
        optimizer += map(flavor.value, variables)
        # tf_keras does not list the last rate and the state of the loss scale.
        optimizer += [v for v in vars(part).values() if isinstance(v, tf.Variable)]
        optimizer += getattr(getattr(part, "_loss_scale", None), "_weights", {}).values()
        optimizer += _schedule_scale(part)
    metrics = [v for metric in flavor.all_metrics(model) for v in metric.variables]
    counter = getattr(model, "_train_counter", None)
    return _named(
        weights=flavor.state(model),
        optimizer=optimizer,
        metrics=map(flavor.value, metrics),
        counter=[] if counter is None else [counter],
    )


def run_variables(model: Any, window_open: bool | None = None) -> dict[str, tf.Variable]:
    """Return `model_variables`, random states of layers, and this package's training step's.

    Args:
        model: a compiled model whose `train_step` is hooked.
        window_open: whether summed gradients wait for more batches. Default: None, read from the
            model.
    """
    found, hook = model_variables(model), hook_of(model)
    found |= _named(random=flavors.of(model).random_state(model))
    step = hook.training_step if hook.parts else None
    if step is not None and step.skipped is not None:
        found |= {"step.skipped": step.skipped, "step.halved": step.halved}
    for name, term in hook.loss_terms.items():
        found |= {f"step.{name}_{key}": v for key, v in term.state.items()}
    if hook.window is not None:
        found |= {f"step.window_{name}": v for name, v in hook.window.state.items()}
    if window_open is None:
        window_open = has_open_window(model)
    accumulator: Any = step and step.accumulator
    if window_open and hasattr(accumulator, "dirty"):
        found["step.dirty"] = accumulator.dirty
        touched = [v for v in accumulator.touched if v is not None]
        found |= _named(**{"step.sums": accumulator.sums, "step.touched": touched})
    return found


def has_open_window(model: Any) -> bool:
    """Whether batches have been accumulated for an update that has not been made."""
    window = hook_of(model).window
    if window is None:
        return False
    seen = model.distribute_strategy.experimental_local_results(window.state["seen"])
    return int(seen[0].numpy()) > 0


def create_variables(model: Any, spec: Any):
    """Create all variables of a run before its first step.

    Args:
        model: a compiled model whose `train_step` is hooked.
        spec: nest of the specs of a batch.
    """
    flavor, hook = flavors.of(model), hook_of(model)
    # Keras 3 passes a missing part of a batch as an Optional.
    spec = tf.nest.map_structure(lambda s: None if isinstance(s, tf.OptionalSpec) else s, spec)
    with model.distribute_strategy.scope():
        if not flavor.is_ready(model):
            flavor.prepare(model, spec)
        build_optimizer(model)
        # After `prepare`, which may have built layers.
        flavor.random_state(model)
    if hook.parts:
        hook.training_step.prepare(spec)


def build_optimizer(model: Any):
    """Create the optimizer's variables, also those of tf_keras' legacy optimizers."""
    optimizer = model.optimizer
    if hasattr(optimizer, "_create_all_weights"):
        optimizer._create_all_weights(model.trainable_variables)
    else:
        flavors.of(model).build_optimizer(model)


def _schedule_scale(optimizer):
    """Return the variable by which callbacks lower a `ke.schedules` schedule, in a list."""
    rate = getattr(optimizer, "_learning_rate", None)
    scale = getattr(rate, "scale", None)
    return [scale] if isinstance(scale, tf.Variable) else []


def _named(**groups: Iterable[Any]) -> dict[str, Any]:
    """Return `{"group.index": variable}`, each variable of a group once."""
    return {
        f"{group}.{index}": variable
        for group, variables in groups.items()
        for index, variable in enumerate({id(v): v for v in variables}.values())
    }
