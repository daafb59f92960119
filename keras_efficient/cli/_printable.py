"""`printable`: text from models and files, safe to print in a terminal."""

import re

#: Control characters except tab and newline, characters that reorder a line, and surrogates.
_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""Write the characters that control a terminal as escapes, such as `\u001b`.

    Args:
        text: A string, or a JSON document, which keeps its meaning.

    Returns:
        The text, in which other characters, tabs and newlines are unchanged.

    Examples:
        >>> from keras_efficient.cli._printable import printable
        >>> printable("\x1b[2Jgood")
        '\\u001b[2Jgood'

    Reference:
        ECMA-48, "Control Functions for Coded Character Sets"; Unicode Technical Report 36,
        "Unicode Security Considerations".
    """
    return _CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
