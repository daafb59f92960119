"""`ReplaceTokens`: replace random tokens of texts."""

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
from keras_efficient.data._split_mix import uniform
from keras_efficient.data._tokenizer import Tokenizer
from keras_efficient.flavor._typing import Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class ReplaceTokens(Augmentation):
    """Replace random tokens by the mask token, by random tokens, or by others of a table.

    The tokens to replace are chosen anew in each epoch. The labels stay what they are: this is
    regularisation, other than `ke.data.Masking`, by which a model learns to predict what was there.

    Args:
        rate: Share of the units that are replaced. Default: 0.1.
        by: "mask", the mask token; "random", any ordinary token of the vocabulary; or candidates
            that are equally probable: int `[candidates]` for all tokens, or int
            `[vocabulary, candidates]` for each token, such as its synonyms. Default: "mask".
        share: Share of the texts that are changed. Default: 1, all.
        unit: "token" or "word", all of whose tokens are replaced. Default: "token".

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
        ...     augmentations=[ke.data.ReplaceTokens(rate=0.5)],
        ... )
        >>> ids = next(iter(data))["token_ids"]
        >>> int(tf.math.count_nonzero(ids == tokenizer.mask_id))
        3

    Reference:
        Xie et al. 2017, "Data Noising as Smoothing in Neural Network Language Models" (by random
        tokens); Jiao et al. 2020, "TinyBERT" (by neighbours among the embeddings).
    """

    rate: float = 0.1
    by: Any = "mask"
    share: float = 1.0
    unit: str = "token"

    def __post_init__(self):
        super().__post_init__()
        check_share(self, "rate")
        if isinstance(self.by, str) and self.by in ("mask", "random"):
            return
        table = np.asarray(self.by)
        if table.ndim not in (1, 2) or table.dtype.kind not in "iu" or not table.size:
            raise InputError(
                '`by` must be "mask", "random" or tokens, int [candidates] or [vocabulary, '
                f"candidates]. Received: {self.by!r:.60}. Give one of these."
            )
        object.__setattr__(self, "by", table.astype(np.int32))

    def prepare(self, tokenizer: Tokenizer, ordinary: np.ndarray) -> Augmentation:
        """Return the augmentation with the tokens that replace others."""
        vocabulary = len(ordinary)
        if isinstance(self.by, str):
            if self.by == "mask" and tokenizer.mask_id is None:
                raise InputError(
                    "Replacing by the mask token needs a tokenizer with one, [MASK] or <mask>. "
                    f"Received: {tokenizer!r}, without it. Give by='random'."
                )
            found = [tokenizer.mask_id] if self.by == "mask" else np.flatnonzero(ordinary)
            return dataclasses.replace(self, by=np.asarray(found, np.int32))
        outside = self.by.min() < 0 or self.by.max() >= vocabulary
        if outside or (self.by.ndim == 2 and len(self.by) != vocabulary):
            raise InputError(
                f"`by` must have tokens of the tokenizer, from 0 to {vocabulary - 1}, and a table "
                f"a row for each. Received: an array {list(self.by.shape)} with tokens from "
                f"{self.by.min()} to {self.by.max()}. Make it for this tokenizer."
            )
        return self

    def apply(self, rows: TokenRows, keys: Tensor) -> TokenRows:
        """Return rows in which the chosen tokens are replaced."""
        units = Units.of(rows, self.unit)
        chosen = rows.free & units.of_tokens(units.chosen(keys, self.rate))
        draws: Any = uniform(keys, tf.range(tf.shape(rows.ids)[1]), CHANGE)
        number = tf.cast(draws * float(self.by.shape[-1]), tf.int32)
        if self.by.ndim == 1:
            new = tf.gather(tf.constant(self.by), number)
        else:
            new = tf.gather_nd(tf.constant(self.by), tf.stack([rows.ids, number], -1))
        return rows._replace(ids=tf.where(chosen, new, rows.ids))
