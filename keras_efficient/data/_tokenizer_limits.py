"""Limits of a tokenizer.json: how much longer it makes a text, and its token ids."""

import base64
import math
from typing import Any

from keras_efficient._errors import InputError

#: Largest factor by which the steps before the model may lengthen a text. SentencePiece's Unicode
#: normalization, with 33 for one character, is followed by two steps that may double it.
_MAX_GROWTH = 250
#: Largest numbers of steps in a sequence, and of special tokens that are added to a text.
_MAX_STEPS, _MAX_ADDED = 50, 100


def check_tokenizer(settings: dict[str, Any], file: str) -> None:
    """Require a tokenizer.json that lengthens no text by more than 250 times.

    Args:
        settings: The JSON that `tokenizers.Tokenizer.to_str` gives.
        file: Its path, for error messages.

    Raises:
        InputError: It lengthens a text more, has more than 50 steps in a sequence, or adds more
            than 100 tokens.
    """
    try:
        steps = [*_steps(settings.get("normalizer"), "normalizers")]
        steps += _steps(settings.get("pre_tokenizer"), "pretokenizers")
        growth = math.prod(map(_growth, steps))
        added, repeated = _added(settings.get("post_processor"))
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(
            f"A tokenizer's file must have the form of the library tokenizers. Received: {file} "
            f"({type(error).__name__}: {error}). Copy it again from the model's source."
        ) from error
    problem = None
    if growth > _MAX_GROWTH:
        problem = f"steps that make a text up to {growth:,.0f} times as long; at most {_MAX_GROWTH}"
    elif added > _MAX_ADDED:
        problem = f"a template that adds {added:,} tokens; at most {_MAX_ADDED}"
    elif repeated > 1:
        problem = f"a template that repeats a text {repeated:,} times; at most once"
    if problem:
        raise InputError(
            f"A tokenizer must not multiply a text. Received: {file}, with {problem}. Do not use "
            "this tokenizer."
        )


def special_ids(settings: dict[str, Any]) -> list[int]:
    """Return the token ids that a post-processor adds."""
    ids = []
    for step in _steps(settings.get("post_processor"), "processors"):
        for key in ("sep", "cls"):
            if key in step:
                ids.append(step[key][1])
        for token in (step.get("special_tokens") or {}).values():
            ids += token["ids"]
    return ids


def _steps(step, key):
    """Return the steps of a sequence, in which sequences may be nested."""
    if step is None:
        return []
    if step.get("type") != "Sequence":
        return [step]
    steps = [inner for outer in step[key] for inner in _steps(outer, key)]
    if len(steps) > _MAX_STEPS:
        raise ValueError(f"more than {_MAX_STEPS} steps")
    return steps


def _growth(step):
    kind = step.get("type")
    if kind == "Replace":
        pattern, content = step["pattern"], len(step["content"])
        if "String" in pattern:
            found = len(pattern["String"])
            return max(1, content / found) if found else 1 + content
        # It may match between any two characters.
        return 1 + content
    if kind == "Prepend":
        return 1 + len(step["prepend"])
    if kind == "ByteLevel":
        return 4
    if kind == "Metaspace":
        return 1 + len(step.get("replacement", ""))
    if kind == "Precompiled":
        blob = base64.b64decode(step["precompiled_charsmap"] or "")
        replacements = blob[4 + int.from_bytes(blob[:4], "little") :]
        return max(1, *map(len, replacements.split(b"\0")))
    return 1


def _added(processor):
    """Return the numbers of tokens that are added to a text, and of its repetitions."""
    added = repeated = 0
    for step in _steps(processor, "processors"):
        names = step.get("special_tokens") or {}
        for piece in step.get("single", ()):
            if "SpecialToken" in piece:
                added += len(names[piece["SpecialToken"]["id"]]["ids"])
            else:
                repeated += 1
    return added, repeated
