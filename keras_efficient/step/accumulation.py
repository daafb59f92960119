"""Accumulate gradients over microbatches: a small batch's memory, a large batch's update."""

import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.flavor.base import EXAMPLES, SUM
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
            return tf.constant(microbatch_size)
        known = tf.get_static_value(examples)
        if known is not None and known < microbatches:
            raise ValueError(
                "A batch cannot be split into more microbatches than it has examples. Received: "
                f"microbatches={microbatches} for a batch of {known}. Use a larger batch, fewer "
                "microbatches, or `microbatch_size`."
            )
        return tf.maximum(1, -(-examples // microbatches))

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
        variables = list(map(flavor.value, model.trainable_variables))
        if self.sums is None or not self.sums.fits(variables):
            self.sums = GradientSums(variables)
        # XLA wants to know every shape.
        static = bool(getattr(model, "jit_compile", False))
        kind = _CompiledLoss if self.own is None else _OwnStep
        part = kind(model, flavor, data, self.sums, static, self.own, context)

        self.sums.open()
        sums = sum_over(part, data, self.size_of(part.examples), part.zeros(), static=static)
        gradients = self.sums.read(sums["weight"] if part.weighted else None)
        # A variable that no microbatch reached gets no update at all, as in a plain step.
        pairs = zip(gradients, model.trainable_variables, part.reached, strict=True)
        flavor.apply(model, *zip(*[(g, v) for g, v, reached in pairs if reached], strict=True))
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

    def __init__(self, model, flavor, data, sums, static, own, context):
        self.model, self.flavor, self.data, self.context = model, flavor, data, context
        self.sums, self.static = sums, static
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
            self.sums.add(gradients, static=self.static)
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

    def zeros(self):
        return {name: tf.constant(0.0) for name in ("weight", *self.names)}

    def __call__(self, part):
        weight = self.fraction(part)
        if self.weighted:
            weight = self.flavor.own_weight(self.model, part) / tf.cast(self.examples, tf.float32)
        with self.flavor.recording(self.model, weight) as recording:
            logs = self.own(part)
        by_id = dict(zip(map(id, recording.variables), recording.gradients, strict=True))
        gradients = [by_id.get(id(v)) for v in self.model.trainable_variables]
        logged = {name: tf.cast(logs[name], tf.float32) * weight for name in self.names}
        return self.add(gradients, {"weight": weight, **logged})

    def logs(self, sums):
        means = {name: sums[name] / sums["weight"] for name in self.names}
        return {**self.flavor.metrics_result(self.model), **means}
