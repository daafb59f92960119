"""`tokenize_to_disk`: tokenize texts into files, in memory that does not grow with the texts."""

import array
import contextlib
import hashlib
import itertools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from keras_efficient._errors import InputError
from keras_efficient.data._class_labels import class_labels
from keras_efficient.data._next_tokens import next_token_rows
from keras_efficient.data._source_rows import SourceRows
from keras_efficient.data._tokenized_texts import (
    DESCRIPTION,
    LABELS,
    LENGTHS,
    SEGMENTS,
    TOKENS,
    TokenizedTexts,
    load_tokenized,
)
from keras_efficient.data._tokenizer import Tokenizer, as_tokenizer

#: Texts that are in memory at once.
_CHUNK = 4096
#: Changes if the files change.
_FORMAT = 1


def tokenize_to_disk(
    source: Any,
    tokenizer: Any,
    directory: str | os.PathLike,
    *,
    text_column: str | Sequence[str] = "text",
    label_column: str | Sequence[str] | None = "label",
    label_names: Sequence[str] | None = None,
    encode: Callable | None = None,
    delimiter: str | None = None,
    max_length: int = 128,
    next_token: bool = False,
) -> TokenizedTexts:
    """Tokenize data that is larger than memory, once, into files that batches are read from.

    The rows are read and checked one after the other, so that a bad one is found before training,
    and their tokens are written to a file. `ke.data.text` makes the same batches of the result as
    of `Records` of the same rows: shuffled globally, grouped by length, each text once per epoch.
    Their tokens are read from the file by random access, so it should be on a disk without moving
    parts. In memory remain the length, the place and the label of each text.

    The files are in a folder inside of `directory`, which is named by a hash of all that they
    follow from: names, sizes and modification times of data files, tokenizer, columns, labels and
    length. Where it exists, nothing is read again. Data that is not in files, and data with a
    tokenizer or an `encode` that is a local function, is tokenized on every call. Processes that
    write the same texts at the same time do not disturb each other: each writes files of its own,
    and the first to finish names the folder.

    Args:
        source: What `read_records` takes, such as "data/train-*.parquet", or a generator of dicts.
        tokenizer: A `Tokenizer`, or an object that `as_tokenizer` accepts.
        directory: Folder for the folder of the files; it is created.
        text_column: As in `read_records`. Default: "text".
        label_column: As in `read_records`. Default: "label".
        label_names: As in `read_records`. Default: None.
        encode: As in `read_records`. Default: None.
        delimiter: As in `read_records`. Default: None.
        max_length: Texts are truncated to this number of tokens. Default: 128.
        next_token: Whether each token is labelled with the next one, as in `text`. Labels are not
            read then. Default: False.

    Returns:
        The texts, for `ke.data.text`.

    Raises:
        InputError: The data, one of its rows or an argument cannot be used, or the files cannot be
            written.

    Examples:
        >>> tokenizer = ke.data.Tokenizer.from_directory(
        ...     "models/all-MiniLM-L6-v2", inputs=ke.data.KERASHUB
        ... )
        >>> texts = ke.data.tokenize_to_disk("reviews*.csv", tokenizer, "tokens")
        >>> batches = ke.data.text(texts, tokenizer, batch_size=32)
        >>> batches.stats.examples == len(texts)
        True

    Reference:
        `preprocess_data.py` of Megatron-LM, and `datasets.Dataset.map`, which writes Arrow files in
        the same way but needs Python code in the input pipeline.
    """
    tokenizer = as_tokenizer(tokenizer)
    max_length = tokenizer.check_length(max_length)
    if next_token:
        label_column = None
    rows = SourceRows(
        source, text_column=text_column, label_column=label_column, delimiter=delimiter
    )
    settings = {
        "format": _FORMAT,
        "tokenizer": tokenizer_hash(tokenizer),
        "tokenizers": tokenizers.__version__,
        "text_column": text_column,
        "label_column": label_column,
        "label_names": None if label_names is None else list(map(str, label_names)),
        "encode": None if encode is None else _qualified_name(encode),
        "delimiter": delimiter,
        "max_length": max_length,
        # Not in the names of other folders, which were written before there was this.
        **({"next_token": True} if next_token else {}),
    }
    directory = Path(directory)
    name = None
    known = settings["tokenizer"] is not None and settings["encode"] != ""
    if rows.files is not None and known:
        settings["files"] = list(map(_identity, rows.files))
        name = _hash(settings)
        if (directory / name).exists():
            return load_tokenized(directory / name)
    label_names = rows.label_names if label_names is None else label_names
    labelled = bool(label_column)
    with _partial_folder(directory) as folder:
        writer = _Writer(folder, tokenizer, max_length, next_token)
        encode = encode or class_labels
        values = []
        for chunk in _chunks(iter(rows), _CHUNK):
            first = len(writer.lengths)
            writer.write(
                [texts for texts, _ in chunk], lambda i, first=first: rows.place(first + i)
            )
            if labelled:
                # Most labels are few different strings.
                values += [sys.intern(y) if isinstance(y, str) else y for _, y in chunk]
                if not first:
                    # Before the rest is read. Other errors are raised when all values are known.
                    found: Any = None
                    with contextlib.suppress(InputError):
                        found, _ = encode(values, label_names, rows.place)
                    if found is not None:
                        _check_array(found, settings)
        labels, names = None, tuple(label_names or ())
        if labelled:
            labels, names = encode(values, label_names, rows.place)
            _check_array(labels, settings)
        fingerprint = writer.finish(labels, names)
        description = {
            "label_names": names,
            "labelled": labelled,
            "source": rows.name,
            "max_length": max_length,
            "truncated": writer.truncated,
            "longest": writer.longest,
            "fingerprint": fingerprint,
            "tokenizer": settings["tokenizer"],
            "dtype": writer.dtype,
            "pairs": writer.pairs,
            "next_token": next_token,
        }
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", "utf-8")
        final = directory / (name or _hash(settings | {"fingerprint": fingerprint}))
        with _written(directory):
            try:
                os.rename(folder, final)
            except OSError:
                # A folder with files in it is not replaced: another process was faster.
                if not final.exists():
                    raise
    return load_tokenized(final)


