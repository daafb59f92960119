"""`line_rows`: the texts of a file with one text per line."""

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from keras_efficient._errors import InputError
from keras_efficient.data._columns import shown
from keras_efficient.data._text_lines import text_lines


def line_rows(path: pathlib.Path, columns: Sequence[str]) -> Iterator[tuple[int, list[Any]]]:
    """Yield the number and the text of each line that is not blank, without white space around it.

    Raises:
        InputError: More than texts is wanted, or the file cannot be read.
    """
    if len(columns) != 1:
        raise InputError(
            "A text file has one text per line, and neither labels nor columns. Received: "
            f"{path} for the columns {shown(columns)}. Take a task without labels, in Python "
            "label_column=None, or a .csv, .tsv or .jsonl file."
        )
    for number, line in enumerate(text_lines(path, "\n"), 1):
        if text := line.strip():
            yield number, [text]
