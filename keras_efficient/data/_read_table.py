"""Rows of .csv and .tsv files, whose delimiter is found in the header."""

import csv
import pathlib
import warnings
from collections.abc import Iterator, Sequence

from keras_efficient._errors import InputError
from keras_efficient.data._columns import check_distinct, column_index
from keras_efficient.data._text_lines import text_lines

#: Delimiters, and that of each suffix first.
_DELIMITERS = ",;\t|"
_OF_SUFFIX = {".csv": ",", ".tsv": "\t"}


def table_columns(
    path: pathlib.Path, suffix: str, columns: Sequence[str], delimiter: str | None
) -> list[str]:
    """Return the names in the header of a file; the arguments are those of `table_rows`."""
    return _header(path, suffix, _delimiter(path, suffix, columns, delimiter))[1]


def table_rows(
    path: pathlib.Path, suffix: str, columns: Sequence[str], delimiter: str | None
) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the first line of each row, and the fields of the columns.

    Args:
        path: Path of the file.
        suffix: ".csv" or ".tsv".
        columns: Names of the columns.
        delimiter: One character; None for the one under which the header has the columns: the
            one of the suffix, if that has them.

    Raises:
        InputError: The file or a row cannot be used.
    """
    chosen = _delimiter(path, suffix, columns, delimiter)
    line, header, quoted = _header(path, suffix, chosen)
    rows = _csv_rows(path, chosen, quoted)
    next(rows)
    check_distinct(header, f"{path}, line {line}")
    places = [column_index(column, header, f"{path}, line {line}") for column in columns]
    if delimiter is None and chosen != _OF_SUFFIX[suffix]:
        warnings.warn(
            f"The delimiter of {path} is {chosen!r}, by its header, not {_OF_SUFFIX[suffix]!r} as "
            f"its suffix says. Pass delimiter={chosen!r} if that is right.",
            stacklevel=4,
        )
    warned = False
    for line, row in rows:
        if len(row) != len(header):
            remedy = "Put fields that hold it in double quotes"
            if not quoted:
                remedy = "In .tsv, put all names of the header in double quotes if fields are"
            raise InputError(
                f"Each row must have {len(header)} fields, as the header has. Received: "
                f"{len(row)} in {path}, line {line}. The delimiter is {chosen!r}. {remedy}."
            )
        if not quoted and not warned and _looks_quoted(row[places[0]]):
            warnings.warn(
                f"Quotes in a .tsv file are part of the text. Received: {path}, line {line}, "
                "with a text that looks quoted. If it is, put all names of the header in "
                "double quotes too, or use .csv.",
                stacklevel=4,
            )
            warned = True
        yield line, [row[place] for place in places]


def _delimiter(path, suffix, columns, delimiter) -> str:
    if delimiter is not None:
        return delimiter
    usual = _OF_SUFFIX[suffix]
    headers = {}
    for candidate in usual + _DELIMITERS.replace(usual, ""):
        headers[candidate] = _header(path, suffix, candidate)[1]
        if set(columns) <= set(headers[candidate]):
            return candidate
    # No name fits: the error message is about the fields of the header as it seems to be meant.
    return usual if len(headers[usual]) > 1 else max(headers, key=lambda d: len(headers[d]))


def _header(path, suffix, delimiter) -> tuple[int, list[str], bool]:
    """Return the line and the fields of the header, and whether fields may be quoted."""
    quoted = suffix != ".tsv" or delimiter != "\t"
    line, names = next(_csv_rows(path, delimiter, quoted))
    if not quoted and all(map(_is_enclosed, names)):
        quoted = True
        line, names = next(_csv_rows(path, delimiter, quoted))
    if not any(map(str.strip, names)):
        for _ in text_lines(path, newline=""):
            pass  # A file of white space alone is empty, which is an error at its end.
    return line, names, quoted


def _csv_rows(path, delimiter, quoted) -> Iterator[tuple[int, list[str]]]:
    # Unless strict, an unclosed quote takes in the rest of the file.
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    lines = text_lines(path, newline="")
    reader = csv.reader(lines, delimiter=delimiter, strict=True, quoting=quoting)
    while True:
        line = reader.line_num + 1
        # The default limit of 131,072 characters is too low for long documents. It is global to
        # the process, so it is restored.
        limit = csv.field_size_limit(2**31 - 1)
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(
                f"Quotes must be closed, and doubled inside quoted fields. Received: the row that "
                f"starts in {path}, line {line} ({error}). Correct its quotes, or use .jsonl."
            ) from error
        finally:
            csv.field_size_limit(limit)
        if row:
            yield line, row


def _is_enclosed(field: str) -> bool:
    return len(field) > 1 and field[0] == field[-1] == '"'


def _looks_quoted(field: str) -> bool:
    inside = field[1:-1]
    return _is_enclosed(field) and '"' in inside and '"' not in inside.replace('""', "")
