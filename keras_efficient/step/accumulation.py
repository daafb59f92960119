"""Accumulate gradients over microbatches: a small batch's memory, a large batch's update."""

from contextlib import nullcontext

import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.flavor.base import EXAMPLES, SUM, flat_logs
from keras_efficient.step import hook
from keras_efficient.step.gradient_sums import GradientSums
from keras_efficient.step.microbatches import batch_size, sum_over


def accumulate(model, microbatches=None, *, microbatch_size=None):
    """Make every training step of `model` run over microbatches and update once.

    A batch of `n` examples is split into slices. Each goes forward and backward by itself; the
    sums of the weighted losses' gradients and of their weights are kept, divided once, and applied
    once:

        g = Σᵢ wᵢ ∇Lᵢ / Σᵢ wᵢ

    where `wᵢ` is what the loss divided by in microbatch i (examples, unmasked tokens, sample
    weights). So k microbatches equal one large batch to float tolerance, and one update is one
    step for `iterations`, schedules, callbacks and metrics. What sees the batch as a whole still
    sees microbatches: BatchNormalization's statistics (keras#16633) and the random draws of
    dropout.

    Applied before or after `compile`; works from the next `fit` on, with the model's own loss,
    metrics and `train_step`. Applying it again replaces the setting; `ke.accumulate(model, None)`
    takes it away.

    Args:
        model: a Keras 3 or tf_keras model.
        microbatches: int >= 1, slices per batch (the last may be smaller; a batch that does not
            divide gives slices of ceil(n / microbatches) examples).
        microbatch_size: int >= 1, examples per slice. Give one of the two.

    Returns:
        The model.

    Raises:
        ValueError: both or neither given, or not a positive int; in `fit`, a batch smaller than
            `microbatches`, where its size is known.
        TypeError: `model` is no Keras model.

    Example:
        >>> ke.accumulate(model, microbatch_size=8)
        >>> model.fit(dataset.batch(256))       # 32 microbatches, one update

    Reference:
        Keras 3's `gradient_accumulation_steps` averages microbatch means, which is another number
        as soon as microbatches differ in weight (traps 1-7 in docs/architecture.md).
    """
    flavor = flavors.of(model)
    if microbatches is None and microbatch_size is None:
        hook.attach(model).run = None
        hook.detach_if_idle(model)
        return model
    if microbatches is not None and microbatch_size is not None:
        raise ValueError(
            "Give `microbatches` (slices per batch) or `microbatch_size` (examples per slice), not "
            f"both. Received: microbatches={microbatches!r}, microbatch_size={microbatch_size!r}."
        )
    for name, value in (("microbatches", microbatches), ("microbatch_size", microbatch_size)):
        if value is not None and (type(value) is not int or value < 1):
            raise ValueError(
                f"`{name}` must be a positive int. Received: {value!r}. "
                "Use ke.accumulate(model, None) to switch accumulation off."
            )

    def size_of(examples):
        if microbatch_size is not None:
            return microbatch_size
        known = isinstance(examples, int)
        if known and examples < microbatches:
            raise ValueError(
                "A batch cannot be split into more microbatches than it has examples. Received: "
                f"microbatches={microbatches} for a batch of {examples}. Use a larger batch, fewer "
                "microbatches, or `microbatch_size`."
            )
        size = -(-examples // microbatches)
        return size if known else tf.maximum(1, size)

    step = hook.attach(model)
    own = step.plain if flavor.has_own_train_step(model) else None
    step.run = _Accumulation(model, flavor, size_of, own)
    return model


class _Accumulation:
    """The microbatched step of one model."""

    def __init__(self, model, flavor, size_of, own):
        self.model, self.flavor, self.size_of, self.own = model, flavor, size_of, own
        self.sums = None

    def __call__(self, data, context):
        """One update from one batch; returns the step's logs."""
        model, flavor = self.model, self.flavor
        if not flavor.is_ready(model):
            flavor.prepare(model, tf.nest.map_structure(_spec_of_any_batch, data))
        flavor.build_optimizer(model)
        variables = list(map(flavor.value, model.trainable_variables))
        # XLA wants to know every shape.
        static = bool(getattr(model, "jit_compile", False))
        if self.sums is None or not self.sums.fits(variables, static):
            self.sums = GradientSums(variables, static=static)
        kind = _CompiledLoss if self.own is None else _OwnStep
        part = kind(model, flavor, data, self.sums, self.own, context)

        self.sums.open()
        # The loop waits for `open`: it must be known that sums were begun if a microbatch fails.
        with tf.control_dependencies([self.sums.dirty.read_value()]):
            sums = sum_over(part, data, self.size_of(part.examples), part.zeros(), static=static)
        gradients = self.sums.read(sums["weight"] if part.weighted else None)
        # A variable that no microbatch reached gets no update at all, as in a plain step.
        pairs = zip(gradients, model.trainable_variables, part.reached, strict=True)
        flavor.apply(model, *zip(*[(g, v) for g, v, reached in pairs if reached], strict=True))
        with tf.control_dependencies([sums["weight"]]):
            self.sums.close()
        return part.logs(sums)


def _spec_of_any_batch(tensor):
    spec = tf.type_spec_from_value(tensor)
    if isinstance(spec, tf.TensorSpec) and spec.shape.rank:
        return tf.TensorSpec([None, *spec.shape[1:]], spec.dtype)
    return spec


class _CompiledLoss:
    """Microbatches of a model with Keras' own `train_step`: forward, compiled loss, backward.

    Called with a slice of the batch, it adds the slice's gradients to the sums and returns the
    scalars to sum. Weights are kept as fractions of the batch's examples, so that gradients have
    the size they would have in one large batch (float16 cares).
    """

    def __init__(self, model, flavor, data, sums, own, context):
        self.model, self.flavor, self.data, self.context = model, flavor, data, context
        self.sums = sums
        self.own = own and tf.__internal__.autograph.tf_convert(own, context)
        self.examples = batch_size(data)
        #: Known once the loop is traced: which variables get a gradient, and whether the sums are
        #: still to be divided by the sum of weights.
        self.reached = [False] * len(sums.variables)
        self.weighted = False

    def zeros(self):
        return {"weight": tf.constant(0.0), "loss": tf.constant(0.0)}

    def fraction(self, part):
        return tf.cast(batch_size(part), tf.float32) / tf.cast(self.examples, tf.float32)

    def __call__(self, part):
        with tf.GradientTape() as tape, self.context:
            forward = self.flavor.forward(self.model, part)
            weight = self.fraction(part)
            loss, extra = forward.loss, forward.extra
            if forward.weight is SUM:
                loss = loss if extra is None else loss + extra * tf.cast(weight, extra.dtype)
            else:
                loss = loss if extra is None else loss + extra
                if forward.weight is not EXAMPLES:
                    self.weighted = True
                    weight = forward.weight / tf.cast(self.examples, tf.float32)
                loss *= tf.cast(weight, loss.dtype)
        variables = self.model.trainable_variables
        gradients = self.flavor.gradients(self.model, tape, loss, variables)
        return self.add(gradients, {"weight": weight, "loss": tf.cast(loss, tf.float32)})

    def add(self, gradients, scalars):
        self.reached = [
            reached or gradient is not None
            for reached, gradient in zip(self.reached, gradients, strict=True)
        ]

        def add():
            self.sums.add(gradients)
            return scalars

        if not self.weighted:
            return add()
        # A slice without a single counted token has a loss of 0/0.
        return tf.cond(scalars["weight"] > 0, add, self.zeros)

    def logs(self, sums):
        loss = sums["loss"] / sums["weight"] if self.weighted else sums["loss"]
        self.flavor.track_loss(self.model, loss, self.examples)
        return self.flavor.metrics_result(self.model)


class _OwnStep(_CompiledLoss):
    """Microbatches of a model with a `train_step` of its own, recorded instead of applied."""

    def __init__(self, *args):
        super().__init__(*args)
        self.weighted = self.flavor.own_weight(self.model, self.data) is not EXAMPLES
        self.names = self.flavor.own_logs(self.model, self.own, self.data)
        metrics = self.flavor.metrics_result(self.model)
        self.means = [name for name in self.names if name not in metrics]

    def zeros(self):
        return {name: tf.constant(0.0) for name in ("weight", "own loss", *self.means)}

    def __call__(self, part):
        weight, still = self.fraction(part), nullcontext()
        if self.weighted:
            weight = self.flavor.own_weight(self.model, part) / tf.cast(self.examples, tf.float32)
            # The metric called "loss" would take every microbatch for equal, and the 0/0 of one
            # without a counted token.
            still = self.flavor.still_loss(self.model)
        with still, self.flavor.recording(self.model, weight) as recording:
            logs = flat_logs(self.own(part))
        by_id = dict(zip(map(id, recording.variables), recording.gradients, strict=True))
        gradients = [by_id.get(id(v)) for v in self.model.trainable_variables]
        scalars = {name: tf.cast(logs[name], tf.float32) * weight for name in self.means}
        loss = tf.reduce_sum(tf.cast(recording.loss, tf.float32)) if self.weighted else 0.0
        return self.add(gradients, {"weight": weight, "own loss": loss, **scalars})

    def logs(self, sums):
        if self.weighted:
            # With weight 1: that of a loss of shape [1], as transformers' token losses have it.
            self.flavor.track_loss(self.model, sums["own loss"] / sums["weight"], 1)
        logs = self.flavor.metrics_result(self.model)
        logs.update((name, sums[name] / sums["weight"]) for name in self.means)
        return {name: logs[name] for name in self.names}
