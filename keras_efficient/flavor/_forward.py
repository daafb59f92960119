"""Result of a forward pass: the loss and its denominator."""

from dataclasses import dataclass
from typing import Any

#: The library divided the loss by the number of examples, or by a multiple of it.
EXAMPLES = "examples"
#: The library did not divide the loss (`reduction="sum"`).
SUM = "sum"


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
    """

    loss: Any
    extra: Any
    weight: Any
    y_pred: Any = None
    added: Any = None


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
