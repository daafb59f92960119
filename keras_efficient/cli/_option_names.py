"""Rewrite messages of Python functions for the command line: arguments become options."""

import re
from typing import Any

#: Arguments of the functions that commands call, by the name of the option that sets them.
_ALIASES = {
    "batches": "batch",
    "lengths": "length",
    "path_or_preset": "model",
    "targets": "directories",
    "texts": "text",
}


def option_names(command: Any, arguments: list[str]) -> dict[str, str]:
    """Return `{"max_length": "--max-length"}` of the command that `arguments` call.

    Args:
        command: the click group of all commands.
        arguments: the words after the program's name.
    """
    commands = getattr(command, "commands", {})
    called = next((commands[word] for word in arguments if word in commands), None)
    if called is None:
        return {}
    names = {}
    for param in called.params:
        is_option = param.param_type_name == "option"
        names[param.name] = param.opts[0] if is_option else param.metavar or param.name.upper()
    aliases = {alias: names[name] for alias, name in _ALIASES.items() if name in names}
    return aliases | names


def with_option_names(message: str, names: dict[str, str]) -> str:
    """Replace `` `max_length` `` by `--max-length`, and `quantize='int8'` by `--quantize int8`.

    Args:
        message: text for users of Python.
        names: options by the name of the argument, from `option_names`.

    Returns:
        The message for users of the command line.
    """
    if not names:
        return message
    argument = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    message = re.sub(rf"`({argument})`", lambda match: names[match[1]], message)
    return re.sub(
        rf"(?<![\w`./-])({argument})=(?!None\b)('[^']*'|\"[^\"]*\"|[\w.+-]*\w)",
        lambda match: f"{names[match[1]]} {match[2].strip(chr(39) + chr(34))}",
        message,
    )
