"""Which tokens of a vocabulary begin a word."""

from collections.abc import Sequence

import numpy as np

from keras_efficient._errors import InputError


def word_starts(vocabulary: Sequence[str]) -> np.ndarray:
    """Return which tokens begin a word, by the marks of the common kinds of tokenizers.

    Args:
        vocabulary: The tokens by their ids.

    Returns:
        Bool array `[vocabulary]`.

    Raises:
        InputError: The vocabulary has no such marks.
    """
    tokens = np.array(vocabulary, object)
    for mark in ("\u0120", "\u2581"):  # Of byte-level BPE and of SentencePiece.
        begins = np.array([token.startswith(mark) for token in tokens])
        if begins.mean() > 0.1:
            return begins
    inside = np.array([token.startswith("##") for token in tokens])
    if inside.any():
        return ~inside
    raise InputError(
        "Whole words need a vocabulary that marks where words begin or go on, by '##', "
        "'\u0120' or '\u2581'. Received: one without any of them. Use unit='token'."
    )
