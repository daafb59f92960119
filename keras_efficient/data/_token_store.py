"""Where `ke.data.text` takes tokens from: memory, or files of `tokenize_to_disk`."""

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient._errors import InputError
from keras_efficient.data._answer_labels import AnswerLabels
from keras_efficient.data._next_tokens import next_token_rows
from keras_efficient.data._question_windows import QuestionWindows
from keras_efficient.data._records import Records
from keras_efficient.data._structured_labels import StructuredLabels
from keras_efficient.data._target_texts import TargetTexts
from keras_efficient.data._token_labels import TokenLabels
from keras_efficient.data._tokenize_to_disk import tokenizer_hash
from keras_efficient.data._tokenized_texts import SEGMENTS, TOKENS, TokenizedTexts
from keras_efficient.data._tokenizer import Tokenizer
from keras_efficient.flavor._ignored_label import IGNORED


class MemoryTokens:
    """The tokens of records, one flat tensor, which takes the least memory.

    Args:
        records: The records.
        tokenizer: Their tokenizer.
        max_length: Number of tokens to which texts are truncated.
        stride: Number of tokens that windows of the context of a question share. Default: None.
        next_token: Whether the labels are the next tokens, for causal language modelling. Default:
            False.
        separate: Whether the texts of a pair are not joined. Default: False.

    Attributes:
        lengths: Int32 array `[texts]`; of questions `[windows]`; of separate texts `[pairs]`, the
            larger ones. With `next_token` the last token
            of a text, which is a label only, does not count.
        labels: Those of the records, or None; one for each token of `TokenLabels`, one for each
            window of `AnswerLabels`.
        windows: `QuestionWindows` of `AnswerLabels`, otherwise None.
        labels_per_token: Whether they are one for each token, at the places of the tokens.
        next_token, max_length: As above.
        truncated: Number of truncated texts.
        longest: Number of tokens of the longest text before truncation, or None.
        pairs: Whether there are segments; with `next_token` they say which tokens are labels.
        targets: The tokens of `TargetTexts`, one flat array, or None.
        target_lengths: Int32 array `[texts]`, or None.
        row_lengths: `lengths`, or of separate texts int32 `[2 · pairs]`, those of both.

    Raises:
        InputError: There are no texts, or one has no token, or no label that counts.
    """

    targets: Any = None
    target_lengths: Any = None
    windows: Any = None
    _row_lengths: Any = None

    def __init__(
        self,
        records: Records,
        tokenizer: Tokenizer,
        max_length: int,
        stride: int | None = None,
        next_token: bool = False,
        separate: bool = False,
    ):
        check_not_empty(records)
        self.records, self.labels, self.max_length = records, records.labels, max_length
        self.pairs, self.next_token = records.second_texts is not None, next_token
        self.labels_per_token = isinstance(records.labels, TokenLabels) and not next_token
        if next_token:
            self._encode_next_tokens(tokenizer)
            return
        if separate:
            self._encode_separate(tokenizer)
            return
        if isinstance(records.labels, TargetTexts):
            self._encode_targets(records.labels, tokenizer, max_length)
        if isinstance(records.labels, AnswerLabels):
            self.windows = QuestionWindows(records, tokenizer, max_length, stride)
            ids, segments, self.labels = (
                self.windows.ids,
                self.windows.segments,
                self.windows.labels,
            )
            self.truncated, self.longest = 0, self.windows.longest
            self._segments = _on_cpu(np.concatenate(segments))
        elif stride is not None:
            raise InputError(
                "`stride` is for the contexts of questions. Received: "
                f"stride={stride!r} for {records!r:.120}. Leave it out."
            )
        elif isinstance(records.labels, TokenLabels):
            ids, spans, self.truncated, self.longest = tokenizer.encode_words(
                records.texts, max_length
            )
            rows = [records.labels.align(number, span[:, :2]) for number, span in enumerate(spans)]
            self._check_counted(rows)
            self.labels = np.concatenate(rows)
        elif records.second_texts is None:
            ids, self.truncated, self.longest = tokenizer.encode_and_count(
                records.texts, max_length
            )
        else:
            ids, segments, self.truncated, self.longest = tokenizer.encode_pairs(
                records.texts, records.second_texts, max_length
            )
            self._segments = _on_cpu(np.concatenate(segments))
        self._store(ids)

    def _encode_next_tokens(self, tokenizer):
        ids, segments, self.truncated, self.longest = next_token_rows(
            self.records.texts,
            self.records.second_texts,
            tokenizer,
            self.max_length,
            self.describe,
        )
        self.labels = None
        if segments is not None:
            self._segments = _on_cpu(np.concatenate(segments).astype(np.int32))
        self._store(ids)
        self.lengths -= 1

    def _encode_separate(self, tokenizer):
        if self.records.second_texts is None or isinstance(self.labels, StructuredLabels):
            raise InputError(
                "`separate` is for pairs of texts, with a label for each pair or none. Received: "
                f"{self.records!r:.120}. Name two text columns, or leave `separate` out."
            )
        columns = self.records.texts, self.records.second_texts
        both = [text for pair in zip(*columns, strict=True) for text in pair]
        ids, self.truncated, self.longest = tokenizer.encode_and_count(both, self.max_length)
        self.pairs = False
        self._store(ids)
        self._row_lengths = self.lengths
        self.lengths = self.lengths.reshape(-1, 2).max(1)

    @property
    def row_lengths(self) -> np.ndarray:
        """Return the number of tokens of each text."""
        return self.lengths if self._row_lengths is None else self._row_lengths

    def _store(self, ids):
        self.lengths = np.array([len(row) for row in ids], np.int32)
        if not self.lengths.all():
            raise InputError(
                "Each text must have a token. Received: "
                f"{self.describe(int(np.argmin(self.lengths)))}, for which the tokenizer returns "
                "none. Remove it."
            )
        self._ids = _on_cpu(np.concatenate(ids))

    def _encode_targets(self, labels, tokenizer, max_length):
        """Tokenize what is to be generated; nothing may be missing at its end."""
        ids, cut, longest = tokenizer.encode_targets(labels.texts, max_length)
        if cut:
            number = int(np.argmax([len(row) for row in ids]))
            raise InputError(
                f"Targets must not be longer than {max_length} tokens: a model would learn to stop "
                f"early. Received: {cut} that are, such as {labels.texts[number]!r:.60} "
                f"({self.records.source}, item {number}); the longest has {longest} tokens. Raise "
                "`max_length`, or leave them out."
            )
        self.labels, self.targets = None, _on_cpu(np.concatenate(ids))
        self.target_lengths = np.array([len(row) for row in ids], np.int32)

    def _check_counted(self, rows):
        """Require a token that counts in each text: a loss or a score of none is no number."""
        for number, row in enumerate(rows):
            if (row == IGNORED).all():
                raise InputError(
                    "Each text must have a word of which a token is left. Received: "
                    f"{self.describe(number)}, for which the tokenizer returns none. Remove it, or "
                    "raise `max_length`."
                )

    def describe(self, number: int) -> str:
        """Return the beginning of a text and its origin."""
        if self.windows is not None:
            number = int(self.windows.question[number])
        return f"{self.records.texts[number]!r:.60} ({self.records.source}, item {number})"

    def ids(self, places: Any) -> Any:
        """Return int32 tokens, by their places in all texts."""
        return tf.gather(self._ids, places)

    def segments(self, places: Any) -> Any:
        """Return int32 segments, likewise."""
        return tf.gather(self._segments, places)


