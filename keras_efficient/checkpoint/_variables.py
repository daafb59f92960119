"""Everything that training changes, as named arrays, and back."""

import numpy as np
import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.training import _train_step_hook as train_step_hook

#: Per replica a copy, not a share: every replica counts a window's batches.
_SAME = ("step.window_seen", "step.window_unit", "step.dirty")


def chain(optimizer):
    """The optimizer, and those inside it (LossScaleOptimizer), from outside in."""
    while optimizer is not None:
        yield optimizer
        optimizer = getattr(optimizer, "inner_optimizer", None)


def of_model(model) -> dict:
    """`{name: tf.Variable}` of what a plain training step changes; model and optimizer are built.

    That is: weights, Keras 3's random seeds, the optimizer's slots, counter and loss scale, the
    scale of a `ke.schedules` schedule, metrics, and tf_keras' counter of steps.
    """
    flavor, optimizer = flavors.of(model), []
    for part in chain(model.optimizer):
        own = part.variables
        optimizer += map(flavor.value, own() if callable(own) else own)
        # tf_keras: the rate last used, and the state of the loss scale, are not among them.
        optimizer += [v for v in vars(part).values() if isinstance(v, tf.Variable)]
        optimizer += getattr(getattr(part, "_loss_scale", None), "_weights", {}).values()
        optimizer += _schedule(part)
    metrics = [v for metric in flavor.all_metrics(model) for v in metric.variables]
    counter = getattr(model, "_train_counter", None)
    return _named(
        weights=flavor.state(model),
        optimizer=optimizer,
        metrics=map(flavor.value, metrics),
        counter=[] if counter is None else [counter],
    )


def of_run(model, window_open=None) -> dict:
    """`of_model`, and what layers draw from and this package's training step keeps.

    Args:
        window_open: whether sums of gradients wait for more batches; None (default) looks.
    """
    found, step = of_model(model), train_step_hook.of(model)
    found |= _named(random=flavors.of(model).random_state(model))
    own = step.own if step.parts else None
    if own is not None and own.skipped is not None:
        found |= {"step.skipped": own.skipped, "step.halved": own.halved}
    if step.window is not None:
        found |= {f"step.window_{name}": v for name, v in step.window.state.items()}
    if window_open is None:
        window_open = window_is_open(model)
    sums = own and own.sums
    if window_open and hasattr(sums, "dirty"):
        found["step.dirty"] = sums.dirty
        touched = [v for v in sums.touched if v is not None]
        found |= _named(**{"step.sums": sums.sums, "step.touched": touched})
    return found


def window_is_open(model) -> bool:
    """Whether batches wait for an update that has not been made."""
    window = train_step_hook.of(model).window
    if window is None:
        return False
    seen = model.distribute_strategy.experimental_local_results(window.state["seen"])
    return int(seen[0].numpy()) > 0


def prepare(model, spec):
    """Create all variables of a run before its first step; `spec` is that of its batches."""
    flavor, step = flavors.of(model), train_step_hook.of(model)
    spec = tf.nest.map_structure(lambda s: None if isinstance(s, tf.OptionalSpec) else s, spec)
    with model.distribute_strategy.scope():
        if not flavor.is_ready(model):
            flavor.prepare(model, spec)
        build_optimizer(model)
        # (Layers may have been made just now.)
        flavor.random_state(model)
    if step.parts:
        step.own.prepare(spec)


def build_optimizer(model):
    """Create the optimizer's variables, whichever optimizer it is."""
    optimizer = model.optimizer
    if hasattr(optimizer, "_create_all_weights"):
        # tf_keras' legacy optimizers, such as Model Garden's.
        optimizer._create_all_weights(model.trainable_variables)
    else:
        flavors.of(model).build_optimizer(model)


