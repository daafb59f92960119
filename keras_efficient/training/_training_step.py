"""The one training step, in its one order.

Split the replica's batch into microbatches; forward and backward each; sum weighted gradients and
weights; one all-reduce of both; divide once; unscale; one finite check for all replicas; clip and
update (the optimizer's part); what follows an update (masks, moving averages); metrics.
"""

from dataclasses import dataclass

import tensorflow as tf

from keras_efficient.flavor._forward import EXAMPLES, SUM
from keras_efficient.training import _auto_microbatch as auto_microbatch
from keras_efficient.training import _replicas as replicas
from keras_efficient.training._batch_split import BatchSplit
from keras_efficient.training._gradient_accumulator import (
    GradientAccumulator,
    SingleBatchGradients,
    unique_rows,
)
from keras_efficient.training._microbatch_loop import spec_of_any_batch, sum_over
from keras_efficient.training._microbatch_step import CompiledLoss, OwnStep


@dataclass(frozen=True)
class Gradients:
    """The gradients of an update, the same on all replicas.

    Attributes:
        values: list of tensors and `IndexedSlices` (each row once).
        variables: the model's variables they belong to.
        totals: dict of what was summed over all microbatches of all replicas: "weight", "loss",
            "examples", "microbatches" and, if asked for, "square_norms" (of the microbatches' own
            mean gradients).
    """

    values: list
    variables: list
    totals: dict


#: Totals that are no multiples of a unit.
_COUNTS = ("examples", "microbatches", "square_norms")


