"""`read_json`: read a JSON object of limited size and depth from a model folder."""

import json
import os
from pathlib import Path

from keras_efficient._errors import InputError

#: Largest file and deepest nesting. The largest tokenizers have 35 MB.
MAX_JSON_BYTES, _MAX_DEPTH = 100_000_000, 100


def read_json(path: str | os.PathLike, what: str) -> dict:
    """Read a JSON object.

    Args:
        path: Path of the file.
        what: What the file is, for error messages.

    Returns:
        The object.

    Raises:
        InputError: The file does not exist, is no regular file or too large, or does not hold a
            JSON object that is nested at most 100 deep.
    """
    path = Path(path)
    check_file(path, what, MAX_JSON_BYTES)
    try:
        value = json.loads(path.read_text("utf-8"))
        if _depth(value) > _MAX_DEPTH:
            raise RecursionError(f"nested deeper than {_MAX_DEPTH}")
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(
            f"{path.name} must be readable JSON. Received: {str(path)!r}, which is not "
            f"({str(error)[:200]}). Download it again."
        ) from None
    if not isinstance(value, dict):
        raise InputError(
            f"{path.name} must hold a JSON object. Received: {type(value).__name__}. Download it "
            "again."
        )
    return value


def check_file(path: Path, what: str, max_bytes: int) -> None:
    """Require a regular file, or a link to one, of at most `max_bytes`."""
    if not path.exists():
        raise InputError(
            f"A model folder must hold {path.name}, {what}. Received: {str(path.parent)!r} "
            "without it. Download the complete folder."
        )
    # A pipe would be waited for, and a device may have no end.
    if not path.is_file():
        raise InputError(
            f"{path.name} must be a regular file. Received: {str(path)!r}, which is none. Do not "
            "use this folder."
        )
    if path.stat().st_size > max_bytes:
        raise InputError(
            f"{path.name} may have at most {max_bytes:,} bytes. Received: {str(path)!r} of "
            f"{path.stat().st_size:,}. Do not use this folder."
        )


def _depth(value):
    """Return the depth of nested lists and dicts, without recursion."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        if depth > _MAX_DEPTH:
            break
        level = [x for item in level for x in (item.values() if isinstance(item, dict) else item)]
    return depth
