"""`ShuffleTokens`: put the tokens of some texts into a random order ("confusion training")."""

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient._errors import InputError
from keras_efficient.data._augmentation import (
    CHANGE,
    Augmentation,
    TokenRows,
    Units,
    check_share,
)
from keras_efficient.flavor._typing import Tensor


@dataclasses.dataclass(frozen=True)
class ShuffleTokens(Augmentation):
    """Put the tokens of some texts into a random order, anew in each epoch.

    A model that also learns from shuffled texts ("confusion training") relies less on the order of
    words. With a `window` the order changes only locally, as by a noisy typist; with a small `rate`
    a few words change places ("random swap").

    Args:
        share: Share of the texts that are shuffled. Default: 0.15.
        rate: Share of the units of such a text that change places with each other. Default: 1, all.
        window: Of the units that change places, each moves by at most so many of them. Default:
            None, anywhere in its text.
        unit: "token", or "word" to keep the tokens of a word together. Default: "token".

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
        ...     augmentations=[ke.data.ShuffleTokens(share=1.0)],
        ... )
        >>> features = next(iter(data))
        >>> int(tf.reduce_sum(features["padding_mask"]))
        8

    Reference:
        Wei & Zou 2019, "EDA" (random swap); Lample et al. 2018, "Unsupervised Machine Translation
        Using Monolingual Corpora Only" (the window); Sinha et al. 2021, "Masked Language Modeling
        and the Distributional Hypothesis: Order Word Matters Pre-training for Little".
    """

    share: float = 0.15
    rate: float = 1.0
    window: int | None = None
    unit: str = "token"

    def __post_init__(self):
        super().__post_init__()
        check_share(self, "rate")
        if self.window is not None and (type(self.window) is not int or self.window < 1):
            raise InputError(
                "`window` must be an int of 1 unit or more, or None. Received: "
                f"{self.window!r:.60}. Give for example 3."
            )

    def apply(self, rows: TokenRows, keys: Tensor) -> TokenRows:
        """Return rows in which the tokens of each text are shuffled."""
        units = Units.of(rows, self.unit)
        chosen: Any = units.chosen(keys, self.rate) if self.rate < 1 else units.there
        draws: Any = units.uniform(keys, CHANGE)
        if self.window is not None:
            place = tf.cast(tf.cumsum(tf.cast(chosen, tf.int32), axis=1), tf.float32)
            draws = place + draws * (self.window + 1.0)
        # Where the chosen units stand, and which of them come there; the others keep their order.
        places = tf.argsort(tf.cast(~chosen, tf.int32), stable=True)
        arriving = tf.argsort(tf.where(chosen, draws, np.inf), stable=True)
        key = tf.gather(places, tf.argsort(arriving, stable=True), batch_dims=1)
        key = tf.where(rows.free, units.of_tokens(key), -1)
        order = tf.argsort(key, stable=True)
        # Tokens stay between the special tokens that they stand between.
        runs = tf.cumsum(tf.cast(~rows.free, tf.int32), axis=1)
        runs = tf.gather(runs, order, batch_dims=1)
        order = tf.gather(order, tf.argsort(runs, stable=True), batch_dims=1)
        return rows.moved(order)
