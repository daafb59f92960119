"""Make one update of several batches of `fit`, as many as are asked for at the time."""

import tensorflow as tf

from keras_efficient.step import hook, replicas

_NAMES = ("weight", "examples", "microbatches", "square_norms")


class Window:
    """Batches that make one update together.

    Attributes:
        batches: `tf.Variable`, int32, how many batches make an update. Changing it needs no new
            trace; it counts from the next batch on.
    """

    def __init__(self, model, batches=1):
        self.model = model
        with model.distribute_strategy.scope():
            self.batches = tf.Variable(batches, dtype=tf.int32, trainable=False)
            self._seen = replicas.variable(0)
            self._unit = replicas.variable(0.0)
            self._totals = {name: replicas.variable(0.0) for name in _NAMES}

    @property
    def variables(self):
        return [self._seen, self._unit, *self._totals.values()]

    # --- in the graph, in every replica --------------------------------------------------------

    def unit(self, unit):
        """One unit for all batches of the window: that of the first."""
        here = replicas.here(self._unit)
        unit = tf.where(replicas.here(self._seen) == 0, unit, here)
        here.assign(unit)
        return unit

    def add(self, totals):
        """One more batch, whose gradients are in the sums."""
        for name in set(_NAMES) & set(totals):
            replicas.here(self._totals[name]).assign_add(totals[name])
        replicas.here(self._seen).assign_add(1)

    def complete(self):
        return replicas.here(self._seen).read_value() >= self.batches

    def totals(self):
        """The totals of the window's batches, as `TrainingStep.reduced` takes them."""
        values = {n: replicas.here(v).read_value() for n, v in self._totals.items()}
        return {**values, "unit": replicas.here(self._unit).read_value()}

    def restart(self):
        for variable in (self._seen, *self._totals.values()):
            here = replicas.here(variable)
            here.assign(tf.zeros_like(here))

    # --- outside of it -------------------------------------------------------------------------

    def flush(self):
        """Make the update of a window that is not full, if a batch is in it."""
        parts = self.model.distribute_strategy.experimental_local_results(self._seen)
        if int(parts[0].numpy()) == 0:
            return
        step = hook.of(self.model).own
        strategy = self.model.distribute_strategy
        update = tf.autograph.experimental.do_not_convert(lambda: step.update_window())
        tf.function(lambda: strategy.run(update), autograph=False)()


def attach(model) -> Window:
    """The window of the model's training step, made if there is none."""
    step = hook.attach(model)
    if step.window is None:
        step.window = Window(model)
    return step.window


def detach(model):
    """Let every batch make an update again."""
    hook.attach(model).window = None
    hook.detach_if_idle(model)
