"""Split of a batch into microbatches, and the weight of each."""

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import tensorflow as tf

from keras_efficient.flavor._ignored_label import IGNORED

#: Names of the mask of real tokens in KerasHub, Hugging Face and Model Garden.
MASKS = ("padding_mask", "attention_mask", "input_mask")


@dataclass(frozen=True)
class BatchSplit:
    """Settings of `ke.accumulate`, which documents the fields."""

    microbatches: int | None = None
    microbatch_size: int | str | None = None
    weight: str | Callable | None = None
    normalise: bool | float = True
    added_losses: str = "mean"

    def __post_init__(self):
        given = [v for v in (self.microbatches, self.microbatch_size) if v is not None]
        if len(given) != 1:
            raise ValueError(
                "Give `microbatches` (slices per batch) or `microbatch_size` (examples per slice)"
                f"{', not both' if given else ''}. Received: microbatches={self.microbatches!r}, "
                f"microbatch_size={self.microbatch_size!r}."
            )
        for name in ("microbatches", "microbatch_size"):
            value = getattr(self, name)
            if value is None or (name == "microbatch_size" and value == "auto"):
                continue
            if type(value) is not int or value < 1:
                raise ValueError(
                    f"`{name}` must be a positive int. Received: {value!r}. "
                    "Use ke.accumulate(model, None) to switch accumulation off."
                )
        if not (self.weight in (None, "examples", "tokens") or callable(self.weight)):
            raise ValueError(
                "`weight` must be None, 'examples', 'tokens' or a function of (x, y, "
                f"sample_weight). Received: {self.weight!r}. None uses the loss's own divisor."
            )
        number = isinstance(self.normalise, Real) and self.normalise > 0
        if self.normalise is not True and (not number or isinstance(self.normalise, bool)):
            raise ValueError(
                "`normalise` must be True (divide by the sum of weights) or a positive number to "
                f"divide by instead. Received: {self.normalise!r}."
            )

        if self.added_losses not in ("mean", "sum"):
            raise ValueError(
                "`added_losses` says whether `add_loss` terms are a 'mean' over the examples or a "
                f"'sum'. Received: {self.added_losses!r}."
            )

    @property
    def auto(self) -> bool:
        """Whether the size is found by halving when memory runs out."""
        return self.microbatch_size == "auto"

    def size_of(self, examples: Any, halvings: Any) -> Any:
        """Return the examples per microbatch of a replica's batch, an int if they are known."""
        if self.auto:
            known = isinstance(examples, int) and isinstance(halvings, int)
            parts = 2**halvings if known else tf.bitwise.left_shift(1, halvings)
        elif self.microbatch_size is not None:
            return self.microbatch_size
        else:
            known, parts = isinstance(examples, int), self.microbatches or 1
            if known and 0 < examples < parts:
                raise ValueError(
                    "A batch cannot be split into more microbatches than it has examples. "
                    f"Received: microbatches={parts} for a batch of {examples} (per device). Use a "
                    "larger batch, fewer microbatches, or `microbatch_size`."
                )
        size = -(-examples // parts)
        return max(1, size) if known else tf.maximum(1, size)

    def weight_of(self, data, examples):
        """Return the weight of a microbatch, a scalar; None if the loss determines it."""
        if self.weight is None:
            return None
        if self.weight == "examples":
            return examples
        x, y, sample_weight = (
            (*data, None, None)[:3] if isinstance(data, tuple) else (data, None, None)
        )
        weigh: Any = tokens if self.weight == "tokens" else self.weight
        return tf.convert_to_tensor(weigh(x, y, sample_weight))


def tokens(x, y=None, sample_weight=None):
    """Return the number of tokens in the loss, the microbatch weight for `weight="tokens"`.

    These are the labels other than -100 if there are labels per token, in `y` or as "labels" in
    `x`; else the real tokens of the mask in `x`. Sample weights per token multiply them.

    Raises:
        ValueError: if there are neither labels per token nor a mask.
    """
    labels = y if y is not None else x.get("labels") if isinstance(x, dict) else None
    labels = labels.get("labels") if isinstance(labels, dict) else labels
    masks = [x[name] for name in MASKS if x.get(name) is not None] if isinstance(x, dict) else []
    if labels is not None and labels.dtype.is_integer and labels.shape.rank == 2:
        counted = tf.cast(labels != IGNORED, tf.float32)
    elif masks:
        counted = tf.cast(tf.cast(masks[0], tf.bool), tf.float32)
    else:
        raise ValueError(
            "weight='tokens' needs int labels [examples, tokens] (padded with -100) or a mask "
            f"among the features, called one of {MASKS}. Received: labels {labels!r} and features "
            f"{sorted(x) if isinstance(x, dict) else x!r}. Give a function of (x, y, "
            "sample_weight)."
        )
    if sample_weight is not None and sample_weight.shape.rank == counted.shape.rank:
        counted *= tf.cast(sample_weight, tf.float32)
    return tf.reduce_sum(counted)
