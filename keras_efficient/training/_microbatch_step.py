"""Forward and backward pass of one microbatch, by the compiled loss or a custom `train_step`."""

import functools
from contextlib import ExitStack
from typing import Any

import tensorflow as tf

from keras_efficient.flavor._flat_logs import flat_logs
from keras_efficient.flavor._forward import EXAMPLES, SUM
from keras_efficient.training import _replicas as replicas
from keras_efficient.training._gradient_accumulator import dense, plus, unique_rows
from keras_efficient.training._loss_terms import LossTerms, last_outputs
from keras_efficient.training._microbatch_loop import batch_size


class CompiledLossStep:
    """Microbatch step of a model with Keras' own `train_step`: forward, compiled loss, backward.

    Called with a microbatch, it adds the gradients to the accumulator and returns the scalars to
    sum. Weights are fractions of the batch's examples, `unit`, so that gradients are as large as
    those of one large batch, which matters in float16.

    Args:
        step: the `TrainingStep`.
        data: the batch of this replica.
        context: AutoGraph's control status of the step.
        quiet: leave metrics as they are, for the second pass over a batch. Default: False.
    """

    def __init__(self, step, data, context, quiet=False):
        self.step, self.data, self.context, self.quiet = step, data, context, quiet
        self.model, self.flavor = step.model, step.flavor
        self.examples = batch_size(data)
        window = step.hook.window
        #: Scalar, the unit of weights.
        self.unit = tf.cast(tf.maximum(self.examples, 1), step.dtype)
        #: Whether this replica and batch add the terms that an update has once, regularisers, to a
        #: loss that is a sum. The first replica has examples if any has, and so has the first batch
        #: of a window.
        self.adds = tf.equal(tf.distribute.get_replica_context().replica_id_in_sync_group, 0)
        if window is not None:
            self.adds = tf.logical_and(self.adds, window.opens())
            self.unit = window.unit(self.unit)
        #: Whether the totals hold those of added losses, known once the step has been traced.
        self.adds_apart = step.added is not None or tf.executing_eagerly()
        self.step.reached = [False] * len(self.step.trained)

    def zeros(self) -> dict:
        """Return zeros for the scalars that a call returns."""
        names = ["weight", "loss", "examples", "microbatches"]
        names += ["square_norms"] if self._measures else []
        names += ["added", "added_examples"] if self.adds_apart else []
        return {name: tf.zeros([], self.step.dtype) for name in names}

    def __call__(self, part):
        examples = tf.cast(batch_size(part), self.step.dtype)
        terms = self.terms(part)
        with ExitStack() as stack:
            if self.quiet:
                stack.enter_context(self.flavor.frozen_metrics(self.model))
            with self.context:
                term_of = stack.enter_context(terms.watching())
            # Only sums apart take two gradients, and functions called under a persistent tape cost
            # more.
            tape = stack.enter_context(tf.GradientTape(persistent=self.adds_apart))
            with self.context:
                forward = self.flavor.forward(self.model, terms.part, terms.labelled)
            loss: Any = forward.loss
            extra, added, kind = forward.extra, forward.added, forward.weight
            sums = self.step.split.added_losses == "sum"
            term, copies = term_of(forward.y_pred, forward.weights), terms.copies
            if loss is not None and terms:
                loss *= tf.cast(terms.factor, loss.dtype)
            if loss is None and terms:
                loss, term = term, None
            if added is not None and sums:
                added = added / copies
            if loss is None:
                loss, added, kind = added, None, SUM if sums else EXAMPLES
            given = self.step.split.weight_of(part, examples)
            if given is not None:
                weight = tf.cast(given, self.step.dtype) / self.unit
                self.step.weighting = "given"
            elif kind is EXAMPLES or kind is SUM:
                weight, self.step.weighting = examples / self.unit, kind
            else:
                weight = tf.cast(kind, self.step.dtype) / copies / self.unit
                self.step.weighting = "counted"
            # Added losses need sums of their own if their divisor is not that of the loss.
            alike = self.step.single or self.step.weighting is (SUM if sums else EXAMPLES)
            apart = None if alike else added
            added = added if alike else None
            if self.step.weighting is SUM:
                share = tf.where(self.adds, weight, tf.zeros_like(weight))
                # Terms that are added alone are divided already.
                loss = loss if forward.loss is None else loss / copies
                for other, factor in ((term, 1.0 / copies), (extra, share), (added, 1.0)):
                    loss = loss if other is None else loss + other * tf.cast(factor, other.dtype)
            else:
                parts = (loss, extra, added, term)
                loss = tf.add_n([_as(p, loss) for p in parts if p is not None])
                loss *= tf.cast(weight, loss.dtype)
            scaled = self.flavor.scale_loss(self.model, loss)
            if apart is not None:
                share = tf.ones_like(examples) if sums else examples / self.unit
                weighed = apart * tf.cast(share, apart.dtype)
                weighed = self.flavor.scale_loss(self.model, weighed)
        variables = list(map(self.flavor.value, self.step.trained))
        if apart is None:
            self.step.added = None
            return self.add(tape.gradient(scaled, variables), weight, examples, {"loss": loss})
        pairs = zip(tape.gradient(weighed, variables), self.overwritten, strict=True)
        others = [None if new else gradient for gradient, new in pairs]
        # Outside of the condition that leaves out microbatches without weight. A trace without
        # these sums ends here.
        self.step.sum_apart(others)
        gradients = tape.gradient(scaled, variables)
        totals = self.add(gradients, weight, examples, {"loss": loss}, others, share)
        amount = tf.cast(apart, self.step.dtype) * (1.0 if sums else examples)
        return {**totals, "added": amount, "added_examples": examples}

    def terms(self, part) -> LossTerms:
        """Return the terms to add to the loss of a microbatch."""
        return LossTerms(list(self.step.hook.loss_terms.values()), self.flavor, self.model, part)

    @property
    def _measures(self):
        """Whether an observer needs the norms of the microbatches' gradients."""
        observers = self.step.hook.gradient_observers
        return any(getattr(observer, "square_norms", False) for observer in observers)

    @property
    def overwritten(self):
        """Which variables are set to their gradient."""
        return list(map(self.flavor.overwrites, self.step.trained))

    def add(self, gradients, weight, examples, scalars, others=None, share: Any = 1.0):
        """Add gradients to the accumulator; return the scalars to sum over microbatches.

        Args:
            gradients: those of the loss times `weight`.
            weight: scalar, the weight of the microbatch.
            examples: scalar, its examples.
            scalars: dict of further scalars.
            others: gradients of losses that are summed apart, times `share`. Default: None.
            share: scalar. Default: 1.
        """
        step = self.step
        step.reached = [
            reached or gradient is not None
            for reached, gradient in zip(step.reached, gradients, strict=True)
        ]
        scalars = {**scalars, "weight": weight, "examples": examples, "microbatches": 1.0}
        scalars |= {"added": 0.0, "added_examples": 0.0}
        if self._measures:
            scalars["square_norms"] = self.squared_norm(gradients, weight, others, share)

        def add():
            step.accumulator.add(gradients)
            return {name: tf.cast(scalars[name], step.dtype) for name in self.zeros()}

        if step.weighting is SUM or step.weighting is EXAMPLES:
            return add()
        # The loss of a microbatch without a single counted token is 0/0.
        if step.single:
            gradients = [
                gradient if new else _where(weight > 0, gradient)
                for gradient, new in zip(gradients, self.overwritten, strict=True)
            ]
            scalars["loss"] = _where(weight > 0, scalars["loss"])
            return add()
        return tf.cond(weight > 0, add, self.zeros)

    def squared_norm(self, gradients, weight, others, share):
        """Return that of the microbatch's mean gradient, without its weight and the loss scale."""
        # Which rows are repeated depends on the data; for XLA the gradient is dense instead.
        flat = dense if self.step.static else _same
        pairs = zip(gradients, self.overwritten, strict=True)
        parts = [None if new else flat(gradient) for gradient, new in pairs]
        parts = parts[: len(self.model.trainable_variables)]
        if others is not None:
            ratio = tf.cast(weight / share, tf.float32)
            parts = [
                plus(_times(1.0, part), _times(ratio, flat(other)))
                for part, other in zip(parts, others, strict=False)
            ]
        scale = self.flavor.scale_loss(self.model, weight)
        return tf.math.divide_no_nan(tf.cast(square_norm(parts), scale.dtype), scale**2)

    def logs(self, totals) -> dict:
        """Return the logs of the step, from the totals over its microbatches."""
        loss = totals["loss"]
        if self.step.weighting is not SUM:
            loss = tf.math.divide_no_nan(loss, totals["weight"])
        if self.adds_apart:
            averaged = self.step.split.added_losses == "mean"
            count = totals["added_examples"] if averaged else 1.0
            loss += tf.math.divide_no_nan(totals["added"], count)
        self.flavor.track_loss(self.model, loss, self.examples)
        return self.flavor.metrics_result(self.model)


