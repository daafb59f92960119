"""`AnswerLabels`: the answers to questions, as spans of their contexts."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from keras_efficient._errors import InputError
from keras_efficient.data._structured_labels import StructuredLabels


class AnswerLabels(StructuredLabels):
    """The answers to each question: what they say, and where they begin in the context.

    `Records` with these labels have questions as texts and contexts as second texts. A question
    may have several answers, of which the first one is learned and the best one counts in an
    evaluation, or none if the context does not answer it.

    Args:
        answers: For each question a sequence of tuples of a text and its first character in the
            context, a Unicode code point counted from 0.

    Examples:
        >>> labels = ke.data.AnswerLabels([[("Rome", 14)], []])
        >>> len(labels), labels[[0]].answers
        (2, ((('Rome', 14),),))

    Reference:
        Rajpurkar et al. 2018, "Know What You Don't Know: Unanswerable Questions for SQuAD".
    """

    def __init__(self, answers: Iterable[Sequence[tuple[str, int]]]):
        self.answers = tuple(tuple((text, int(start)) for text, start in row) for row in answers)

    def __len__(self) -> int:
        return len(self.answers)

    def __getitem__(self, indices: Any) -> "AnswerLabels":
        return AnswerLabels(self.answers[i] for i in np.asarray(indices).tolist())

    def __add__(self, other: "AnswerLabels") -> "AnswerLabels":
        return AnswerLabels((*self.answers, *other.answers))

    def tobytes(self) -> bytes:
        """Return the same bytes for the same answers, on every machine."""
        return repr(self.answers).encode()

    def check(self, records: Any) -> None:
        """Require a context for each question, and answers that stand where they are said to.

        Raises:
            InputError: There are no contexts, or an answer does not stand in its context.
        """
        if records.second_texts is None:
            raise InputError(
                "Answers need contexts in which they stand. Received: questions without "
                f"`second_texts` ({records.source}). Give the contexts as second texts."
            )
        for number, (row, context) in enumerate(
            zip(self.answers, records.second_texts, strict=True)
        ):
            for text, start in row:
                check_answer(text, start, context, f"{records.source}, item {number}")


def check_answer(text: Any, start: Any, context: str, where: str) -> None:
    """Require an answer that stands in its context. `where` names its origin in the message.

    Raises:
        InputError: It is empty, or the context has something else there.
    """
    if not isinstance(text, str) or not text.strip():
        raise InputError(
            f"An answer must be a text with something in it. Received: {text!r:.60} ({where}). "
            "Correct it; a question without an answer has an empty list of answers."
        )
    if isinstance(start, bool) or not isinstance(start, int | np.integer) or start < 0:
        raise InputError(
            "`answer_start` must be the first character of the answer in its context, counted "
            f"from 0. Received: {start!r:.60} for {text!r:.60} ({where}). Correct it."
        )
    found = context[start : start + len(text)]
    if found != text:
        places = context.count(text)
        hint = f"It is at {context.find(text)}" if places == 1 else f"It occurs {places} times"
        raise InputError(
            "An answer must stand in its context at its `answer_start`, in Unicode code points. "
            f"Received: {text!r:.60} at {start}, where the context has {found!r:.60} ({where}). "
            f"{hint}: correct `answer_start`."
        )