class Variables:
    """Named variables as arrays: each replica's own values stacked, common ones once.

    Args:
        strategy: the model's `tf.distribute.Strategy`.
        variables: dict {name: tf.Variable}.
    """

    def __init__(self, strategy, variables):
        self.strategy, self.variables = strategy, variables
        self.cluster = getattr(strategy, "cluster", None)
        self.stacked = {name: self._differs(name, v) for name, v in variables.items()}
        self._gathered = {}

    def parts(self, variable):
        """The variable's component on each replica of this process."""
        return self.strategy.experimental_local_results(variable)

    def gather(self):
        """Get what other workers' replicas hold, before the first `read`: all must call this."""
        names = [name for name in self.variables if self.stacked[name]]
        if self.cluster is None or not names:
            return
        own = [np.stack([p.numpy() for p in self.parts(self.variables[name])]) for name in names]
        for name, array in zip(names, self.strategy.gather_arrays(own), strict=True):
            self._gathered[name] = array.reshape(-1, *array.shape[2:])

    def specs(self) -> dict:
        """`{name: (shape, NumPy dtype)}` of what `read` gives."""
        return {
            name: (
                (*([self.strategy.num_replicas_in_sync] if self.stacked[name] else []), *v.shape),
                np.dtype(v.dtype.as_numpy_dtype),
            )
            for name, v in self.variables.items()
        }

    @property
    def bytes(self) -> int:
        """The bytes of all that `read` gives."""
        sizes = [np.prod(shape, dtype=np.int64) * t.itemsize for shape, t in self.specs().values()]
        return int(sum(sizes))

    def read(self, name) -> np.ndarray:
        if name in self._gathered:
            return self._gathered[name]
        parts = self.parts(self.variables[name])
        if not self.stacked[name]:
            return parts[0].numpy()
        return np.stack([part.numpy() for part in parts])

    def assign(self, name, value) -> int | None:
        """Set a variable to what `read` gave; the number of replicas then, if it was another."""
        variable, value = self.variables[name], np.asarray(value)
        parts, replicas = self.parts(variable), self.strategy.num_replicas_in_sync
        if value.ndim == variable.shape.rank:
            # One replica's value, or one for all.
            value = value[None] if self.stacked[name] else np.stack([value] * replicas)
        saved = len(value)
        if saved != replicas:
            value = _shared(variable, value, replicas, name in _SAME)
        first = 0 if self.cluster is None else self.cluster.index * len(parts)
        for part, its in zip(parts, value[first : first + len(parts)], strict=True):
            part.assign(its)
        return None if saved == replicas else saved

    def _differs(self, name, variable):
        """Whether replicas may hold different values."""
        if self.strategy.num_replicas_in_sync == 1:
            return False
        if variable.synchronization == tf.VariableSynchronization.ON_READ:
            return True
        # Keras 3's running statistics and seeds are copies that nothing keeps equal.
        if variable.trainable or not name.startswith(("weights.", "random.")):
            return False
        if self.cluster is not None:
            return True
        first, *others = (part.numpy() for part in self.parts(variable))
        return not all(np.array_equal(first, other) for other in others)


def _shared(variable, values, replicas, same):
    """The stacked values of some replicas, for another number of them."""
    if same or variable.synchronization != tf.VariableSynchronization.ON_READ:
        return np.stack([values[0]] * replicas)
    if variable.aggregation == tf.VariableAggregation.MEAN:
        return np.stack([values.mean(0).astype(values.dtype)] * replicas)
    total = values.sum(0, dtype=values.dtype)
    share = total // replicas if values.dtype.kind in "iu" else total / replicas
    share = np.asarray(share, values.dtype)
    return np.stack([total - share * (replicas - 1), *[share] * (replicas - 1)])


def _schedule(optimizer):
    """The variable by which callbacks lower a `ke.schedules` schedule, in a list."""
    rate = getattr(optimizer, "_learning_rate", None)
    scale = getattr(rate, "scale", None)
    return [scale] if isinstance(scale, tf.Variable) else []


def _named(**groups):
    """`{"group.index": variable}`, each variable once."""
    return {
        f"{group}.{index}": variable
        for group, variables in groups.items()
        for index, variable in enumerate({id(v): v for v in variables}.values())
    }
