"""`QuestionWindows`: questions with overlapping windows of their contexts, as tokens."""

from typing import Any

import numpy as np

from keras_efficient._errors import InputError
from keras_efficient.data._tokenizer import Tokenizer


class QuestionWindows:
    """Examples of extractive question answering: a question and a window of its context.

    A window is the whole question and as many tokens of the context as fit into `max_length`. The
    windows of a long context overlap by `stride` tokens. A window's label is the first and the last
    token of the first answer, both 0, the first special token, where it does not contain the whole
    answer.

    Args:
        records: `Records` with `AnswerLabels`.
        tokenizer: Their tokenizer.
        max_length: Number of tokens of a window, with the question and the special tokens.
        stride: Number of tokens that a window shares with the one before it. Default: None, a third
            of `max_length`.

    Attributes:
        records, max_length, stride: As above.
        ids, segments: Lists of int32 arrays `[tokens]`, one per window.
        labels: int32 array `[windows, 3]`: the first and the last token of the answer, and the
            number of the window.
        question: int32 array `[windows]`, the position of the question among the records.
        starts, ends: Lists of int32 arrays `[tokens]`: the first character of a token's word in the
            context and the character after its last one; both 0 for tokens of the question and
            special tokens.
        longest: int, number of tokens of the longest question with its context.

    Raises:
        InputError: A question does not fit into a window, contains the tokenizer's separator, or
            an answer has no token.
    """

    def __init__(
        self, records: Any, tokenizer: Tokenizer, max_length: int, stride: int | None = None
    ):
        self.records, self.max_length = records, max_length
        self.stride = window_stride(max_length, stride)
        self.ids: list[np.ndarray] = []
        self.segments: list[np.ndarray] = []
        self.starts: list[np.ndarray] = []
        self.ends: list[np.ndarray] = []
        self.longest = 0
        separator = tokenizer.separator
        labels, questions = [], []
        pairs = tokenizer.encode_contexts(records.texts, records.second_texts)
        for number, (ids, segments, spans, parts) in enumerate(pairs):
            where = f"{records.texts[number]!r:.60} ({records.source}, item {number})"
            self.longest = max(self.longest, len(ids))
            context = np.flatnonzero(parts == 1)
            if not context.size:
                raise InputError(
                    f"Each context must have a token. Received: that of {where}, for which the "
                    "tokenizer returns none. Remove the question."
                )
            begin, end = int(context[0]), int(context[-1]) + 1
            space = max_length - (len(ids) - (end - begin))
            if space <= self.stride:
                raise InputError(
                    f"Questions are not truncated, and a window of {max_length} tokens must leave "
                    f"more than `stride` = {self.stride} of them to the context. Received: {where} "
                    f"with {begin} tokens before the context. Raise `max_length`, lower `stride`, "
                    "or shorten the question."
                )
            if (ids[parts == 0] == separator).any():
                raise InputError(
                    "A question must not contain the token that separates it from its context. "
                    f"Received: {where}. Remove that token from the question."
                )
            answer = self._answer(number, spans, begin, end, where)
            for start in window_starts(end - begin, space, self.stride):
                first, last = begin + start, min(begin + start + space, end)
                for found, values in (
                    (self.ids, ids),
                    (self.segments, segments),
                    (self.starts, spans[:, 0]),
                    (self.ends, spans[:, 1]),
                ):
                    found.append(np.concatenate([values[:begin], values[first:last], values[end:]]))
                inside = answer is not None and first <= answer[0] and answer[1] < last
                label = [place - start for place in answer] if answer and inside else [0, 0]
                labels.append([*label, len(labels)])
                questions.append(number)
        self.labels = np.array(labels, np.int32).reshape(-1, 3)
        self.question = np.array(questions, np.int32)

    def __len__(self) -> int:
        return len(self.question)

    def _answer(self, number, spans, begin, end, where):
        """Return the places of the first and the last token of the first answer, or None."""
        answers = self.records.labels.answers[number]
        if not answers:
            return None
        text, start = answers[0]
        starts, ends = spans[begin:end, 2], spans[begin:end, 3]
        inside = np.flatnonzero((starts < start + len(text)) & (ends > start))
        if not inside.size:
            raise InputError(
                f"An answer must have a token. Received: {text!r:.60} for {where}, for which the "
                "tokenizer returns none. Correct the answer, or remove the question."
            )
        return begin + int(inside[0]), begin + int(inside[-1])


def window_stride(max_length: int, stride: int | None = None) -> int:
    """Return the number of tokens that windows share, checked: by default a third of a window.

    Raises:
        InputError: `stride` is no int of 0 or more, or not below `max_length`.
    """
    if stride is None:
        return max_length // 3
    if (
        isinstance(stride, bool)
        or not isinstance(stride, int | np.integer)
        or (not 0 <= stride < max_length)
    ):
        raise InputError(
            "`stride` must be the number of tokens that windows of a context share, from 0 to "
            f"below `max_length` = {max_length}. Received: {stride!r}. Give for example "
            f"{max_length // 3}."
        )
    return int(stride)


def window_starts(tokens: int, space: int, stride: int) -> range:
    """Return where the windows of a context begin.

    Args:
        tokens: Number of tokens of the context.
        space: Number of them in a window.
        stride: Number of them that a window shares with the one before it.
    """
    return range(0, max(tokens - stride, 1), space - stride)
