"""`TokenMasker`: select tokens for prediction and replace them, in TensorFlow operations."""

from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient._errors import InputError
from keras_efficient.data._masking import Masking
from keras_efficient.data._split_mix import mixed, share_of, uniform
from keras_efficient.data._tokenizer import Tokenizer
from keras_efficient.data._word_starts import word_starts
from keras_efficient.flavor._ignored_label import IGNORED
from keras_efficient.flavor._typing import Tensor

# Uses of random numbers, which must not be the same ones.
_SELECT, _LENGTH, _REPLACE, _TOKEN = range(4)


class TokenMasker:
    """Function of a padded batch that selects and replaces tokens as `Masking` says.

    Args:
        masking: The settings.
        tokenizer: The tokenizer, with a mask token.
        fixed: Whether the number of positions follows from the length of the batch alone, for XLA,
            rather than being that of the text with the most selected tokens.

    Raises:
        InputError: The tokenizer has no mask token, or does not tell where words begin.
    """

    def __init__(self, masking: Masking, tokenizer: Tokenizer, fixed: bool):
        self.masking, self.fixed = masking, fixed
        vocabulary = tokenizer.vocabulary
        self.mask_id = tokenizer.mask_id
        if self.mask_id is None:
            raise InputError(
                "Masked language modelling needs a tokenizers.Tokenizer with a mask token, [MASK] "
                f"or <mask>. Received: {tokenizer!r}, without one. Load a model that was "
                "pretrained by masking, from a folder with its tokenizer."
            )
        special = set(tokenizer.special_tokens) | {""}
        ordinary = np.array([token not in special for token in vocabulary])
        self._count = int(ordinary.sum())
        with tf.device("/CPU:0"):
            self._ordinary = tf.constant(ordinary)
            self._random = tf.constant(np.flatnonzero(ordinary), tf.int32)
            self._begins = None
            if masking.unit != "token":
                self._begins = tf.constant(word_starts(vocabulary))

    def __call__(self, ids: Tensor, real: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Select and replace tokens.

        Args:
            ids: int32 `[batch, length]`.
            real: bool `[batch, length]`, False for padding.
            keys: uint64 `[batch]`, seeds of the texts.

        Returns:
            The ids as the model sees them; int32 `[batch, selected]`, the positions of the selected
            tokens in their order, padded with 0; and the ids that were there, padded with -100.
        """
        masking, length = self.masking, tf.shape(ids)[1]
        columns = tf.range(length)
        candidates: Any = real & tf.gather(self._ordinary, ids)
        begins: Any = candidates
        if self._begins is not None:
            before: Any = tf.pad(candidates[:, :-1], [[0, 0], [1, 0]])
            begins &= tf.gather(self._begins, ids) | ~before
        begins = tf.cast(begins, tf.int32)
        # The units are numbered in their order; for single tokens each is one.
        number, units = tf.cumsum(begins, axis=1) - 1, tf.reduce_sum(begins, 1)
        there = columns < units[:, None]
        order = tf.where(there, uniform(keys, columns, _SELECT), 2.0)
        if masking.unit == "span":
            order = self._covered(order, uniform(keys, columns, _LENGTH), there)
        wanted = tf.round(masking.mask_selection_rate * tf.cast(units, tf.float32))
        wanted = tf.where(units > 0, tf.maximum(tf.cast(wanted, tf.int32), 1), 0)
        taken = there & (ranks(order) < wanted[:, None])
        number = tf.maximum(number, 0)
        chosen = candidates & tf.gather(taken, number, batch_dims=1)
        most = None
        if self.fixed:
            most = self.most(length)
            chosen &= tf.cumsum(tf.cast(chosen, tf.int32), axis=1) <= most
        positions, slots = positions_of(chosen, most)
        labels = tf.where(slots, tf.gather(ids, positions, batch_dims=1), IGNORED)
        what = uniform(keys, columns, _REPLACE)
        if masking.unit == "span":
            # The tokens of a span have the number of the span that covered them.
            bits = tf.cast(tf.bitcast(order, tf.uint32), tf.uint64)
            what = share_of(mixed(mixed(bits) + keys[:, None]))
            what = tf.gather(what, number, batch_dims=1)
        masked = chosen & (what < masking.mask_token_rate)
        replaced = chosen & ~masked & (what < masking.mask_token_rate + masking.random_token_rate)
        drawn = uniform(keys, columns, _TOKEN) * float(self._count)
        drawn = tf.gather(self._random, tf.cast(drawn, tf.int32))
        ids = tf.where(replaced, drawn, tf.where(masked, self.mask_id, ids))
        return ids, positions, labels

    def most(self, length: Any) -> Any:
        """Return the number of positions of a batch of this length, if that is fixed.

        Words have several tokens, so that more of these are selected than the rate says in some
        texts: beyond twice the rate, the last ones are not.
        """
        words = self.masking.unit != "token"
        rate = self.masking.mask_selection_rate * (1 + words)
        if isinstance(length, int):
            return min(max(int(np.round(np.float32(rate) * np.float32(length))), 1), length)
        most = tf.cast(tf.round(rate * tf.cast(length, tf.float32)), tf.int32)
        return tf.minimum(tf.maximum(most, 1), length)

    def _covered(self, order, lengths, there):
        """Return for each word the number of the first span that covers it.

        A span begins at each word. They are laid in the order of their numbers until enough words
        are covered.
        """
        masking = self.masking
        shares = (1 - masking.geometric_p) ** np.arange(masking.max_span_length)
        limits = np.cumsum(shares / shares.sum())[:-1].astype("float32")
        lengths = 1 + tf.reduce_sum(tf.cast(lengths[..., None] >= limits, tf.int32), -1)
        found = order
        for distance in range(1, masking.max_span_length):
            reaches = tf.where(lengths > distance, order, 2.0)
            ahead = tf.pad(reaches, [[0, 0], [distance, 0]], constant_values=2.0)
            found = tf.minimum(found, ahead[:, : tf.shape(order)[1]])
        return tf.where(there, found, 2.0)


def ranks(values: Tensor) -> Tensor:
    """Return the place of each value in its sorted row, int32 `[batch, values]`."""
    return tf.argsort(tf.argsort(values, stable=True), stable=True)


def positions_of(chosen: Tensor, most: Any = None) -> tuple[Tensor, Tensor]:
    """Return the positions of the tokens that are chosen, in their order.

    Args:
        chosen: bool `[batch, length]`.
        most: Number of positions, or None for those of the text with the most, at least one.

    Returns:
        int32 `[batch, most]`, padded with 0; and bool, False for that padding.
    """
    columns, length = tf.range(tf.shape(chosen)[1]), tf.shape(chosen)[1]
    count = tf.reduce_sum(tf.cast(chosen, tf.int32), 1)
    most = tf.maximum(tf.reduce_max(count), 1) if most is None else most
    positions = tf.argsort(tf.where(chosen, columns, columns + length))[:, :most]
    slots = tf.range(most) < count[:, None]
    return tf.where(slots, positions, 0), slots
