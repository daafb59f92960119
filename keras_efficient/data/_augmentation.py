"""`Augmentation`: a random change of the tokens of texts, made anew in each epoch."""

import abc
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_efficient._errors import InputError
from keras_efficient.data._mask_tokens import positions_of, ranks
from keras_efficient.data._split_mix import mixed, uniform
from keras_efficient.data._tokenizer import Tokenizer
from keras_efficient.flavor._typing import Tensor

UNITS = ("token", "word")
# Uses of random numbers, which must not be the same ones.
CHOOSE, CHANGE, ROUND, _SHARE = range(4)


class TokenRows(NamedTuple):
    """A padded batch of texts whose tokens are changed.

    Attributes:
        ids: int32 `[batch, length]`.
        real: bool `[batch, length]`, False for padding.
        free: bool `[batch, length]`, whether a token may be changed: no special token, no padding.
        begins: bool `[batch, length]`, whether a free token begins a word.
        segments: int32 `[batch, length]`, 1 for the second text of a pair, otherwise 0.
        source: int32 `[batch, length]`, where each token stood before the first change.
    """

    ids: Tensor
    real: Tensor
    free: Tensor
    begins: Tensor
    segments: Tensor
    source: Tensor

    def moved(self, order: Tensor) -> "TokenRows":
        """Return the rows with the token `order[b, i]` of row b at place i."""
        return TokenRows(*(tf.gather(field, order, batch_dims=1) for field in self))

    def where(self, chosen: Tensor, other: "TokenRows") -> "TokenRows":
        """Return these rows where `chosen`, bool `[batch]`, holds, and the other ones elsewhere."""
        pairs = zip(self, other, strict=True)
        return TokenRows(*(tf.where(chosen[:, None], new, old) for new, old in pairs))


class Units(NamedTuple):
    """The units of texts that are chosen and moved as a whole, tokens or words.

    Attributes:
        number: int32 `[batch, length]`, the number of the unit of each free token.
        there: bool `[batch, units]`, False for rows that have fewer units.
        segments: int32 `[batch, units]`, the segment of each.
        count: int32 `[batch]`, the number of units.
    """

    number: Tensor
    there: Tensor
    segments: Tensor
    count: Tensor

    @classmethod
    def of(cls, rows: TokenRows, unit: str) -> "Units":
        """Return the units of rows, "token" or "word"."""
        begins = rows.free if unit == "token" else rows.begins
        number = tf.maximum(tf.cumsum(tf.cast(begins, tf.int32), axis=1) - 1, 0)
        first, there = positions_of(begins)
        segments = tf.gather(rows.segments, first, batch_dims=1)
        return cls(number, there, segments, tf.reduce_sum(tf.cast(begins, tf.int32), 1))

    def of_tokens(self, values: Tensor) -> Tensor:
        """Return values of units, `[batch, units]`, for each token, `[batch, length]`."""
        return tf.gather(values, self.number, batch_dims=1)

    def uniform(self, keys: Tensor, use: int) -> Tensor:
        """Return a random number in [0, 1) for each unit, float32 `[batch, units]`."""
        return uniform(keys, tf.range(tf.shape(self.there)[1]), use)

    def wanted(self, keys: Tensor, rate: float) -> Tensor:
        """Return `rate` of the number of units, rounded up or down at random, int32 `[batch]`."""
        number = rate * tf.cast(self.count, tf.float32)
        rounding = uniform(keys, tf.range(1), ROUND)[:, 0]
        return tf.minimum(tf.cast(number + rounding, tf.int32), self.count)

    def spared(self, chosen: Tensor, draws: Tensor) -> Tensor:
        """Return the chosen units but one of each text of which all are, bool `[batch, units]`.

        That one has the largest of the draws. Without it, a text could be deleted as a whole.
        """
        columns = tf.range(tf.shape(draws)[1])
        for segment in (0, 1):
            here: Any = self.there & (self.segments == segment)
            whole = tf.reduce_all(chosen | ~here, axis=1)
            largest = tf.argmax(tf.where(here, draws, -1.0), axis=1, output_type=tf.int32)
            chosen &= ~(here & whole[:, None] & (columns == largest[:, None]))
        return chosen

    def chosen(self, keys: Tensor, rate: float) -> Tensor:
        """Return a random choice of about `rate` of the units, bool `[batch, units]`."""
        return self.there & (
            ranks(tf.where(self.there, self.uniform(keys, CHOOSE), 2.0))
            < self.wanted(keys, rate)[:, None]
        )


class Augmentation(abc.ABC):
    """A random change of the tokens of training texts, anew in each epoch.

    Pass instances as `augmentations=` of `ke.data.text`. A change depends only on the seed of the
    dataset, the epoch, the text and the position: not on the order of the texts, the batch size, or
    how batches are divided among workers, and not on whether a run was interrupted. It is made in
    TensorFlow operations. Special tokens stay where they are, and batches keep their shapes.

    Subclasses define `apply`. They are frozen dataclasses with these attributes:

    Attributes:
        share: Share of the texts that are changed in an epoch.
        unit: What is changed as a whole: "token", or "word", a token that begins a word and those
            that continue it, as the vocabulary marks them.

    Examples:
        >>> import dataclasses
        >>> @dataclasses.dataclass(frozen=True)
        ... class Repeat(ke.data.Augmentation):
        ...     share: float = 1.0
        ...     unit: str = "token"
        ...
        ...     def apply(self, rows, keys):
        ...         before = tf.pad(rows.ids[:, :-1], [[0, 0], [1, 0]])
        ...         return rows._replace(ids=tf.where(rows.free, before, rows.ids))
        >>> Repeat().share
        1.0

    Reference:
        Feng et al. 2021, "A Survey of Data Augmentation Approaches for NLP".
    """

    share: float = 1.0
    unit: str = "token"

    @abc.abstractmethod
    def apply(self, rows: TokenRows, keys: Tensor) -> TokenRows:
        """Return the changed rows, of the same shape.

        Args:
            rows: The texts.
            keys: uint64 `[batch]`, seeds of the texts.
        """

    def prepare(self, tokenizer: Tokenizer, ordinary: np.ndarray) -> "Augmentation":
        """Return the augmentation for the texts of a tokenizer; by default itself.

        Args:
            tokenizer: The tokenizer.
            ordinary: bool `[vocabulary]`, False for special tokens.
        """
        return self

    def __call__(self, rows: TokenRows, keys: Tensor) -> TokenRows:
        """Return the rows, of which `share` are changed."""
        keys = mixed(keys)
        changed = self.apply(rows, keys)
        return changed.where(uniform(keys, tf.range(1), _SHARE)[:, 0] < self.share, rows)

    def __post_init__(self):
        check_share(self, "share")
        if self.unit not in UNITS:
            raise InputError(
                f"`unit` must be one of {', '.join(UNITS)}. Received: {self.unit!r:.60}. Choose "
                "one."
            )


def check_share(obj: Any, name: str) -> None:
    """Require a field that is a share.

    Raises:
        InputError: It is not a number above 0 and at most 1.
    """
    value = getattr(obj, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise InputError(
            f"`{name}` must be a share, above 0 and at most 1. Received: {value!r:.60}. Give for "
            "example 0.1."
        )
