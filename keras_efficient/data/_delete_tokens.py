"""`DeleteTokens`: leave out random tokens of texts."""

import dataclasses

import tensorflow as tf

from keras_efficient._errors import InputError
from keras_efficient.data._augmentation import (
    CHANGE,
    CHOOSE,
    Augmentation,
    TokenRows,
    Units,
    check_share,
)
from keras_efficient.flavor._typing import Tensor


@dataclasses.dataclass(frozen=True)
class DeleteTokens(Augmentation):
    """Leave out random tokens, or one run of tokens, anew in each epoch.

    At least one unit of each text is left. The batch keeps its length: the end of a text that
    became shorter is padding.

    Args:
        rate: Share of the units that are left out. Default: 0.1.
        span: Whether they follow one another ("cutoff"). Default: False, they are anywhere.
        share: Share of the texts that are changed. Default: 1, all.
        unit: "token" or "word". Default: "token".

    Raises:
        InputError: An argument is out of its range.

    Examples:
        >>> tokenizer = ke.data.Tokenizer.from_directory(
        ...     "models/all-MiniLM-L6-v2", inputs=ke.data.KERASHUB
        ... )
        >>> data = ke.data.text(
        ...     ["a fine film with a plot"],
        ...     tokenizer,
        ...     batch_size=1,
        ...     augmentations=[ke.data.DeleteTokens(rate=0.5)],
        ... )
        >>> int(tf.reduce_sum(next(iter(data))["padding_mask"]))
        5

    Reference:
        Wei & Zou 2019, "EDA" (random deletion); Shen et al. 2020, "A Simple but Tough-to-Beat Data
        Augmentation Approach for Natural Language Understanding and Generation" (cutoff).
    """

    rate: float = 0.1
    span: bool = False
    share: float = 1.0
    unit: str = "token"

    def __post_init__(self):
        super().__post_init__()
        check_share(self, "rate")
        if not isinstance(self.span, bool):
            raise InputError(
                f"`span` must be a bool. Received: {self.span!r:.60}. Give True or False."
            )

    def apply(self, rows: TokenRows, keys: Tensor) -> TokenRows:
        """Return rows without the chosen tokens."""
        units = Units.of(rows, self.unit)
        draws = units.uniform(keys, CHOOSE)
        if self.span:
            wanted = units.wanted(keys, self.rate)[:, None]
            columns = tf.range(tf.shape(draws)[1])
            starts = tf.cast(units.count[:, None] - wanted + 1, tf.float32)
            start = tf.cast(units.uniform(keys, CHANGE)[:, :1] * starts, tf.int32)
            chosen = (columns >= start) & (columns < start + wanted)
        else:
            # By the same draws.
            chosen = units.chosen(keys, self.rate)
        chosen = units.spared(units.there & chosen, draws)
        gone = rows.free & units.of_tokens(chosen)
        left = rows.real & ~gone
        moved = rows.moved(tf.argsort(tf.cast(~left, tf.int32), stable=True))
        real = tf.range(tf.shape(left)[1]) < tf.reduce_sum(tf.cast(left, tf.int32), 1)[:, None]
        return moved._replace(real=real, free=moved.free & real, begins=moved.begins & real)
