"""Exceptions of this package, and the shortening of what their messages quote."""

import re
from collections.abc import Iterable
from typing import Any


class InputError(ValueError):
    """Invalid input, detected before any work is lost.

    The message states the rule, the value received and the remedy. The command line prints it
    without a traceback and exits with code 2.
    """


class VerificationError(RuntimeError):
    """An exported model that does not load, or whose outputs differ from the model in memory."""


def listed(names: Iterable[Any], most: int = 10, *, quoted: bool = True) -> str:
    """Return names for a message, joined; beyond `most` only their number."""
    names = [f"{name!s:.60}" for name in names]
    # `repr` also escapes control characters.
    shown = ", ".join(repr(name) if quoted else repr(name)[1:-1] for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most:,} more"


def shortened(text: str, most: int = 1500) -> str:
    """Return a text for a message, cut after a line or sentence if it is longer than `most`."""
    text = text.strip()
    if len(text) <= most:
        return text
    end = max((m.end() for m in re.finditer(r"\n|[.!?](?=\s)", text[:most])), default=0)
    if end < most // 2:
        end = max(text.rfind(" ", 0, most), most // 2)
    return f"{text[:end].rstrip()} … ({len(text) - end:,} more characters)"
