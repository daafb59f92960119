"""`SourceRows`: the rows of any source of data, one at a time, and where each is from."""

import array
import bisect
import functools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from keras_efficient._errors import InputError
from keras_efficient.data._check_text import check_text
from keras_efficient.data._columns import shown
from keras_efficient.data._data_files import (
    check_columns,
    data_files,
    file_rows,
    files_name,
    is_file_source,
    row_place,
)
from keras_efficient.data._read_data_frame import data_frame_place, data_frame_rows, is_data_frame
from keras_efficient.data._read_hugging_face import (
    hugging_face_label_names,
    hugging_face_place,
    hugging_face_rows,
    is_hugging_face,
)
from keras_efficient.data._read_items import item_place, item_rows


class SourceRows:
    """Iterator of `(texts, label)`, whose texts are checked; read it once.

    Args:
        source: What `read_records` takes.
        text_column: Name of the column of texts, or two names.
        label_column: Name of the column of labels, several names, or None.
        delimiter: Delimiter of CSV and TSV files, or None.

    Attributes:
        name: str, the origin of all rows for error messages.
        files: The paths of the files, or None for other sources.
        label_names: Names of the classes if the source itself has them, or None.

    Raises:
        InputError: The arguments contradict each other, or files have different formats or columns;
            in iteration, a row cannot be used.
    """

    def __init__(
        self,
        source: Any,
        *,
        text_column: str | Sequence[str],
        label_column: str | Sequence[str] | None,
        delimiter: str | None,
    ):
        self._texts, self._labels = _names(text_column), _names(label_column)
        self._single = isinstance(label_column, str)
        columns = self._columns = [*self._texts, *self._labels]
        if not 1 <= len(self._texts) <= 2:
            raise InputError(
                "`text_column` must name one column, or two for pairs of texts. Received: "
                f"{text_column!r}. Name the columns of the texts."
            )
        if len(set(columns)) < len(columns):
            raise InputError(
                "`text_column` and `label_column` must differ. Received: "
                f"{shown([c for c in dict.fromkeys(columns) if columns.count(c) > 1])} more than "
                "once. Name the column of each; in Python, label_column=None reads no labels."
            )
        if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
            raise InputError(
                "`delimiter` must be one character, and neither a quote nor the end of a line. "
                f"Received: {delimiter!r}. Give for example ';', or leave it out."
            )
        if delimiter is not None and not is_file_source(source):
            raise InputError(
                "`delimiter` is for .csv and .tsv files. Received: "
                f"{delimiter!r} for {type(source).__name__}. Leave it out."
            )
        self.files: list[pathlib.Path] | None = None
        self.label_names: list[str] | None = None
        # The origin of row i is the number of it in the last part that starts at i or before.
        self._places: list[Callable[[int], str]] = []
        self._starts: list[int] = []
        self._numbers = array.array("q")
        self._parts: Iterable[tuple[Callable[[int], str], Iterator[tuple[int, list]]]]
        if is_file_source(source):
            self.files = data_files(source)
            check_columns(self.files, columns, delimiter)
            self.name = files_name(self.files)
            self._parts = (
                (functools.partial(row_place, path), file_rows(path, columns, delimiter))
                for path in self.files
            )
        elif is_data_frame(source):
            self.name, rows = "DataFrame", data_frame_rows(source, columns)
            self._parts = [(data_frame_place, rows)]
        elif is_hugging_face(source):
            self.name, rows = "Dataset", hugging_face_rows(source, columns)
            self._parts = [(hugging_face_place, rows)]
            if self._single:
                self.label_names = hugging_face_label_names(source, self._labels[0])
        else:
            self.name, self._parts = "memory", [(item_place, item_rows(source, columns))]

    def __iter__(self) -> Iterator[tuple[list[str], Any]]:
        """Yield the one or two texts of each row, and its label: a dict of several columns."""
        for place, rows in self._parts:
            self._places.append(place)
            self._starts.append(len(self._numbers))
            for number, row in rows:
                self._numbers.append(number)
                texts, labels = row[: len(self._texts)], row[len(self._texts) :]
                for text in texts:
                    check_text(text, place(number))
                named = zip(self._labels, labels, strict=True)
                yield texts, labels[0] if self._single else dict(named)
        if not self._numbers:
            raise InputError(
                f"The data must have at least one row. Received: {self.name} without any. Check "
                "that it was written completely."
            )

    def place(self, index: int) -> str:
        """Return the origin of the row that was yielded as number `index`, for error messages."""
        part = bisect.bisect_right(self._starts, index) - 1
        return self._places[part](self._numbers[index])


def _names(column: str | Sequence[str] | None) -> list[str]:
    return [column] if isinstance(column, str) else list(column or ())
