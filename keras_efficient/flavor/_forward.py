"""Result of a forward pass: the loss, its denominator, and the weights of what it averages."""

from dataclasses import dataclass, field
from typing import Any

#: The library divided the loss by the number of examples, or by a multiple of it.
EXAMPLES = "examples"
#: The library did not divide the loss (`reduction="sum"`).
SUM = "sum"


@dataclass(frozen=True)
class LossWeights:
    """What a loss averages over: examples, or the tokens of each, by sample weights and masks.

    Attributes:
        divisor: `EXAMPLES`, `SUM` or a scalar tensor, as `Forward.weight`.
        values: Float tensor `[examples, ...]`, the loss at each position, or one of its shape.
        sample_weight: Tensor that broadcasts to `values` from the left, or None.
        mask: Tensor likewise, nonzero at positions that count, or None.
    """

    divisor: Any
    values: Any
    sample_weight: Any = None
    mask: Any = None

    @property
    def weights(self) -> Any:
        """Float32 tensor in the shape of `values`: sample weights times mask."""
        import tensorflow as tf

        weights = tf.ones_like(self.values, tf.float32)
        for factor in (self.sample_weight, self.mask):
            if factor is not None:
                weights *= _like(tf.cast(factor, tf.float32), weights.shape.rank)
        return weights

    def mean(self, values: Any) -> Any:
        """Average other values as the loss averages its own.

        Args:
            values: Float tensor `[examples, ...]`. A value per example counts as often as the
                example's positions. Of more axes than the loss has, the mean is taken first.

        Returns:
            Scalar tensor: the sum of weights times values, divided by `divisor`.
        """
        import tensorflow as tf

        weights, count = self.weights, tf.size(self.values)
        rank = min(values.shape.rank, weights.shape.rank)
        weights = tf.reduce_sum(weights, list(range(rank, weights.shape.rank)))
        values = tf.reduce_mean(values, list(range(rank, values.shape.rank)))
        weights = tf.cast(weights, values.dtype)
        # What does not count may be no number.
        values = tf.where(weights == 0, tf.zeros_like(values), values)
        total = tf.reduce_sum(weights * values)
        if self.divisor is SUM:
            return total
        divisor = count if self.divisor is EXAMPLES else self.divisor
        return tf.math.divide_no_nan(total, tf.cast(divisor, total.dtype))


def _like(tensor: Any, rank: int) -> Any:
    """Return a tensor with axes of size 1 added or removed at its end."""
    import tensorflow as tf

    while tensor.shape.rank < rank:
        tensor = tensor[..., None]
    # Without axes, `tf.squeeze` takes all.
    axes = list(range(rank, tensor.shape.rank))
    return tf.squeeze(tensor, axes) if axes else tensor


@dataclass(frozen=True)
class Forward:
    """One forward pass of a model on a batch or microbatch, as the training step needs it.

    Attributes:
        loss: Scalar tensor, the compiled loss as the library reduces it, without `extra` and
            `added`; None if there is no loss but `added`.
        extra: Scalar tensor or None: regularizers of weights, the same for every microbatch.
        weight: The denominator of `loss`: `EXAMPLES`, `SUM`, or a scalar tensor (the number of
            unmasked tokens or the sum of the sample weights).
        y_pred: Outputs of the model.
        added: Scalar tensor or None: terms of `add_loss` and activity regularizers.
        weights: List of the `LossWeights` of the compiled losses; empty if they are unknown.
    """

    loss: Any
    extra: Any
    weight: Any
    y_pred: Any = None
    added: Any = None
    weights: list = field(default_factory=list)


def common_weight(weights: list) -> Any:
    """Return the one denominator of a model's losses.

    Raises:
        ValueError: The losses have different denominators.
    """
    if len(weights) == 1:
        return weights[0]
    kinds = {
        weight if isinstance(weight, str) else "a mask or sample weights" for weight in weights
    }
    if len(kinds) == 1 and (kind := kinds.pop()) in (EXAMPLES, SUM):
        return kind
    raise ValueError(
        "Accumulation over a model with several losses needs one way of averaging for all of "
        f"them. Received losses averaged by: {sorted(kinds) or 'masks of their own'}. Give the "
        "losses the same `reduction` and no masks, or train without `ke.accumulate`."
    )
