"""`PairTokenizer`: a BERT tokenizer of pairs of texts in TensorFlow operations."""

import json
from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient._errors import InputError
from keras_efficient.data._tokenizer import Tokenizer
from keras_efficient.exporters.tokenizer_ops.text_tokenizer import TextTokenizer
from keras_efficient.exporters.tokenizer_ops.wordpiece import pair_template


class PairTokenizer(TextTokenizer):
    """BERT tokenizer of pairs of texts, with the ids and segments of `Tokenizer.encode_pairs`.

    Args:
        tokenizer: as for `TextTokenizer`, with a template for pairs.
        max_length: as for `TextTokenizer`, for a pair. Default: None.

    Raises:
        InputError: as `TextTokenizer`, or the tokenizer cannot join two texts.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int | None = None):
        super().__init__(tokenizer, max_length)
        self._parts = pair_template(json.loads(tokenizer.serialized or "{}"))
        special = sum(isinstance(part, int) for part, _ in self._parts)
        length = tokenizer.max_length if max_length is None else max_length
        self._longest = length - special
        if self._longest < 2:
            raise InputError(
                "`max_length` must allow two tokens beside the special ones. Received: "
                f"{length}, with {special} special tokens. Raise it."
            )

    def __call__(self, texts: Any, second_texts: Any) -> dict[str, Any]:
        """Tokenize pairs of texts, both string [batch]; returns what `TextTokenizer` does."""
        with tf.device("CPU:0"):
            parts = [self._ragged(texts), self._ragged(second_texts)]
            lengths = [tf.cast(part.row_lengths(), tf.int32) for part in parts]
            kept = _longest_first(lengths[0], lengths[1], self._longest)
            starts = [
                length - part if self._keep_end else tf.zeros_like(length)
                for length, part in zip(lengths, kept, strict=True)
            ]
            # A column more, so that there is one to read if all texts are empty.
            dense = [tf.pad(part.to_tensor(), [[0, 0], [0, 1]]) for part in parts]
            total = sum(kept) + sum(isinstance(part, int) for part, _ in self._parts)
            mask = tf.sequence_mask(total, dtype=tf.int32)
            position = tf.range(tf.shape(mask)[1])[None]
            ids, segments = tf.fill(tf.shape(mask), self._pad_id), tf.zeros_like(mask)
            begin = tf.zeros_like(total)[:, None]
            for part, segment in self._parts:
                if isinstance(part, int):
                    length, values = tf.ones_like(total), tf.fill(tf.shape(mask), part)
                else:
                    (number,) = part
                    length = kept[number]
                    column = starts[number][:, None] + position - begin
                    last = tf.shape(dense[number])[1] - 1
                    column = tf.clip_by_value(column, 0, last)
                    values = tf.gather(dense[number], column, batch_dims=1)
                end = begin + length[:, None]
                here = (position >= begin) & (position < end)
                ids = tf.where(here, values, ids)
                segments = tf.where(here, segment, segments)
                begin = end
            roles = {"ids": ids, "mask": mask, "segments": segments}
            return {name: roles[role] for role, name in self._inputs.items()}


def _longest_first(first, second, most):
    """Return the lengths of both texts as `tokenizers` truncates them, from the longer one."""
    shorter = tf.minimum(first, second)
    rest = tf.where(shorter > most, shorter, tf.maximum(shorter, most - shorter))
    both = shorter + rest > most
    half = np.int32(most // 2)
    shorter_kept = tf.where(both, half, shorter)
    longer_kept = tf.where(both, half + np.int32(most % 2), rest)
    fits = first + second <= most
    swapped = first > second
    kept = (
        tf.where(swapped, longer_kept, shorter_kept),
        tf.where(swapped, shorter_kept, longer_kept),
    )
    return tf.where(fits, first, kept[0]), tf.where(fits, second, kept[1])
