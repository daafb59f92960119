"""Read texts whose words are tagged, from CoNLL and JSON Lines files."""

import dataclasses
import itertools
import pathlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from keras_efficient._errors import InputError
from keras_efficient.data._bio_tags import OUTSIDE, check_tags
from keras_efficient.data._check_text import check_text
from keras_efficient.data._data_files import JSON_LINES, file_suffix
from keras_efficient.data._read_json_lines import json_objects
from keras_efficient.data._text_lines import text_lines

#: Keys of the texts and of their labels that are looked for if none are named.
_TEXT_KEYS, _LABEL_KEYS = ("tokens", "text"), ("tags", "entities", "spans")


@dataclasses.dataclass(frozen=True)
class TaggedText:
    """A text and its words.

    Attributes:
        text: str.
        words: list of tuples of the first character of a word, the character after its last one,
            and its BIO tag.
        origins: list of str, one per word, for error messages.
    """

    text: str
    words: list[tuple[int, int, str]]
    origins: list[str]


def read_tagged(
    path: pathlib.Path, *, text_key: str | None = None, label_key: str | None = None
) -> list[TaggedText]:
    """Read a CoNLL file, or JSON Lines (.jsonl, .ndjson), in UTF-8, plain or gzipped.

    A CoNLL file has a word and its tag on each line, the first and the last of the columns, between
    tabs or else spaces, and a blank line between texts. An object of JSON Lines has "tokens" and
    "tags", or a "text" and its "entities" or "spans": a list of {"start", "end", "label"}, in
    characters of the text from 0, where the end is the character after the entity.

    Args:
        path: path of the file.
        text_key: key of the tokens or the text in JSON Lines. Default: None, those above.
        label_key: key of the tags or the entities. Default: None, those above.

    Raises:
        InputError: the file or a line cannot be used; the message names both.
    """
    if file_suffix(path) in JSON_LINES:
        rows = json_objects(path, (text_key or _TEXT_KEYS[0], label_key or _LABEL_KEYS[0]))
        found = [
            tagged_text(row, f"{path}, line {line}", text_key=text_key, label_key=label_key)
            for line, row in rows
        ]
    else:
        found = _conll(path)
    if not found:
        raise InputError(
            f"A data file must have at least one text. Received: {path} without any. Check that it "
            "was written completely."
        )
    return found


def tagged_text(
    row: Any, where: str, *, text_key: str | None = None, label_key: str | None = None
) -> TaggedText:
    """Return the text of an object of JSON Lines, as in `read_tagged`.

    Args:
        row: dict of "tokens" and "tags", or of "text" and "entities" or "spans".
        where: its origin, for error messages.
        text_key: as for `read_tagged`. Default: None.
        label_key: as for `read_tagged`. Default: None.

    Raises:
        InputError: it cannot be used.
    """
    text_key = _key(row, text_key, _TEXT_KEYS, where)
    label_key = _key(row, label_key, _LABEL_KEYS, where)
    text, labels = row[text_key], row[label_key]
    if not isinstance(labels, list | tuple):
        raise InputError(
            f"{label_key!r} must be a list, of a tag for each token or of entities. Received: "
            f"{labels!r:.60} ({where}). Correct the row."
        )
    if isinstance(text, str):
        return _of_spans(text, labels, where)
    if not isinstance(text, list | tuple) or not text:
        raise InputError(
            f"{text_key!r} must be a list of tokens, at least one, or a string. Received: "
            f"{text!r:.60} ({where}). Correct the row, or remove it."
        )
    if len(text) != len(labels):
        raise InputError(
            f"There must be a tag for each token. Received: {len(text)} tokens and {len(labels)} "
            f"tags ({where}). Correct the row."
        )
    return _joined(list(zip(text, labels, [where] * len(text), strict=True)))


def word_spans(text: str) -> list[tuple[int, int]]:
    """Return the words of a text: runs of letters and digits; every other character but spaces.

    Chinese characters are words of their own, as in BERT.
    """
    kinds = map(_kind, text)
    groups = itertools.groupby(enumerate(kinds), lambda item: item[1] or -1 - item[0])
    spans = []
    for kind, group in groups:
        places = [place for place, _ in group]
        if kind != "space":
            spans.append((places[0], places[-1] + 1))
    return spans


def _kind(character):
    """Return "word" or "space", or None for a word of its own."""
    if character.isspace():
        return "space"
    if "㐀" <= character <= "鿿" or "豈" <= character <= "﫿" or character >= "\U00020000":
        return None
    mark = unicodedata.category(character)[0] == "M"
    return "word" if mark or character.isalnum() else None