class FileTokens:
    """The tokens of `TokenizedTexts`, in files that are mapped into memory when a batch is made.

    The pipeline holds the names of the files and no Python code.

    Args:
        texts: The texts.
        tokenizer: The tokenizer that the batches are for.
        max_length: Number of tokens to which texts should be truncated, or None.
        next_token: Whether the labels should be the next tokens. Default: False.

    Attributes:
        lengths, labels, labels_per_token, next_token, max_length, truncated, longest, pairs,
            targets, target_lengths, windows, row_lengths: As those of `MemoryTokens`.

    Raises:
        InputError: The texts were tokenized by another tokenizer, or truncated elsewhere.
    """

    targets = target_lengths = windows = None

    def __init__(
        self,
        texts: TokenizedTexts,
        tokenizer: Tokenizer,
        max_length: int | None,
        next_token: bool = False,
    ):
        if max_length not in (None, texts.max_length):
            raise InputError(
                "`max_length` must be that of the tokenized texts. Received: "
                f"max_length={max_length!r}, where {str(texts.directory)!r} has texts of at most "
                f"{texts.max_length} tokens. Leave it out, or tokenize them again."
            )
        if texts.tokenizer != tokenizer_hash(tokenizer):
            raise InputError(
                "The texts must be tokenized by the tokenizer that is given. Received: "
                f"{str(texts.directory)!r}, tokenized by another one than {tokenizer!r}. Give the "
                "tokenizer that was given to `tokenize_to_disk`, or tokenize the texts again."
            )
        if texts.next_token != next_token:
            raise InputError(
                "Texts must be tokenized for the task: `next_token` must be the same for "
                "`tokenize_to_disk` and `text`. Received: "
                f"next_token={next_token} for {texts!r}, written with {texts.next_token}. Tokenize "
                "them by `tokenize_to_disk` of the task."
            )
        tokenizer.check_length(texts.max_length)
        self.texts, self.lengths, self.pairs = texts, texts.lengths - next_token, texts.pairs
        self.row_lengths = self.lengths
        self.next_token = next_token
        self.max_length, self.truncated = texts.max_length, texts.truncated
        self.longest, self.labels, self.labels_per_token = texts.longest, texts.labels, False

    def describe(self, number: int) -> str:
        """Return the origin of a text."""
        return f"text {number} ({self.texts.source})"

    def ids(self, places: Any) -> Any:
        """Return int32 tokens, by their places in all texts."""
        return self._gather(TOKENS, self.texts.dtype, places)

    def segments(self, places: Any) -> Any:
        """Return int32 segments, likewise."""
        return self._gather(SEGMENTS, "uint8", places)

    def _gather(self, name, dtype, places):
        # The operation maps the file: the system reads what is gathered, and may forget it again.
        file = tf.raw_ops.ImmutableConst(
            dtype=tf.as_dtype(dtype),
            shape=[self.texts.tokens],
            memory_region_name=str(Path(self.texts.directory, name).resolve()),
        )
        return tf.cast(tf.gather(file, places), tf.int32)


def check_not_empty(records: Records) -> None:
    """Require a text."""
    if not len(records):
        raise InputError(
            f"There must be at least one text. Received: none ({records.source}). Check what "
            "selected them."
        )


def _on_cpu(array):
    # tf.data runs on the CPU; the corpus would otherwise take up memory of a GPU.
    with tf.device("/CPU:0"):
        return tf.constant(array)