def tokenizer_hash(tokenizer: Tokenizer) -> str | None:
    """Return the hexadecimal SHA-256 of a tokenizer, or None if it is a function."""
    if tokenizer.serialized is None:
        return None
    return hashlib.sha256(tokenizer.serialized.encode()).hexdigest()


def _check_array(labels, settings):
    if not isinstance(labels, np.ndarray):
        raise InputError(
            "Texts on a disk have labels that are one array. Received: "
            f"{type(labels).__name__} from {settings['encode'] or 'encode'}. Read the data "
            "into memory by the task's `read`."
        )


class _Writer:
    """Files of tokens, to which chunks of texts are appended."""

    def __init__(self, folder, tokenizer, max_length, next_token):
        self.folder, self.tokenizer, self.max_length = folder, tokenizer, max_length
        self.next_token = next_token
        largest = tokenizer.largest_id
        self.dtype = "uint16" if largest is not None and largest < 2**16 else "int32"
        self.lengths = array.array("i")
        self.longest: int | None = 0
        self.truncated, self.pairs = 0, False
        self._digest = hashlib.sha256()

    def write(self, texts, place):
        """Append texts, lists of one or two strings; `place(i)` is the origin of text i."""
        first, *second = zip(*texts, strict=True)

        def describe(number):
            return f"{first[number]!r:.60} ({place(number)})"

        if self.next_token:
            ids, segments, cut, longest = next_token_rows(
                first, second[0] if second else None, self.tokenizer, self.max_length, describe
            )
            if segments is not None:
                self.pairs = True
                self._append(SEGMENTS, np.concatenate(segments))
        elif second:
            self.pairs = True
            ids, segments, cut, longest = self.tokenizer.encode_pairs(
                first, second[0], self.max_length
            )
            self._append(SEGMENTS, np.concatenate(segments).astype(np.uint8))
        else:
            ids, cut, longest = self.tokenizer.encode_and_count(first, self.max_length)
        for number, row in enumerate(ids):
            if not len(row):
                raise InputError(
                    f"Each text must have a token. Received: {describe(number)}, for which the "
                    "tokenizer returns none. Remove it."
                )
        self._append(TOKENS, np.concatenate(ids).astype(self.dtype))
        self.lengths.extend(map(len, ids))
        self.truncated += cut
        if self.longest is not None:
            self.longest = None if longest is None else max(self.longest, longest)

    def finish(self, labels, names) -> str:
        """Write lengths and labels; return the SHA-256 of everything."""
        self._save(LENGTHS, np.array(self.lengths, np.int32))
        if labels is not None:
            self._save(LABELS, labels)
        self._digest.update(json.dumps([self.dtype, self.pairs, list(names)]).encode())
        for path in self.folder.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        return self._digest.hexdigest()

    def _append(self, name, values):
        data = values.tobytes()
        self._digest.update(data)
        with _written(self.folder.parent), (self.folder / name).open("ab") as file:
            file.write(data)

    def _save(self, name, values):
        self._digest.update(values.tobytes())
        with _written(self.folder.parent):
            np.save(self.folder / name, values, allow_pickle=False)


@contextlib.contextmanager
def _partial_folder(directory: Path) -> Iterator[Path]:
    """Make a folder that nobody else writes to, and remove it unless it was renamed."""
    with _written(directory):
        directory.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".partial-", dir=directory))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _written(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            "The folder for tokenized texts must be writable, on a disk with enough space. "
            f"Received: {str(directory)!r} ({error.strerror or error}). Choose another one."
        ) from error


def _chunks(iterator, size):
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def _identity(path: Path) -> list:
    path = path.resolve()
    status = path.stat()
    return [str(path), status.st_size, status.st_mtime_ns]


def _qualified_name(function: Callable) -> str:
    """Return by what a function is known in another process, or "" if it is not."""
    name = f"{getattr(function, '__module__', '<')}.{getattr(function, '__qualname__', '<')}"
    # A method of a task is known by the class of the task, which may inherit it.
    owner = type(getattr(function, "__self__", None))
    name = f"{owner.__module__}.{owner.__qualname__}:{name}"
    return "" if "<" in name else name


def _hash(values: dict) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
