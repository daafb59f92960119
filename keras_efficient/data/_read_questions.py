"""Read questions with their contexts and answers, from SQuAD's JSON and JSON Lines files."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from keras_efficient._errors import InputError
from keras_efficient.data._answer_labels import check_answer
from keras_efficient.data._check_text import check_text
from keras_efficient.data._columns import shown
from keras_efficient.data._data_files import JSON_LINES, file_suffix
from keras_efficient.data._read_json_lines import json_objects
from keras_efficient.data._text_lines import text_lines

#: Keys of the question, its context and its answers.
QUESTION_KEYS = ("question", "context", "answers")


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about a text.

    Attributes:
        question: str.
        context: str, the text in which the answers stand.
        answers: tuple of tuples of a text and its first character in the context.
    """

    question: str
    context: str
    answers: tuple[tuple[str, int], ...]


def read_questions(path: pathlib.Path, keys: Sequence[str] = QUESTION_KEYS) -> list[Question]:
    """Read a JSON file of SQuAD, 1.1 or 2.0, or JSON Lines (.jsonl, .ndjson), plain or gzipped.

    Args:
        path: Path of the file.
        keys: Keys of the question, the context and the answers in JSON Lines. Default: "question",
            "context" and "answers".

    Raises:
        InputError: The file, or a question of it, cannot be used; the message names both.
    """
    suffix = file_suffix(path)
    if suffix in JSON_LINES:
        rows = json_objects(path, keys)
        found = [question_of(row, f"{path}, line {line}", keys) for line, row in rows]
    elif suffix == ".json":
        found = list(_squad(path))
    else:
        raise InputError(
            "Questions are read from .json files of SQuAD, or from .jsonl and .ndjson files, also "
            f"with .gz after that. Received: {path}. Convert the file."
        )
    if not found:
        raise InputError(
            f"A data file must have at least one question. Received: {path} without any. Check "
            "that it was written completely."
        )
    return found


def question_of(row: Any, where: str, keys: Sequence[str] = QUESTION_KEYS) -> Question:
    """Return the question of an object of JSON Lines.

    Args:
        row: dict of a "question", a "context" and "answers": {"text": [...], "answer_start":
            [...]}, or a list of {"text", "answer_start"}. Empty lists mean that the context does
            not answer the question.
        where: its origin, for error messages.
        keys: keys of the row. Default: those above.

    Raises:
        InputError: it cannot be used.
    """
    missing = [key for key in keys if not isinstance(row, Mapping) or key not in row]
    if missing:
        received = shown(sorted(row)) if isinstance(row, Mapping) else f"{row!r:.60}"
        raise InputError(
            f"Each question needs {', '.join(map(repr, keys))}. Received: {received} without "
            f"{missing[0]!r} ({where}). Write "
            '{"question": "...", "context": "...", "answers": {"text": ["..."], "answer_start": '
            "[0]}}, or name the keys as text columns and label column."
        )
    question, context, answers = (row[key] for key in keys)
    check_text(question, f"{where}, {keys[0]}")
    check_text(context, f"{where}, {keys[1]}")
    pairs = _pairs(answers, where)
    for text, start in pairs:
        check_answer(text, start, context, where)
    return Question(question, context, tuple((text, int(start)) for text, start in pairs))


def _pairs(answers, where):
    """Return the texts of answers with where they begin."""
    if isinstance(answers, Mapping):
        parts: list[Any] = [answers.get(key) for key in ("text", "answer_start")]
        parts = [x.tolist() if hasattr(x, "tolist") else x for x in parts]
        if all(isinstance(part, list | tuple) for part in parts) and len({*map(len, parts)}) == 1:
            return list(zip(*parts, strict=True))
    elif isinstance(answers, list | tuple) and all(isinstance(x, Mapping) for x in answers):
        return [(x.get("text"), x.get("answer_start")) for x in answers]
    raise InputError(
        'Answers are {"text": [...], "answer_start": [...]} with lists of equal length. Received: '
        f"{answers!r:.80} ({where}). Correct the row; empty lists mean that there is no answer."
    )


def _squad(path: pathlib.Path) -> Iterator[Question]:
    """Yield the questions of a file in the layout of SQuAD."""
    try:
        content = json.loads("".join(text_lines(path, newline="\n")))
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"A .json file must be complete JSON. Received: {path} ({str(error)[:200]}). Copy it "
            "again, or rename a file of JSON Lines to .jsonl."
        ) from None
    for article in _list(content, "data", str(path)):
        for number, paragraph in enumerate(_list(article, "paragraphs", str(path))):
            title = article.get("title")
            place = f"{path}, paragraph {number}" + f" of {title!r:.60}" * bool(title)
            for row in _list(paragraph, "qas", place):
                name = row.get("id") if isinstance(row, Mapping) else None
                where = place if name is None else f"{path}, question {name!r:.60}"
                yield _squad_question(row, paragraph, where)


def _squad_question(row, paragraph, where):
    if isinstance(row, Mapping):
        impossible, answers = row.get("is_impossible"), row.get("answers")
        if answers is None and impossible:
            answers = []
        if (
            impossible is not None
            and isinstance(answers, list)
            and bool(impossible) == bool(answers)
        ):
            raise InputError(
                "A question has answers unless `is_impossible` is true. Received: is_impossible="
                f"{impossible!r} with {len(answers)} answers ({where}). Correct one of them."
            )
        row = {**row, "context": paragraph.get("context")}
        if answers is not None:
            row["answers"] = answers
    return question_of(row, where)


def _list(value, key, where):
    found = value.get(key) if isinstance(value, Mapping) else None
    if not isinstance(found, list):
        raise InputError(
            'A .json file of questions has the layout of SQuAD, {"data": [{"paragraphs": '
            '[{"context": "...", "qas": [{"question": "...", "id": "...", "answers": [{"text": '
            f'"...", "answer_start": 0}}]}}]}}]}}]}}. Received: {where} without a list {key!r}. '
            "Convert it, or write JSON Lines."
        )
    return found
