"""Accumulate gradients over microbatches: a small batch's memory, a large batch's update."""

from keras_efficient import flavor as flavors
from keras_efficient.training import _train_step_hook as train_step_hook
from keras_efficient.training._batch_split import BatchSplit


def accumulate(model, microbatches=None, *, microbatch_size=None, weight=None, normalise=True):
    """Make every training step of `model` run over microbatches and update once.

    A batch of `n` examples is split into slices. Each goes forward and backward by itself; the
    sums of the weighted losses' gradients and of their weights are kept, summed over replicas in
    one all-reduce, divided once, and applied once:

        g = Σᵢ wᵢ ∇Lᵢ / Σᵢ wᵢ

    where `wᵢ` is what the loss divided by in microbatch i (examples, unmasked tokens, sample
    weights). So k microbatches on any number of replicas equal one large batch to float tolerance,
    and one update is one step for `iterations`, schedules, callbacks and metrics. What sees the
    batch as a whole still sees microbatches: BatchNormalization's statistics (keras#16633) and the
    random draws of dropout.

    Applied before or after `compile`; works from the next `fit` on, with the model's own loss,
    metrics and `train_step`, under any `tf.distribute` strategy that `fit` accepts. Applying it
    again replaces the setting; `ke.accumulate(model, None)` takes it away.

    Args:
        model: a Keras 3 or tf_keras model.
        microbatches: int >= 1, slices per batch of a replica (the last may be smaller; a batch
            that does not divide gives slices of ceil(n / microbatches) examples).
        microbatch_size: int >= 1, examples per slice, or "auto": as many as fit. Starts with the
            whole batch of a replica, and halves whenever the device runs out of memory
            (`ResourceExhaustedError`), doing the same batch again. Give one of the two.
        weight: how much microbatch i counts, `wᵢ`: None (default), what the loss itself divides
            by; "examples"; "tokens" (labels other than -100, or else unmasked tokens); or a
            function `(x, y, sample_weight) -> scalar`. For a loss of your own that averages over
            something Keras does not know of.
        normalise: True (default) divides by Σᵢ wᵢ; a positive number divides by that instead (a
            fixed token budget: fuller batches then count more).

    Returns:
        The model.

    Raises:
        ValueError: both or neither given, not a positive int, an unknown `weight` or `normalise`;
            in `fit`, a batch smaller than `microbatches`, where its size is known.
        TypeError: `model` is no Keras model.

    Example:
        >>> ke.accumulate(model, microbatch_size=8)
        >>> model.fit(dataset.batch(256))       # 32 microbatches, one update

    Reference:
        Keras 3's `gradient_accumulation_steps` averages microbatch means, which is another number
        as soon as microbatches differ in weight (traps 1-7 in docs/architecture.md).
    """
    flavors.of(model)
    split = None
    if microbatches is not None or microbatch_size is not None:
        split = BatchSplit(microbatches, microbatch_size, weight, normalise)
    train_step_hook.attach(model).split = split
    train_step_hook.detach_if_idle(model)
    return model
