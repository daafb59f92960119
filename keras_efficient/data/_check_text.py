"""`check_text`: require a text that can be tokenized."""

from typing import Any

from keras_efficient._errors import InputError


def check_text(text: Any, where: str) -> None:
    """Require a text that can be tokenized. `where` names its origin in the error message."""
    if not isinstance(text, str):
        raise InputError(
            f"Each text must be a string. Received: {text!r:.60} of type {type(text).__name__} "
            f"({where}). Correct or remove it."
        )
    if not text or text.isspace():
        raise InputError(
            f"Each text must have something in it. Received: an empty text {text!r:.20} "
            f"({where}). Correct or remove it."
        )
    check_string(text, "text", where)


def check_string(string: str, what: str, where: str) -> None:
    """Require valid Unicode without NUL characters. `what` is what the string is."""
    if "\0" in string:
        raise InputError(
            f"A {what} must not hold NUL characters. Received: {string!r:.60} ({where}). Remove "
            "them; if there are many, the file may be UTF-16: save it as UTF-8."
        )
    try:
        string.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"A {what} must be valid Unicode. Received: {string!r:.60}, with half of a surrogate "
            f"pair ({where}). Correct or remove it."
        ) from error