def _key(row, given, usual, where):
    keys = usual if given is None else (given,)
    found = [key for key in keys if isinstance(row, Mapping) and key in row]
    if not found:
        shown = " or ".join(map(repr, keys))
        received = sorted(row) if isinstance(row, Mapping) else row
        raise InputError(
            f"Each text needs {shown}. Received: {received!r:.80} ({where}). Write "
            '{"tokens": [...], "tags": [...]} or {"text": "...", "entities": [{"start": 0, "end": '
            '4, "label": "..."}]}, or name the keys as text column and label column.'
        )
    return found[0]


def _joined(rows: Sequence[tuple[Any, Any, str]]) -> TaggedText:
    """Return the text of words with their tags and origins, joined with spaces."""
    words, at = [], 0
    for word, tag, where in rows:
        check_text(word, where)
        words.append((at, at + len(word), tag))
        at += len(word) + 1
    origins = [where for *_, where in rows]
    check_tags([tag for *_, tag in words], origins.__getitem__)
    return TaggedText(" ".join(word for word, *_ in rows), words, origins)


def _conll(path: pathlib.Path) -> list[TaggedText]:
    found, rows = [], []
    # The last text may have no blank line after it.
    for number, line in enumerate(itertools.chain(text_lines(path, newline="\n"), [""]), 1):
        line = line.removesuffix("\n")
        if not line.strip():
            # CoNLL 2003 begins each document with a line of its own.
            if rows and rows[0][0] != "-DOCSTART-":
                found.append(_joined(rows))
            rows = []
            continue
        fields = line.rstrip("\r").split("\t") if "\t" in line else line.split()
        fields = [field.strip() for field in fields]
        if len(fields) < 2 or not fields[0] or not fields[-1]:
            raise InputError(
                "Each line must have a word and its tag, with a tab or spaces between. Received: "
                f"{line!r:.60} ({path}, line {number}). Correct the line; a blank one ends a text."
            )
        rows.append((fields[0], fields[-1], f"{path}, line {number}"))
    return found


def _of_spans(text: str, entities: Iterable[Any], where: str) -> TaggedText:
    """Return a text whose entities are given by their characters."""
    check_text(text, where)
    spans = word_spans(text)
    first = {start: i for i, (start, _) in enumerate(spans)}
    last = {end: i for i, (_, end) in enumerate(spans)}
    tags: list[str] = [OUTSIDE] * len(spans)
    for entity in entities:
        start, end, label = _span(entity, where)
        shown = f"{label!r:.40} from {start} to {end} ({where})"
        if not 0 <= start < end <= len(text):
            raise InputError(
                f"An entity must lie in its text, of {len(text)} characters. Received: {shown}. "
                "Count characters from 0; the end is the character after the entity."
            )
        if start not in first or end not in last:
            raise InputError(
                "An entity must begin and end with a word: a run of letters and digits, or a "
                f"punctuation mark. Received: {shown}, {text[start:end]!r:.60} in "
                f"{text[max(0, start - 10) : end + 10]!r:.60}. Correct its bounds, or give tokens "
                "and tags."
            )
        inside = range(first[start], last[end] + 1)
        if any(tags[i] != OUTSIDE for i in inside):
            raise InputError(
                f"Entities must not overlap. Received: {shown}, where another one is. Keep one of "
                "them."
            )
        for i in inside:
            tags[i] = f"{'B' if i == inside[0] else 'I'}-{label}"
    words = [(*span, tag) for span, tag in zip(spans, tags, strict=True)]
    return TaggedText(text, words, [where] * len(words))


def _span(entity, where):
    """Return the first character, the character after the last one, and the type of an entity."""
    values: Any = entity
    if isinstance(entity, Mapping):
        values = [entity.get(key) for key in ("start", "end", "label")]
    whole = isinstance(values, list | tuple) and len(values) == 3
    if not whole or not all(type(n) is int for n in values[:2]) or not isinstance(values[2], str):
        raise InputError(
            'An entity is {"start": int, "end": int, "label": string}. Received: '
            f"{entity!r:.80} ({where}). Correct the row."
        )
    start, end, label = values
    if not label.strip():
        raise InputError(
            f"An entity needs a type. Received: {entity!r:.80} ({where}). Fill in its label."
        )
    return start, end, label.strip()
