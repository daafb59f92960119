"""Read records from files, tables and rows, with errors that name the line or row."""

from collections.abc import Callable, Sequence
from typing import Any

from keras_efficient.data._class_labels import class_labels
from keras_efficient.data._records import Records
from keras_efficient.data._source_rows import SourceRows


def read_records(
    source: Any,
    *,
    text_column: str | Sequence[str] = "text",
    label_column: str | Sequence[str] | None = "label",
    label_names: Sequence[str] | None = None,
    encode: Callable | None = None,
    delimiter: str | None = None,
) -> Records:
    """Read texts and labels from files, a DataFrame, a Hugging Face dataset or rows in memory.

    Files end in .csv, .tsv, .jsonl, .ndjson, .parquet or .txt; all but Parquet are UTF-8, and may
    be gzipped (.csv.gz). A .txt file has one text per line and no labels, so it needs
    `label_column=None`. Several files have one format, and the same columns if they are tables. CSV
    and TSV files have a header row. In CSV, fields in double quotes may contain delimiters and
    newlines. In TSV, quotes are ordinary characters, unless every name of the header is in double
    quotes: then the file is quoted as CSV is. A JSON Lines file has one object per line. Blank
    lines are skipped. Any other row that cannot be used raises an error with its origin: the file
    and the number of its first line, or the position of the row.

    Args:
        source: Path of a file; pattern of files, such as "data/train-*.parquet", which are read in
            the order of their names; list of paths and patterns; pandas DataFrame; Hugging Face
            `Dataset` or finite `IterableDataset`, whose `ClassLabel`s become class names; dict of
            columns (NumPy arrays or lists of equal length); structured NumPy array; finite
            iterable, such as a generator, or `tf.data.Dataset` of dicts. For texts without
            columns there is `Records.of`.
        text_column: Column, or JSON key, of the texts; two of them for pairs of texts. Default:
            "text".
        label_column: Column, or JSON key, of the labels, which are strings, numbers or bools;
            None reads no labels. Several columns, for tasks that take them, give a dict of values
            by column for each row. Default: "label".
        label_names: The classes in the order of their indices. Pass those of the training records
            when reading validation data. Default: None, those of a `ClassLabel`, otherwise the
            sorted labels; sorted as numbers if all of them are, which then have to be whole.
        encode: Function that makes an array of the labels, `(values, label_names, where) ->
            (labels, label_names)`, where `where(i)` names the origin of value i: the `encode` of a
            task (`ke.tasks.get("regression").encode`). Default: None, one class per text.
        delimiter: Character between the fields of .csv and .tsv files. Default: None, the one of
            comma, semicolon, tab and "|" that separates the columns in the header; a warning
            names it if it is not the one of the suffix.

    Returns:
        The records, in the order of the rows.

    Raises:
        InputError: The source or one of its rows cannot be used. The message names its origin.

    Examples:
        >>> train = ke.data.read_records("reviews.csv")
        >>> test = ke.data.read_records("reviews*.csv", label_names=train.label_names)
        >>> train.label_names == test.label_names
        True
        >>> rows = ({"body": f"text {i}", "stars": i % 2} for i in range(4))
        >>> ke.data.read_records(rows, text_column="body", label_column="stars").label_names
        ('0', '1')

    Reference:
        RFC 4180 (CSV), https://www.iana.org/assignments/media-types/text/tab-separated-values
        (TSV), https://jsonlines.org, https://parquet.apache.org (read by pyarrow) and
        https://huggingface.co/docs/datasets.
    """
    rows = SourceRows(
        source, text_column=text_column, label_column=label_column, delimiter=delimiter
    )
    texts, values = zip(*rows, strict=True)
    first, *second = zip(*texts, strict=True)
    second = second[0] if second else None
    if label_names is None:
        label_names = rows.label_names
    if not label_column:
        return Records(first, None, tuple(label_names or ()), rows.name, second)
    labels, names = (encode or class_labels)(values, label_names, rows.place)
    return Records(first, labels, names, rows.name, second)
