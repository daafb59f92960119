"""Training step, with every operation on gradients in one fixed order.

Split the replica's batch into microbatches; forward and backward pass of each; sum the weighted
gradients and the weights; one all-reduce of both; divide once; unscale; one finite check for all
replicas; clip and update, by the optimizer; masks and moving averages; metrics.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from keras_efficient.flavor._forward import EXAMPLES, SUM
from keras_efficient.training import _auto_microbatch as auto_microbatch, _replicas as replicas
from keras_efficient.training._batch_split import BatchSplit
from keras_efficient.training._contrastive_step import (
    ContrastiveStep,
    check_settings,
    prepare_contrastive,
)
from keras_efficient.training._gradient_accumulator import (
    GradientAccumulator,
    SingleBatchGradients,
    plus,
    unique_rows,
)
from keras_efficient.training._microbatch_loop import batch_size, sum_over
from keras_efficient.training._microbatch_step import CompiledLossStep, CustomTrainStep

if TYPE_CHECKING:
    from keras_efficient.training._train_step_hook import TrainStepHook


@dataclass(frozen=True)
class Gradients:
    """The gradients of an update, the same on all replicas.

    Attributes:
        values: list of tensors and `IndexedSlices`, each row once.
        variables: the variables of the model that the values belong to.
        totals: dict of sums over all microbatches of all replicas: "weight", "loss", "examples",
            "microbatches" and, if an observer needs them, "square_norms", the squared norms of
            the mean gradient of each microbatch.
        replacements: list of pairs of a variable with `overwrite_with_gradient` and its new value,
            the maximum of the microbatches' gradients.
        of_terms: list of the gradients of the `LossTerm`s' variables, in their order; None for
            those not reached.
    """

    values: list
    variables: list
    totals: dict
    replacements: list = field(default_factory=list)
    of_terms: list = field(default_factory=list)


#: Totals that are not multiples of the unit of weights.
_COUNTS = ("examples", "microbatches", "square_norms", "added", "added_examples")


class TrainingStep:
    """The training step of one model.

    Attributes:
        hook: the `TrainStepHook` that calls it and holds the settings.
        accumulator: the gradient sums, None before the first step.
        halvings: int, how often `microbatch_size="auto"` has halved the microbatch.
        reached: list of bool, which variables of `trained` get a gradient. Known, like `weighting`,
            once a microbatch has been traced.
        weighting: what the weight of a microbatch is: `EXAMPLES`, `SUM`, "given" or "counted".
        added: list of the `tf.Variable`s whose gradients of `add_loss` terms are summed apart,
            because those terms have another divisor than the loss; None if no terms have.
        random_state: list of the `tf.Variable`s of `Flavor.random_state`, for a step that repeats
            its random draws.
    """

    def __init__(self, hook: TrainStepHook):
        self.hook, self.model, self.flavor = hook, hook.model, hook.flavor
        self.accumulator: Any = None
        self.jit: bool | None = None
        self.skipped: Any = None
        self.halvings = 0
        self.reached: list[bool] = []
        self.weighting: Any = None
        self.added: list | None = None
        self.random_state: list = []
        self._lacks_sums = False

    # --- outside of the graph ------------------------------------------------------------------

    @property
    def split(self) -> BatchSplit:
        """The split of a batch into microbatches; a single one if none is set."""
        return self.hook.split or BatchSplit(microbatches=1)

    @property
    def single(self) -> bool:
        """Whether a batch is known to be a single, non-empty microbatch."""
        # One of several replicas may receive no example.
        return not self.shared and not (self.distributed and self.static)

    @property
    def shared(self) -> bool:
        """Whether several microbatches, replicas or batches may make an update together."""
        several = self.split.microbatches != 1 or self.hook.window is not None
        return several or self.model.distribute_strategy.num_replicas_in_sync > 1

    @property
    def dtype(self):
        """Dtype of weights and totals."""
        dtypes = {variable.dtype for variable in self.model.trainable_variables}
        return tf.float64 if dtypes & {"float64", tf.float64} else tf.float32

    @property
    def trained(self) -> list:
        """The trainable variables of the model, then those of the terms of its loss."""
        terms = self.hook.loss_terms.values()
        return [*self.model.trainable_variables, *(v for term in terms for v in term.variables)]

    @property
    def distributed(self) -> bool:
        """Whether the step runs in the replicas of a strategy, of which there may be one."""
        return replicas.trains_distributed(self.model)

    @property
    def skipped_steps(self) -> int:
        """Number of updates skipped because a gradient overflowed."""
        return 0 if self.skipped is None else int(self.skipped.numpy())

    @property
    def own_loss(self) -> Any:
        """The loss that the model computes itself, if it decides the weights; else None."""
        return None if self.split.weight is not None else self.flavor.own_loss(self.model)

    @property
    def added_indices(self) -> list[int]:
        """Indices of the trainable variables with sums of their own for added losses."""
        values = map(self.flavor.value, self.model.trainable_variables)
        places = {id(value): index for index, value in enumerate(values)}
        return [places[id(v)] for v in self.added or () if id(v) in places]

    @property
    def loss_is_sum(self) -> bool:
        """Whether the loss is a sum over examples; known once a microbatch has been traced."""
        return self.weighting is SUM

    def make_train_function(self):
        """Return the function that `fit` calls with an iterator for every step."""
        self.jit = bool(getattr(self.model, "jit_compile", False))
        if self.hook.window is not None and (self.split.auto or self.hook.second_pass):
            other = "microbatch_size='auto'" if self.split.auto else "a second pass (SAM, FGM)"
            raise ValueError(
                "An update of several batches cannot look at them again. Received: "
                f"{type(self.hook.window.owner).__name__} with {other}. Give the microbatch size "
                "as an int, or make the dataset's batches larger and leave the callback out."
            )
        own = self.own_loss
        if self.hook.window is not None and own is not None and own.terms:
            raise ValueError(
                "An update of several batches needs a loss with one divisor. Received: "
                f"{type(self.hook.window.owner).__name__} for {type(self.model).__name__}, whose "
                f"loss is a sum of two means, over {' and '.join(own.terms)}. Make the dataset's "
                "batches larger, split them by ke.accumulate, and leave the callback out."
            )
        if self.hook.objective is not None:
            check_settings(self.hook)
        if self.split.auto:
            return auto_microbatch.retrying(self)
        # XLA cannot compile cross-replica operations, so it compiles only the microbatches.
        scope = partial(self.flavor.jit, compiled=False) if self.distributed else nullcontext
        with scope(self.model):
            self.hook.original_make_train_function(force=True)
            function = self.model.train_function
        prepared = False

        def train_function(iterator):
            nonlocal prepared
            if not prepared:
                # A tf.function that creates variables is traced twice.
                self.prepare(_without_optionals(getattr(iterator, "element_spec", None)))
                prepared = True
            with scope(self.model):
                return self.traced(function, iterator)

        return train_function

    def traced(self, function, *args):
        """Call a function that traces the step, and again if the trace finds that sums are missing.

        Tracing consumes no data and changes no variable.
        """
        try:
            return function(*args)
        except Exception:
            if not self._lacks_sums:
                raise
            self._lacks_sums = False
            with self.model.distribute_strategy.scope():
                self.build_accumulator()
            return function(*args)

    def sum_apart(self, gradients):
        """Add gradients of `add_loss` terms to sums of their own; called in a trace.

        Args:
            gradients: one per variable of `trained`, or None.
        """
        values = list(map(self.flavor.value, self.trained))
        reached = [v for v, g in zip(values, gradients, strict=True) if g is not None]
        if self.added is None or list(map(id, reached)) != list(map(id, self.added)):
            self.added = reached
            message = (
                "Losses that layers add need gradient sums of their own here, which cannot be "
                "created inside of a step. Received: a step that is run by its own function or, "
                "under a strategy, eagerly. Train by `fit` without run_eagerly=True."
            )
            if tf.inside_function():
                self._lacks_sums = True
                raise ValueError(message)
            if replicas.distributed():
                raise ValueError(message)
            self.build_accumulator()
        apart = [gradient for gradient in gradients if gradient is not None]
        self.accumulator.add([*[None] * len(values), *apart])

    def prepare(self, data_spec):
        """Create all variables; under a strategy, this must happen outside of its replicas."""
        model, flavor = self.model, self.flavor
        with model.distribute_strategy.scope():
            if self.hook.objective is not None:
                self.random_state = prepare_contrastive(model, flavor)
            elif not flavor.is_ready(model):
                flavor.prepare(model, data_spec)
            flavor.build_optimizer(model)
            self.build_accumulator()
            if self.skipped is None:
                with tf.init_scope():
                    self.skipped = tf.Variable(tf.constant(0, tf.int64), trainable=False)
                    self.applying = replicas.variable(0)
                    self.halved: Any = tf.Variable(tf.constant(self.halvings), trainable=False)
            with tf.init_scope():
                for part in (*self.hook.gradient_observers, *self.followers):
                    part.build(model)

    def build_accumulator(self):
        """Create the gradient sums, unless those that exist fit."""
        trained = self.trained
        variables = list(map(self.flavor.value, trained))
        if self.added is not None:
            self.added = [v for v in self.added if any(v is t for t in variables)]
            variables += self.added
        cls = SingleBatchGradients if self.single else GradientAccumulator
        built = self.accumulator
        if type(built) is not cls or not built.fits(variables, self.static):
            maxima = {i for i, v in enumerate(trained) if self.flavor.overwrites(v)}
            self.accumulator = cls(variables, static=self.static, maxima=maxima)

    @property
    def followers(self) -> list:
        """Objects called after an update: transforms first, so that averages see masked weights."""
        updater = self.hook.transform_updater
        return [*([] if updater is None else [updater]), *self.hook.after_update]

    @property
    def static(self) -> bool:
        """Whether XLA compiles the microbatches, as always on a TPU, and so needs static shapes."""
        if replicas.on_tpu(self.model.distribute_strategy):
            return True
        return bool(getattr(self.model, "jit_compile", False)) if self.jit is None else self.jit

    # --- in the graph, on every replica --------------------------------------------------------

    def __call__(self, data, context):
        """Run one step on one batch; return its logs."""
        hook = self.hook
        if not replicas.distributed():
            self.prepare(tf.nest.map_structure(tf.type_spec_from_value, data))
        if hook.transform_updater is not None:
            with hook.transform_updater.training():
                return self.step(data, context)
        return self.step(data, context)

    def step(self, data, context):
        """Run the step in the context of the transforms' updaters."""
        hook = self.hook
        microbatch = self.microbatch(data, context)
        totals = self.accumulate(microbatch, data)
        if hook.window is not None:
            hook.window.add(totals)
            replicas.cond(hook.window.complete(), self.update_window)
        elif hook.second_pass is not None and self.model.trainable_variables:
            totals = self.update_twice(totals, data, context)
        else:
            totals = self.update(totals)
        return microbatch.logs(totals)

    def microbatch(self, data, context, quiet=False):
        """Return the function that processes each microbatch of `data`."""
        kind = (
            CustomTrainStep if self.flavor.has_custom_train_step(self.model) else CompiledLossStep
        )
        kind = kind if self.hook.objective is None else ContrastiveStep
        return kind(self, data, context, quiet)

    def accumulate(self, microbatch, data):
        """Run all microbatches, adding their gradients to the accumulator; return the totals."""
        if isinstance(microbatch, ContrastiveStep):
            return {**microbatch.accumulate(), "unit": microbatch.unit}
        if self.single:
            return {**microbatch(data), "unit": microbatch.unit}
        window = self.hook.window

        def opened():
            return self.accumulator.open(True if window is None else window.opens())

        totals = self.sum_over_microbatches(microbatch, data, microbatch.zeros(), opened)
        # The unit is not summed over microbatches.
        return {**totals, "unit": microbatch.unit}

    def sum_over_microbatches(self, function, data, zeros, opened=None):
        """Return the sum of a function over the microbatches of a replica's batch.

        Args:
            function: maps a microbatch to a nest of tensors like `zeros`.
            data: nest of tensors `[examples, ...]`.
            zeros: start of the sums.
            opened: function without arguments, called before. Default: None.
        """
        halvings = self.halvings if self.static else self.halved.read_value()
        size = self.split.size_of(batch_size(data), halvings)

        def run(data):
            jit = self.flavor.jit(self.model, compiled=self.static)
            with jit, tf.control_dependencies([] if opened is None else [opened()]):
                return sum_over(function, data, size, zeros, static=self.static)

        # What runs on a TPU is compiled as a whole.
        if self.static and replicas.distributed() and not replicas.on_tpu():
            run = tf.function(run, jit_compile=True, autograph=False)
        return run(data)

    def update(self, totals):
        """Apply the accumulated gradients; return the totals over replicas."""
        gradients = self.reduced(totals)
        self.apply(gradients)
        with tf.control_dependencies([totals["weight"]]):
            self.accumulator.close()
        return gradients.totals

    def update_window(self):
        """Apply the accumulated gradients of a window and start the next."""
        window = self.hook.window
        assert window is not None
        self.update(window.totals())
        window.restart()

    def update_twice(self, totals, data, context):
        """Take gradients, move the weights, take gradients again, restore the weights, update."""
        second_pass = self.hook.second_pass
        assert second_pass is not None
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
        self.apply(replace(second, values=combined, variables=first.variables))
        return first.totals

    def reduced(self, totals) -> Gradients:
        """Return the accumulated gradients, summed over replicas, divided and unscaled."""
        variables, read = self.trained, self.accumulator.read()
        apart = self.added_indices
        if variables and not any(self.reached) and not apart:
            raise ValueError(
                "The loss does not depend on any weight that trains: no variable has a gradient. "
                f"Received: {', '.join(self.flavor.path(v) for v in variables[:5])} and their "
                "like. Compute the loss from the model's outputs, or train other weights."
            )
        # A variable without a gradient in any microbatch gets no update, as in a plain step.
        reached = [i for i, reached in enumerate(self.reached) if reached]
        maxima = [i for i in reached if self.flavor.overwrites(variables[i])]
        indices = [i for i in reached if i not in maxima]
        sums, values = ([read[i] for i in group] for group in (indices, maxima))
        added = read[len(variables) :] if apart else []
        averaged = self.split.added_losses == "mean"
        totals, unit, divisor = dict(totals), totals["unit"], None
        del totals["unit"]
        for name in totals:
            in_units = name not in _COUNTS and not (name == "loss" and self.weighting is SUM)
            totals[name] *= unit if in_units else 1.0
        if replicas.count() > 1:
            if self.weighting is not SUM:
                sums = _times(unit, sums)
            if averaged:
                added = _times(unit, added)
            signal, names = self.hook.stop_signal, list(totals)
            flag = [] if signal is None else [signal.local_value(self.dtype)]
            rows = list(map(replicas.row, values))
            summed = iter(replicas.all_sum([*sums, *added, *rows, *totals.values(), *flag]))
            sums, added = ([unique_rows(next(summed)) for _ in group] for group in (sums, added))
            values = [tf.reduce_max(next(summed), 0) for _ in values]
            totals = {name: next(summed) for name in names}
            if signal is not None:
                signal.receive(next(summed))
            unit = 1.0
        if self.weighting is not SUM and not self.normalised:
            weight = totals["weight"] if self.split.normalise is True else self.split.normalise
            divisor = tf.cast(weight, self.dtype) / unit
        others = totals["added_examples"] / unit if averaged and apart else None
        if apart and self.weighting is not SUM and self.split.normalise is not True:
            # A fixed divisor scales the whole update.
            share = tf.cast(self.split.normalise, self.dtype) / totals["weight"]
            others = share if others is None else share * others
        scaling = self.flavor.loss_scale(self.model)
        if scaling is not None:
            scale = tf.cast(scaling.scale, self.dtype)
            divisor, others = (scale if d is None else scale * d for d in (divisor, others))
        if divisor is not None:
            sums = _times(tf.math.divide_no_nan(1.0, divisor), sums)
        if others is not None:
            added = _times(tf.math.divide_no_nan(1.0, others), added)
        gradients = dict(zip(indices, sums, strict=True))
        for index, gradient in zip(apart, added, strict=True):
            gradients[index] = plus(gradients.get(index), gradient)
        own = len(self.model.trainable_variables)
        of_terms = [gradients.pop(index, None) for index in range(own, len(variables))]
        indices = sorted(gradients)
        sums: list[Any] = [gradients[index] for index in indices]
        for gradient in sums:
            if isinstance(gradient, tf.IndexedSlices):
                unique: Any = gradient
                unique.rows_are_unique = True
        # Without a microbatch that counts there is no new value.
        replacements = [
            (v, tf.where(totals["weight"] > 0, value, self.flavor.value(v)))
            for v, value in zip([variables[i] for i in maxima], values, strict=True)
        ]
        return Gradients(sums, [variables[i] for i in indices], totals, replacements, of_terms)

    @property
    def normalised(self) -> bool:
        """Whether the weights of a batch are known to sum to one unit, so nothing is to divide."""
        alone = replicas.count() == 1 and self.hook.window is None
        return alone and self.weighting is EXAMPLES and self.split.normalise is True

    def apply(self, gradients):
        """Make one update, unless a gradient overflowed under the loss scale."""
        if not gradients.variables and not gradients.replacements:
            # As in a plain step of a model with nothing to train.
            return
        if self.hook.transform_updater is not None:
            self.hook.transform_updater.watch(gradients)
        for observe in self.hook.gradient_observers:
            observe(gradients)
        self.variables = gradients.variables, [v for v, _ in gradients.replacements]
        replacements = [value for _, value in gradients.replacements]
        values = gradients.values, replacements, gradients.of_terms
        scaling = self.flavor.loss_scale(self.model)
        if scaling is None or scaling.good_steps is None:
            self.apply_now(*values)
            return
        finite = tf.reduce_all(
            [
                tf.reduce_all(tf.math.is_finite(_values(g)))
                for g in (*gradients.values, *gradients.of_terms)
                if g is not None
            ]
        )
        replicas.cond(finite, self.apply_now, *values)
        scaling.update(finite)
        self.skipped.assign(self.skipped + tf.cast(tf.logical_not(finite), tf.int64))

    def apply_now(self, values, replacements, of_terms):
        """Run the optimizer and everything that follows an update."""
        if self.split.auto:
            # All microbatches are done. From here on the batch cannot be repeated.
            with tf.control_dependencies(tf.nest.flatten(values, expand_composites=True)):
                begun = replicas.local(self.applying).assign(1)
            with tf.control_dependencies([begun]):
                values = tf.nest.map_structure(tf.identity, values, expand_composites=True)
                of_terms = [g if g is None else tf.identity(g) for g in of_terms]
        variables, replaced = self.variables
        pairs = list(zip(replaced, replacements, strict=True))
        self.flavor.apply(self.model, values, variables, pairs)
        for term in self.hook.loss_terms.values():
            number = len(term.variables)
            term.update(of_terms[:number])
            of_terms = of_terms[number:]
        for follow in self.followers:
            follow()


def _without_optionals(spec):
    """Return the specs of a batch with None for the optional parts, which Keras 3 leaves empty."""
    return tf.nest.map_structure(lambda s: None if isinstance(s, tf.OptionalSpec) else s, spec)


def _times(factor, gradients):
    return [tf.math.scalar_mul(tf.cast(factor, g.dtype), g) for g in gradients]


def _values(gradient):
    return gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