class CustomTrainStep(CompiledLossStep):
    """Microbatch step of a model with a custom `train_step`, whose gradients are recorded."""

    def __init__(self, step, data, context, quiet=False):
        super().__init__(step, data, context, quiet)
        self.train_step = tf.__internal__.autograph.tf_convert(step.hook.original, context)
        given = step.split.weight is not None
        #: The loss that the model computes itself and that divides the update, or None.
        self.loss: Any = step.own_loss
        if self.loss is not None and (
            self.loss.per_example or not (step.shared or self.loss.known)
        ):
            self.loss = None
        self.counts: list = []
        if self.loss is not None and self.loss.terms:
            # The sums of both terms are divided by the counts of the whole update.
            examples = tf.cast(self.examples, tf.float32)
            self.counts = replicas.all_sum([*self.loss.counts(data), examples])
        #: Whether the compiled loss is a mean over certain labels: those that it does not ignore.
        self.ignores = self.loss is None and not given and self.flavor.ignores_labels(self.model)
        counted = self.ignores or (self.loss is not None and not self.counts)
        step.weighting = "given" if given else "counted" if counted else EXAMPLES
        self.names = self.flavor.custom_step_logs(self.model, self.train_step, data)
        metrics = self.flavor.metrics_result(self.model)
        self.means = [name for name in self.names if name not in metrics]

    def zeros(self):
        zero = tf.zeros([], self.step.dtype)
        return {**super().zeros(), **{f"mean {name}": zero for name in self.means}}

    def __call__(self, part):
        examples = tf.cast(batch_size(part), self.step.dtype)
        given = self.step.split.weight_of(part, examples)
        weight: Any = tf.cast(examples if given is None else given, self.step.dtype) / self.unit
        terms, add = self.terms(part), None
        with ExitStack() as stack:
            seen = []
            if self.quiet:
                stack.enter_context(self.flavor.frozen_metrics(self.model))
            elif self.weighted:
                # The metric called "loss" would weigh all microbatches alike, and take the 0/0 of
                # one without a counted token.
                seen = stack.enter_context(self.flavor.frozen_loss_tracker(self.model))
            copies, of_loss = terms.copies, None
            if terms:
                with self.context:
                    term_of = stack.enter_context(terms.watching())
                outputs = stack.enter_context(last_outputs(self.model))
                losses = stack.enter_context(self.flavor.recorded_losses())

                @tf.autograph.experimental.do_not_convert
                def with_terms(loss):
                    # The last one is that of the model as a whole.
                    weights = losses[-1:] if of_loss is None else [of_loss()]
                    term = term_of(outputs[0], weights)
                    return loss * tf.cast(terms.factor, loss.dtype) + tf.cast(term, loss.dtype)

                add = with_terms

            if self.counts:
                *counts, total = self.counts
                factor = total / copies / tf.cast(examples, total.dtype)
                stack.enter_context(self.loss.divided_by(counts, factor))
            elif self.ignores:
                found = stack.enter_context(self.flavor.recorded_losses())
                last = tf.autograph.experimental.do_not_convert(
                    lambda: found[-1] if found else None
                )
                weight = functools.partial(self.weigh, last, weight, copies)
            elif self.loss is not None:
                of_loss = stack.enter_context(self.loss.recorded(part))
                weight = functools.partial(self.weigh, of_loss, weight, copies)
            others = self.step.trained[len(self.model.trainable_variables) :]
            recording = stack.enter_context(
                self.flavor.record_gradients(self.model, weight, add, others)
            )
            logs = flat_logs(self.train_step(terms.part))
            weight = recording.weight
        recorded = (recording.variables or (), recording.gradients or ())
        by_id = dict(zip(map(id, recorded[0]), recorded[1], strict=True))
        gradients = [by_id.get(id(v)) for v in self.step.trained]
        scalars = {f"mean {n}": tf.cast(logs[n], weight.dtype) * weight for n in self.means}
        loss = recording.loss
        if loss is None and seen:
            loss = seen[-1] * tf.cast(weight, seen[-1].dtype)
        self.tracks = self.weighted and loss is not None
        if self.weighted and loss is not None:
            scalars["loss"] = tf.reduce_sum(loss)
        return self.add(gradients, weight, examples, {"loss": 0.0, **scalars})

    def weigh(self, of_loss, by_examples, copies):
        """Return the weight of a microbatch whose loss has been computed."""
        weights = of_loss()
        if weights is None or isinstance(weights.divisor, str):
            return by_examples
        return tf.cast(weights.divisor, self.step.dtype) / copies / self.unit

    @property
    def weighted(self) -> bool:
        """Whether the metric called "loss" is not the mean of the microbatches' losses.

        It does not contain their terms either.
        """
        with_terms = bool(self.step.hook.loss_terms) and "loss" not in self.means
        return self.loss is not None or self.step.weighting is not EXAMPLES or with_terms

    def logs(self, totals):
        weight = totals["weight"]
        if self.tracks:
            # As the library: a mean of shape [1] has weight 1, a vector of losses its length.
            vector = self.loss is not None and not self.loss.known
            length = weight * totals.get("unit", 1.0) if vector else 1
            mean = self.ignores or (self.loss is None and self.step.weighting is EXAMPLES)
            length = self.examples if mean else length
            loss = tf.math.divide_no_nan(totals["loss"], weight)
            self.flavor.track_loss(self.model, loss, length)
        logs = self.flavor.metrics_result(self.model)
        if self.flavor.sums_logs:
            weight *= tf.distribute.get_strategy().num_replicas_in_sync
        for name in self.means:
            logs[name] = tf.math.divide_no_nan(totals[f"mean {name}"], weight)
        return {name: logs[name] for name in self.names}


def square_norm(gradients):
    """Return Σ g² over all gradients that are not None, with repeated sparse rows summed first."""
    squares = []
    for gradient in gradients:
        if isinstance(gradient, tf.IndexedSlices):
            unique = getattr(gradient, "rows_are_unique", False)
            gradient = (gradient if unique else unique_rows(gradient)).values
        if gradient is not None:
            squares.append(tf.reduce_sum(tf.square(tf.cast(gradient, tf.float32))))
    return tf.add_n(squares) if squares else tf.constant(0.0)


def _where(condition: Any, value: Any) -> Any:
    """Return `value` where the scalar `condition` holds, else zeros."""
    if isinstance(value, tf.IndexedSlices):
        values = _where(condition, value.values)
        return tf.IndexedSlices(values, value.indices, value.dense_shape)
    return value if value is None else tf.where(condition, value, tf.zeros_like(value))


def _times(factor, gradient):
    return None if gradient is None else tf.math.scalar_mul(factor, tf.cast(gradient, tf.float32))


def _same(gradient):
    return gradient


def _as(term, like):
    return tf.cast(term, (term if like is None else like).dtype)
