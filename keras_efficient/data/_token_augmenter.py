"""`TokenAugmenter`: apply augmentations to batches, and keep labels with their tokens."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient._errors import InputError
from keras_efficient.data._augmentation import Augmentation, TokenRows
from keras_efficient.data._split_mix import mixed
from keras_efficient.data._tokenizer import Tokenizer
from keras_efficient.data._word_starts import word_starts
from keras_efficient.flavor._ignored_label import IGNORED
from keras_efficient.flavor._typing import Tensor

#: Special tokens that stand for ordinary words.
_UNKNOWN = ("[UNK]", "<unk>")


class TokenAugmenter:
    """Function of a padded batch that applies augmentations one after the other.

    Args:
        augmentations: The augmentations.
        tokenizer: The tokenizer.
        labels: What the labels of the texts are: "text", labels of whole texts or none; "token",
            of whose labelled words each is changed as a whole, whatever `unit` is; or "span",
            answers in the second texts, which are left as they are.

    Raises:
        InputError: They are no augmentations, or the tokenizer has not what they need.
    """

    def __init__(self, augmentations: Sequence[Any], tokenizer: Tokenizer, labels: str = "text"):
        self._labels = labels
        wrong = [other for other in augmentations if not isinstance(other, Augmentation)]
        if wrong:
            raise InputError(
                "`augmentations` must be a list of augmentations, such as "
                f"[ke.data.ShuffleTokens()]. Received: {wrong[0]!r:.60} in it. Leave it out."
            )
        vocabulary = tokenizer.vocabulary
        if not vocabulary:
            raise InputError(
                "Augmentations need a tokenizers.Tokenizer, to know special tokens. Received: "
                f"{tokenizer!r}. Give a tokenizer of that library, or change the texts themselves."
            )
        special = {*tokenizer.special_tokens, ""}.difference(_UNKNOWN)
        ordinary = np.array([token not in special for token in vocabulary])
        augmentations = [a.prepare(tokenizer, ordinary) for a in augmentations]
        if labels == "token":
            augmentations = [dataclasses.replace(a, unit="word") for a in augmentations]
        self._augmentations = augmentations
        starts = ordinary
        if labels != "token" and any(a.unit == "word" for a in augmentations):
            starts = word_starts(vocabulary)
        with tf.device("/CPU:0"):
            self._ordinary, self._starts = tf.constant(ordinary), tf.constant(starts)

    def __call__(
        self, ids: Tensor, real: Tensor, segments: Tensor, keys: Tensor, labels: Tensor
    ) -> tuple[TokenRows, Tensor]:
        """Change the tokens of a batch.

        Args:
            ids: int32 `[batch, length]`.
            real: bool `[batch, length]`, False for padding.
            segments: int32 `[batch, length]`, 1 for second texts, otherwise 0.
            keys: uint64 `[batch]`, seeds of the texts.
            labels: int32 `[batch, length]` of tokens, -100 for those without one; or int32
                `[batch, 3]` of spans, whose first two numbers are places; otherwise anything.

        Returns:
            The changed rows; and the labels, of tokens and spans with the places of their tokens.
        """
        free: Any = real & tf.gather(self._ordinary, ids)
        begins: Any = free & tf.gather(self._starts, ids)
        columns = tf.range(tf.shape(ids)[1])
        found: Any = labels
        if self._labels == "token":
            begins = free & (found != IGNORED)
            free &= tf.cumsum(tf.cast(begins, tf.int32), axis=1) > 0
        elif self._labels == "span":
            free &= segments == 0
            begins &= free
        if self._labels != "token":
            # The first token after a special one begins a word, whatever it is.
            before: Any = tf.pad(free[:, :-1], [[0, 0], [1, 0]])
            begins |= free & ~before
        rows = TokenRows(ids, real, free, begins, segments, tf.zeros_like(ids) + columns)
        for augmentation in self._augmentations:
            keys = mixed(keys)
            rows = augmentation(rows, keys)
        if self._labels == "token":
            found = tf.gather(found, rows.source, batch_dims=1)
            found = tf.where(rows.real, found, IGNORED)
        elif self._labels == "span":
            source: Any = rows.source[:, None]
            here: Any = source == found[:, :2, None]
            places = tf.reduce_sum(tf.where(here & rows.real[:, None], columns, 0), -1)
            found = tf.concat([places, found[:, 2:]], 1)
        return rows, found
