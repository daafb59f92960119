"""Make one update of several batches of `fit`, as many as are asked for at the time."""

import tensorflow as tf

from keras_efficient.training import _replicas as replicas
from keras_efficient.training import _train_step_hook as train_step_hook

_NAMES = ("weight", "examples", "microbatches", "square_norms")


class AccumulationWindow:
    """Batches that make one update together.

    Attributes:
        owner: the callback that sets how many.
        batches: `tf.Variable`, int32, how many batches make an update. Changing it needs no new
            trace; it counts from the next batch on.
    """

    def __init__(self, model, owner, batches=1):
        self.model, self.owner = model, owner
        with model.distribute_strategy.scope():
            self.batches = tf.Variable(batches, dtype=tf.int32, trainable=False)
            self._seen = replicas.variable(0)
            dtype = train_step_hook.attach(model).training_step.dtype
            self._unit = replicas.variable(0.0, dtype)
            self._flush = None
            self._totals = {name: replicas.variable(0.0, dtype) for name in _NAMES}

    @property
    def state(self):
        """`{name: variable}` of all that is in it, besides the sums of gradients."""
        counts = {"batches": self.batches, "seen": self._seen, "unit": self._unit}
        return {**counts, **{f"total_{name}": v for name, v in self._totals.items()}}

    # --- in the graph, in every replica --------------------------------------------------------

    def unit(self, unit):
        """One unit for all batches of the window: that of the first."""
        here = replicas.local(self._unit)
        unit = tf.where(self.opens(), unit, here)
        here.assign(unit)
        return unit

    def add(self, totals):
        """One more batch, whose gradients are in the sums."""
        for name in set(_NAMES) & set(totals):
            replicas.local(self._totals[name]).assign_add(totals[name])
        replicas.local(self._seen).assign_add(1)

    @property
    def seen(self):
        """How many batches are in it, the same on all replicas."""
        return replicas.local(self._seen).read_value()

    def opens(self):
        """Whether the next batch is the first of a window."""
        return replicas.local(self._seen) == 0

    def complete(self):
        return self.seen >= self.batches

    def totals(self):
        """The totals of the window's batches, as `TrainingStep.reduced` takes them."""
        values = {n: replicas.local(v).read_value() for n, v in self._totals.items()}
        return {**values, "unit": replicas.local(self._unit).read_value()}

    def restart(self):
        for variable in (self._seen, *self._totals.values()):
            here = replicas.local(variable)
            here.assign(tf.zeros_like(here))

    # --- outside of it -------------------------------------------------------------------------

    def flush(self):
        """Make the update of a window that is not full, if a batch is in it."""
        parts = self.model.distribute_strategy.experimental_local_results(self._seen)
        if int(parts[0].numpy()) == 0:
            return
        if self._flush is None:
            strategy, update = (
                self.model.distribute_strategy,
                train_step_hook.of(self.model).training_step.update_window,
            )
            update = tf.autograph.experimental.do_not_convert(update)
            self._flush = tf.function(lambda: strategy.run(update), autograph=False)
        self._flush()


def attach(model, owner) -> AccumulationWindow:
    """A new window in the model's training step, of one batch; `owner` sets its size.

    Raises:
        ValueError: another owner sets it already.
    """
    step = train_step_hook.attach(model)
    present = step.window and step.window.owner
    # (One that does not take part is of an earlier `fit`, which was interrupted.)
    if present is not owner and step.takes_part(present):
        raise ValueError(
            "One callback sets how many batches make an update. Received: "
            f"{type(owner).__name__} beside {type(present).__name__}. Give `fit` one of them."
        )
    step.window = AccumulationWindow(model, owner)
    step.join(owner)
    return step.window


def detach(model, owner):
    """Let every batch make an update again."""
    step = train_step_hook.of(model)
    if step is not None and step.window is not None and step.window.owner is owner:
        step.window = None
        train_step_hook.detach_if_idle(model)
