"""Window of several `fit` batches that make one update, of a size that may change."""

from typing import Any

import tensorflow as tf

from keras_efficient.flavor import Model
from keras_efficient.training import _replicas as replicas, _train_step_hook as train_step_hook

_TOTALS = ("weight", "examples", "microbatches", "square_norms", "added_examples")


class AccumulationWindow:
    """Batches that make one update together.

    Attributes:
        owner: the callback that sets the size.
        batches: int32 `tf.Variable`, batches per update. A new value applies from the next batch
            on, without retracing.
    """

    def __init__(self, model: Model, owner: object, batches: int = 1):
        self.model, self.owner = model, owner
        with model.distribute_strategy.scope():
            self.batches: Any = tf.Variable(tf.constant(batches, tf.int32), trainable=False)
            self._seen = replicas.variable(0)
            dtype = train_step_hook.attach(model).training_step.dtype
            self._unit = replicas.variable(0.0, dtype)
            self._flush = None
            self._totals = {name: replicas.variable(0.0, dtype) for name in _TOTALS}

    @property
    def state(self) -> dict:
        """`{name: variable}` of the window's state, without the gradient sums."""
        counts = {"batches": self.batches, "seen": self._seen, "unit": self._unit}
        return {**counts, **{f"total_{name}": v for name, v in self._totals.items()}}

    # --- in the graph, on every replica --------------------------------------------------------

    def unit(self, unit):
        """Return the unit of the window's first batch, which all its batches use."""
        local = replicas.local(self._unit)
        unit = tf.where(self.opens(), unit, local)
        local.assign(unit)
        return unit

    def add(self, totals: dict):
        """Add the totals of a batch whose gradients have been accumulated."""
        for name in set(_TOTALS) & set(totals):
            replicas.local(self._totals[name]).assign_add(totals[name])
        replicas.local(self._seen).assign_add(1)

    @property
    def seen(self):
        """Number of batches accumulated so far, equal on all replicas."""
        return replicas.local(self._seen).read_value()

    def opens(self):
        """Return whether the next batch is the first of a window."""
        return replicas.local(self._seen) == 0

    def complete(self):
        """Return whether the window holds as many batches as make an update."""
        return self.seen >= self.batches

    def totals(self) -> dict:
        """Return the window's totals in the form `TrainingStep.reduced` takes."""
        values = {n: replicas.local(v).read_value() for n, v in self._totals.items()}
        return {**values, "unit": replicas.local(self._unit).read_value()}

    def restart(self):
        """Set the counts and totals to zero."""
        for variable in (self._seen, *self._totals.values()):
            local = replicas.local(variable)
            local.assign(tf.zeros_like(local))

    # --- outside of the graph ------------------------------------------------------------------

    def flush(self):
        """Make the update of a partial window, if it holds any batch."""
        parts = self.model.distribute_strategy.experimental_local_results(self._seen)
        if int(parts[0].numpy()) == 0:
            return
        if self._flush is None:
            strategy = self.model.distribute_strategy
            hook = train_step_hook.attached(self.model)
            update = tf.autograph.experimental.do_not_convert(hook.training_step.update_window)
            self._flush = tf.function(lambda: strategy.run(update), autograph=False)
        self._flush()


def attach(model: Model, owner: object) -> AccumulationWindow:
    """Put a new window of one batch into the model's training step; `owner` sets its size.

    Raises:
        ValueError: if another callback of the same `fit` owns a window.
    """
    hook = train_step_hook.attach(model)
    present = hook.window and hook.window.owner
    # An owner that does not take part belongs to an earlier, interrupted `fit`.
    if present is not owner and hook.takes_part(present):
        raise ValueError(
            "One callback sets how many batches make an update. Received: "
            f"{type(owner).__name__} beside {type(present).__name__}. Pass `fit` one of them."
        )
    hook.window = AccumulationWindow(model, owner)
    hook.join(owner)
    return hook.window


def detach(model: Model, owner: object):
    """Remove the window of `owner`: every batch makes an update again."""
    hook = train_step_hook.of(model)
    if hook is not None and hook.window is not None and hook.window.owner is owner:
        hook.window = None
        train_step_hook.detach_if_idle(model)
