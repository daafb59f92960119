"""`column_index`: the place of a named column, with a hint at the name that was meant."""

import collections
import difflib
import itertools
from collections.abc import Iterable, Sequence

from keras_efficient._errors import InputError


def column_index(name: str, columns: Sequence[str], where: str) -> int:
    """Return the place of a column among all of them.

    Raises:
        InputError: There is no such column. `where` names the origin of the columns.
    """
    if name in columns:
        return columns.index(name)
    # The comparison takes long for long names, and for thousands of them.
    near_enough = (column for column in columns if len(column) <= 2 * len(name) + 10)
    first = list(itertools.islice(near_enough, 1_000))
    folded = {column.strip().lower(): column for column in reversed(first)}
    near = difflib.get_close_matches(name.lower(), folded, n=1)
    hint = f"Did you mean {folded[near[0]]!r}?" if near else "Pass the name of the right one."
    raise InputError(
        f"There must be a column {name!r}. Received: {shown(columns)} ({where}). {hint} "
        "The arguments are `text_column` and `label_column`."
    )


def check_distinct(columns: Iterable[str], where: str) -> None:
    """Require that the names of columns differ. `where` names their origin."""
    twice = sorted(name for name, n in collections.Counter(columns).items() if n > 1)
    if twice:
        raise InputError(
            f"Column names must differ. Received: [{shown(twice)}] more than once in {where}. "
            "Rename one of each."
        )


def shown(columns: Sequence[str], most: int = 40) -> str:
    """Return names of columns for a message, the first 20 of them, `most` characters of each."""
    more = "" if len(columns) <= 20 else f" and {len(columns) - 20:,} others"
    return ", ".join(repr(column[:most]) for column in columns[:20]) + more
