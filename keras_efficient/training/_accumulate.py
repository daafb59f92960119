"""Gradient accumulation: the memory of a small batch, the update of a large one."""

from collections.abc import Callable

from keras_efficient import flavor as flavors
from keras_efficient.flavor import Model
from keras_efficient.training import _train_step_hook as train_step_hook
from keras_efficient.training._batch_split import BatchSplit


def accumulate(
    model: Model,
    microbatches: int | None = None,
    *,
    microbatch_size: int | str | None = None,
    weight: str | Callable | None = None,
    normalise: bool | float = True,
    added_losses: str = "mean",
) -> Model:
    """Split each training batch into microbatches and make one update from all of them.

    Each microbatch gets a forward and a backward pass of its own. The gradients of the weighted
    losses and the weights are summed over microbatches, then over replicas in one all-reduce,
    divided once, and applied once:

        g = Σᵢ wᵢ ∇Lᵢ / Σᵢ wᵢ

    The weight `wᵢ` is what the loss divided by in microbatch i: its examples, unmasked tokens or
    sample weights. k microbatches on any number of replicas therefore equal one large batch to
    floating-point tolerance, and one update is one step for `iterations`, schedules, callbacks
    and metrics. Two things still depend on the microbatch: the statistics of BatchNormalization
    (keras#16633) and the random draws of dropout.

    Call it before or after `compile`. It takes effect with the next `fit`, keeps the model's loss,
    metrics and `train_step`, and works under every `tf.distribute` strategy that `fit` accepts. A
    second call replaces the setting; `ke.accumulate(model, None)` removes it.

    Args:
        model: a Keras 3 or tf_keras model.
        microbatches: int >= 1, the number of microbatches per batch of a replica. A batch of n
            examples that it does not divide is split into microbatches of
            ceil(n / microbatches) examples and a smaller last one. Default: None. Give either
            this or `microbatch_size`.
        microbatch_size: int >= 1, examples per microbatch; or "auto", the largest that fits: it
            starts at a replica's whole batch and is halved whenever the device runs out of memory
            (`ResourceExhaustedError`), after which the batch is repeated. Default: None.
        weight: the weight wᵢ of a microbatch, for a custom loss whose divisor Keras does not
            know. "examples"; "tokens", the labels other than -100, or else the unmasked tokens;
            or a function `(x, y, sample_weight) -> scalar`. Default: None, the loss's own divisor.
        normalise: True divides by Σᵢ wᵢ; a positive number divides by that number instead, such
            as a fixed token budget, so that fuller batches count more. Default: True.
        added_losses: whether the terms that layers add by `add_loss` are means or sums over the
            examples, which the training step cannot tell. "mean", as activity regularisers are in
            both libraries: they are weighted by examples, whatever weights the loss. "sum": they
            are added up over microbatches and replicas. In a model without another loss, `weight`
            applies to them. Regularisers of weights count once. A custom `compute_loss` or
            `train_step` that adds the terms itself is not affected. Default: "mean".

    Returns:
        The model.

    Raises:
        ValueError: if both or neither of `microbatches` and `microbatch_size` are given, or a
            value is not accepted; in `fit`, if a batch of known size is smaller than
            `microbatches`.
        TypeError: if `model` is not a Keras model.

    Examples:
        >>> model = ke.accumulate(model, microbatch_size=8)
        >>> history = model.fit(dataset.batch(256), verbose=0)  # 32 microbatches, one update

    Reference:
        Keras 3's `gradient_accumulation_steps`
        (https://keras.io/api/optimizers/), which averages the means of microbatches and so differs
        as soon as microbatches have unequal weights (traps 1 to 7 in docs/architecture.md).
    """
    flavors.of(model)
    split = None
    if microbatches is not None or microbatch_size is not None:
        split = BatchSplit(microbatches, microbatch_size, weight, normalise, added_losses)
    train_step_hook.attach(model).split = split
    train_step_hook.detach_if_idle(model)
    return model
