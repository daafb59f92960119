"""How a batch is split into microbatches, and how much each of them counts."""

from dataclasses import dataclass
from numbers import Real
from typing import Any

import tensorflow as tf

#: What KerasHub, Hugging Face and Model Garden call the mask of real tokens.
MASKS = ("padding_mask", "attention_mask", "input_mask")
#: The label that Hugging Face's losses leave out.
IGNORED = -100


@dataclass(frozen=True)
class BatchSplit:
    """The setting of `ke.accumulate`, whose docstring explains the fields."""

    microbatches: int | None = None
    microbatch_size: int | str | None = None
    weight: Any = None
    normalise: Any = True

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
                f"sample_weight). Received: {self.weight!r}. None takes what the loss itself "
                "divides by."
            )
        number = isinstance(self.normalise, Real) and self.normalise > 0
        if self.normalise is not True and (not number or isinstance(self.normalise, bool)):
            raise ValueError(
                "`normalise` must be True (divide by the sum of weights) or a positive number to "
                f"divide by instead. Received: {self.normalise!r}."
            )

    @property
    def auto(self):
        return self.microbatch_size == "auto"

    def size_of(self, examples, halvings):
        """The examples per slice of a (per-replica) batch: an int where they are known."""
        if self.auto:
            known = isinstance(examples, int) and isinstance(halvings, int)
            parts = 2**halvings if known else tf.bitwise.left_shift(1, halvings)
        elif self.microbatch_size is not None:
            return self.microbatch_size
        else:
            known, parts = isinstance(examples, int), self.microbatches
            if known and 0 < examples < parts:
                raise ValueError(
                    "A batch cannot be split into more microbatches than it has examples. "
                    f"Received: microbatches={parts} for a batch of {examples} (per device). Use a "
                    "larger batch, fewer microbatches, or `microbatch_size`."
                )
        size = -(-examples // parts)
        return max(1, size) if known else tf.maximum(1, size)

    def weight_of(self, data, examples):
        """How much a slice counts, a scalar, or None where the loss is to tell."""
        if self.weight is None:
            return None
        if self.weight == "examples":
            return examples
        x, y, sample_weight = (
            (*data, None, None)[:3] if isinstance(data, tuple) else (data, None, None)
        )
        weigh = tokens if self.weight == "tokens" else self.weight
        return tf.convert_to_tensor(weigh(x, y, sample_weight))


def tokens(x, y=None, sample_weight=None):
    """The number of tokens that count: what `weight="tokens"` weighs a slice by.

    Labels per token other than -100, where there are any (`y`, or "labels" in `x`); else the real
    tokens of the mask in `x`. Times the sample weights, if they are per token.

    Raises:
        ValueError: there are neither labels per token nor a mask.
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