class TrainingStep:
    """The training step of one model."""

    def __init__(self, hook):
        self.hook, self.model, self.flavor = hook, hook.model, hook.flavor
        self.accumulator = self.jit = self.skipped = None
        self.halvings = 0
        #: Known once a microbatch is traced: which variables get a gradient, and what the loss
        #: divides by.
        self.reached, self.weighting = [], None

    # --- outside of the graph ------------------------------------------------------------------

    @property
    def split(self):
        return self.hook.split or BatchSplit(microbatches=1)

    @property
    def at_once(self):
        """Whether a batch is known to be one microbatch, and never an empty one."""
        return self.split.microbatches == 1 and self.hook.window is None and not self.several

    @property
    def dtype(self):
        """What weights and totals are kept in."""
        dtypes = {variable.dtype for variable in self.model.trainable_variables}
        return tf.float64 if dtypes & {"float64", tf.float64} else tf.float32

    @property
    def several(self):
        """Whether several replicas train."""
        return self.model.distribute_strategy.num_replicas_in_sync > 1

    @property
    def skipped_steps(self):
        """How many updates a loss scale has let overflow, and so skipped."""
        return 0 if self.skipped is None else int(self.skipped.numpy())

    @property
    def loss_is_sum(self):
        """Whether the loss is a sum over examples (known once a microbatch is traced)."""
        return self.weighting is SUM

    def make_train_function(self):
        """What `fit` calls with an iterator for every step."""
        self.jit = bool(getattr(self.model, "jit_compile", False))
        if self.hook.window is not None and (self.split.auto or self.hook.second_pass):
            again = "microbatch_size='auto'" if self.split.auto else "a second pass (SAM, FGM)"
            raise ValueError(
                "An update of several batches cannot look at them again. Received: "
                f"{type(self.hook.window.owner).__name__} with {again}. Give the microbatch size "
                "as an int, or make the dataset's batches larger and leave the callback out."
            )
        if self.split.auto:
            return auto_microbatch.retrying(self)
        if not self.several:
            self.hook.plain_make(force=True)
            return self.model.train_function
        # XLA cannot compile what replicas do together: only the microbatches are compiled.
        with self.flavor.without_jit(self.model):
            self.hook.plain_make(force=True)
            function = self.model.train_function
        prepared = False

        def train_function(iterator):
            nonlocal prepared
            if not prepared:
                self.prepare(getattr(iterator, "element_spec", None))
                prepared = True
            with self.flavor.without_jit(self.model):
                return function(iterator)

        return train_function

    def prepare(self, data_spec):
        """Create all variables. With several replicas this has to happen outside of them."""
        model, flavor = self.model, self.flavor
        with model.distribute_strategy.scope():
            if not flavor.is_ready(model):
                flavor.prepare(model, data_spec)
            flavor.build_optimizer(model)
            variables = list(map(flavor.value, model.trainable_variables))
            # XLA wants to know every shape.
            kind = SingleBatchGradients if self.at_once else GradientAccumulator
            if type(self.accumulator) is not kind or not self.accumulator.fits(
                variables, self.static
            ):
                self.accumulator = kind(variables, static=self.static)
            if self.skipped is None:
                with tf.init_scope():
                    self.skipped = tf.Variable(0, dtype=tf.int64, trainable=False)
                    self.applying = replicas.variable(0)
                    self.halved = tf.Variable(self.halvings, trainable=False)
            with tf.init_scope():
                for part in (*self.hook.gradient_observers, *self.followers):
                    part.build(model)

    @property
    def followers(self):
        """What comes after an update: weights are masked before anyone averages them."""
        upkeep = self.hook.transform_updater
        return [*([] if upkeep is None else [upkeep]), *self.hook.after_update]

    @property
    def static(self):
        """Whether XLA compiles the microbatches."""
        return bool(getattr(self.model, "jit_compile", False)) if self.jit is None else self.jit

    # --- in the graph, in every replica --------------------------------------------------------

    def __call__(self, data, context):
        """One step on one batch; returns its logs."""
        hook = self.hook
        if replicas.count() == 1:
            self.prepare(spec_of_any_batch(data))
        if hook.transform_updater is not None:
            with hook.transform_updater.training():
                return self.step(data, context)
        return self.step(data, context)

    def step(self, data, context):
        hook = self.hook
        microbatch = self.microbatch(data, context)
        totals = self.accumulate(microbatch, data)
        if hook.window is not None:
            hook.window.add(totals)
            replicas.cond(hook.window.complete(), self.update_window)
        elif hook.second_pass is not None:
            totals = self.update_twice(totals, data, context)
        else:
            totals = self.update(totals)
        return microbatch.logs(totals)

    def microbatch(self, data, context, quiet=False):
        """What is done with every microbatch of `data`."""
        kind = OwnStep if self.flavor.has_custom_train_step(self.model) else CompiledLoss
        return kind(self, data, context, quiet)

    def accumulate(self, microbatch, data):
        """Forward and backward over all microbatches; the gradients go to `sums`."""
        if self.at_once:
            return {**microbatch(data), "unit": microbatch.unit}
        halvings = self.halvings if self.static else self.halved.read_value()
        size = self.split.size_of(microbatch.examples, halvings)
        window = self.hook.window

        def run(data):
            first = True if window is None else window.opens()
            with tf.control_dependencies([self.accumulator.open(first)]):
                return sum_over(microbatch, data, size, microbatch.zeros(), static=self.static)

        if self.static and replicas.count() > 1:
            run = tf.function(run, jit_compile=True, autograph=False)
        # (The unit is no sum.)
        return {**run(data), "unit": microbatch.unit}

    def update(self, totals):
        """Apply the gradients summed so far; returns the totals over replicas."""
        gradients = self.reduced(totals)
        self.apply(gradients)
        with tf.control_dependencies([totals["weight"]]):
            self.accumulator.close()
        return gradients.totals

    def update_window(self):
        """Apply the gradients of the batches of a window."""
        self.update(self.hook.window.totals())
        self.hook.window.restart()

    def update_twice(self, totals, data, context):
        """Take the gradients at the weights, move the weights, take them again, move back."""
        second_pass = self.hook.second_pass
        first = self.reduced(totals)
        with tf.control_dependencies([totals["weight"]]):
            self.accumulator.close()
        values, paths = (
            list(map(f, first.variables)) for f in (self.flavor.value, self.flavor.path)
        )
        restore = second_pass.move(values, first.values, paths)
        again = self.accumulate(self.microbatch(data, context, quiet=True), data)
        second = self.reduced(again)
        with tf.control_dependencies([again["weight"]]):
            restore()
            self.accumulator.close()
        combined = second_pass.combine(first.values, second.values)
        self.apply(Gradients(combined, first.variables, second.totals))
        return first.totals

    def reduced(self, totals) -> Gradients:
        """The gradients of the sums: over all replicas, divided, unscaled."""
        variables = self.model.trainable_variables
        # A variable that no microbatch reached gets no update at all, as in a plain step.
        pairs = [
            (sums, variable)
            for sums, variable, reached in zip(
                self.accumulator.read(), variables, self.reached, strict=True
            )
            if reached
        ]
        sums, variables = map(list, zip(*pairs, strict=True))
        totals, unit, divisor = dict(totals), totals["unit"], None
        del totals["unit"]
        for name in totals:
            summed_as_it_is = name in _COUNTS or (name == "loss" and self.weighting is SUM)
            totals[name] *= 1.0 if summed_as_it_is else unit
        if replicas.count() > 1:
            if self.weighting is not SUM:
                sums = [tf.math.scalar_mul(tf.cast(unit, s.dtype), s) for s in sums]
            signal, names = self.hook.stop_signal, list(totals)
            words = [] if signal is None else [signal.local_value(self.dtype)]
            summed = replicas.all_sum([*sums, *totals.values(), *words])
            if signal is not None:
                signal.receive(summed.pop())
            sums = [unique_rows(s) for s in summed[: len(sums)]]
            totals = dict(zip(names, summed[len(sums) :], strict=True))
            unit = 1.0
        if self.weighting is not SUM and not self.whole:
            weight = totals["weight"] if self.split.normalise is True else self.split.normalise
            divisor = tf.cast(weight, self.dtype) / unit
        scaling = self.flavor.loss_scale(self.model)
        if scaling is not None:
            scale = tf.cast(scaling.scale, self.dtype)
            divisor = scale if divisor is None else scale * divisor
        if divisor is not None:
            factor = tf.math.divide_no_nan(1.0, divisor)
            sums = [tf.math.scalar_mul(tf.cast(factor, s.dtype), s) for s in sums]
        for gradient in sums:
            if isinstance(gradient, tf.IndexedSlices):
                gradient.rows_are_unique = True
        return Gradients(sums, variables, totals)

    @property
    def whole(self):
        """Whether the weights of a batch are known to sum up to one unit."""
        alone = replicas.count() == 1 and self.hook.window is None
        return alone and self.weighting is EXAMPLES and self.split.normalise is True

    def apply(self, gradients):
        """One update, unless a loss scale let a gradient overflow."""
        if self.hook.transform_updater is not None:
            self.hook.transform_updater.watch(gradients)
        for watch in self.hook.gradient_observers:
            watch(gradients)
        self.variables = gradients.variables
        scaling = self.flavor.loss_scale(self.model)
        if scaling is None or scaling.good_steps is None:
            self.apply_now(gradients.values)
            return
        finite = tf.reduce_all(
            [tf.reduce_all(tf.math.is_finite(_values(g))) for g in gradients.values]
        )
        replicas.cond(finite, self.apply_now, gradients.values)
        scaling.update(finite)
        self.skipped.assign(self.skipped + tf.cast(tf.logical_not(finite), tf.int64))

    def apply_now(self, values):
        """The optimizer's update, and what follows it."""
        if self.split.auto:
            # From here on, when all microbatches are done, the batch cannot be done again.
            with tf.control_dependencies(tf.nest.flatten(values, expand_composites=True)):
                begun = replicas.local(self.applying).assign(1)
            with tf.control_dependencies([begun]):
                values = tf.nest.map_structure(tf.identity, values, expand_composites=True)
        self.flavor.apply(self.model, values, self.variables)
        for follow in self.followers:
            follow()


def _values(gradient):
    return gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
