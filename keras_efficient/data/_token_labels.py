"""`TokenLabels`: a class for each word of texts, from which `ke.data.text` makes one per token."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from keras_efficient._errors import InputError
from keras_efficient.data._structured_labels import StructuredLabels
from keras_efficient.flavor._ignored_label import IGNORED


class TokenLabels(StructuredLabels):
    """The words of texts, by their characters, and the class of each word.

    Only the first token of a word carries its class. The other tokens of the word, special tokens
    and padding are labelled `IGNORED`, which losses and metrics leave out.

    Args:
        words: for each text an int array `[words, 3]`: the first character of a word, the character
            after its last one, and its class. Words are in the order of the text.

    Examples:
        >>> labels = ke.data.TokenLabels([[(0, 4, 1), (5, 10, 0)]])
        >>> len(labels), labels[[0]].words[0].tolist()
        (1, [[0, 4, 1], [5, 10, 0]])

    Reference:
        Hugging Face, "Token classification",
        https://huggingface.co/docs/transformers/tasks/token_classification.
    """

    def __init__(self, words: Iterable[Any]):
        self.words = tuple(np.asarray(rows, np.int32).reshape(-1, 3) for rows in words)

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, indices: Any) -> "TokenLabels":
        return TokenLabels(self.words[i] for i in np.asarray(indices).tolist())

    def __add__(self, other: "TokenLabels") -> "TokenLabels":
        return TokenLabels((*self.words, *other.words))

    def tobytes(self) -> bytes:
        """Return the same bytes for the same words and classes, on every machine."""
        sizes = np.array([len(rows) for rows in self.words], "<i8").tobytes()
        return sizes + b"".join(rows.astype("<i4").tobytes() for rows in self.words)

    def check(self, records: Any) -> None:
        """Require words that lie in their texts one after the other, and classes that have names.

        Raises:
            InputError: a text has no words, or one of them is not as above.
        """
        classes, source = len(records.label_names), records.source
        for number, (text, rows) in enumerate(zip(records.texts, self.words, strict=True)):
            starts, ends, labels = rows.T
            where = f"{source}, item {number}"
            # Each word ends before the next one starts, and the last one in the text.
            limits = np.append(starts[1:], len(text))
            if not len(rows) or (starts >= ends).any() or (ends > limits).any() or starts[0] < 0:
                raise InputError(
                    "The words of a text must lie in it, one after the other, at least one. "
                    f"Received: (start, end, class) {rows.tolist()!r:.80} for {text!r:.60} "
                    f"({where}). Count characters from 0; the end is the character after the word."
                )
            if labels.min() < 0 or labels.max() >= classes:
                raise InputError(
                    f"The class of a word must be an index into the {classes} `label_names`. "
                    f"Received: from {labels.min()} to {labels.max()} ({where}). Read the data "
                    "with a task, which makes indices of any labels."
                )

    def align(self, number: int, offsets: np.ndarray) -> np.ndarray:
        """Return the label of each token of a text, int32 `[tokens]`.

        Args:
            number: position of the text.
            offsets: int array `[tokens, 2]`, the characters of each token; both 0 for special
                tokens.
        """
        starts, ends, labels = self.words[number].T
        # The last character: a token may begin with the space before its word.
        last = offsets[:, 1] - 1
        word = np.searchsorted(starts, last, side="right") - 1
        inside = (last >= 0) & (word >= 0) & (last < ends[word])
        found = np.where(inside, labels[word], IGNORED).astype(np.int32)
        seen = np.where(inside, word, -1)
        first = np.zeros(len(found), bool)
        first[np.unique(seen, return_index=True)[1]] = True
        return np.where(first, found, IGNORED).astype(np.int32)


def token_words(spans: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the words of a tokenizer in a text, each with the class of its first token.

    Args:
        spans: int array `[tokens, 3]`, the first character of each token, the character after its
            last one, and the number of its word, -1 for special tokens; those of
            `Tokenizer.encode_words`.
        classes: int array `[tokens]`, or longer.

    Returns:
        Int array `[words, 3]`, as `TokenLabels` has them.
    """
    starts, ends, numbers = spans.T
    words: list[tuple[int, int, int]] = []
    last = 0
    for first in np.unique(numbers, return_index=True)[1]:
        end = int(ends[numbers == numbers[first]].max())
        # Characters that a tokenizer removes, or counts to two words, are no word of their own.
        if numbers[first] >= 0 and last <= starts[first] < end:
            words.append((int(starts[first]), end, int(classes[first])))
            last = end
    return np.array(words, np.int32).reshape(-1, 3)
