"""Tokenized texts in files, for data that is larger than memory."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from keras_efficient._errors import InputError, listed

#: Files of a folder. The description is written last.
TOKENS, SEGMENTS, LENGTHS, LABELS = "tokens.bin", "segments.bin", "lengths.npy", "labels.npy"
DESCRIPTION = "texts.json"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TokenizedTexts:
    """Tokenized texts in a folder, and their labels in memory: what `tokenize_to_disk` returns.

    `ke.data.text` takes it like `Records`, and reads the tokens of each batch from the disk.

    Attributes:
        directory: Folder of the files.
        lengths: Int32 array `[texts]`, the number of tokens of each text.
        labels: Labels as those of `Records`, or None.
        label_names: Name of each class.
        source: Origin of the texts, for error messages.
        max_length: Number of tokens to which texts are truncated.
        truncated: Number of truncated texts.
        longest: Number of tokens of the longest text before truncation; None if the tokenizer does
            not tell.
        fingerprint: Hexadecimal SHA-256 of tokens, labels and label names.
        tokenizer: Hexadecimal SHA-256 of the tokenizer; None if it is a function.
        dtype: Of the tokens in the file, "uint16" or "int32".
        pairs: Whether the texts are pairs, whose segments are in a file too.
        next_token: Whether they are for causal language modelling, with a start and an end token
            each.

    Examples:
        >>> tokenizer = ke.data.Tokenizer.from_directory(
        ...     "models/all-MiniLM-L6-v2", inputs=ke.data.KERASHUB
        ... )
        >>> texts = ke.data.tokenize_to_disk("reviews.csv", tokenizer, "tokens")
        >>> isinstance(texts, ke.data.TokenizedTexts), len(texts) == len(texts.lengths)
        (True, True)

    Reference:
        The indexed data sets of Megatron-LM, https://github.com/NVIDIA/Megatron-LM.
    """

    directory: Path
    lengths: np.ndarray
    labels: Any
    label_names: tuple[str, ...]
    source: str
    max_length: int
    truncated: int
    longest: int | None
    fingerprint: str
    tokenizer: str | None
    dtype: str
    pairs: bool
    next_token: bool = False

    def __len__(self) -> int:
        return len(self.lengths)

    def __repr__(self) -> str:
        labels = "no labels" if self.labels is None else listed(self.label_names) or "numbers"
        labels = "next tokens" if self.next_token else labels
        return (
            f"TokenizedTexts({len(self):,} {'pairs of ' if self.pairs else ''}texts, "
            f"{self.tokens:,} tokens, {labels}, source={self.source!r})"
        )

    @functools.cached_property
    def tokens(self) -> int:
        """Return the number of tokens of all texts."""
        return int(self.lengths.sum(dtype=np.int64))

    @property
    def has_classes(self) -> bool:
        """Return whether each text is labelled with one class."""
        return self.labels is not None and self.labels.ndim == 1 and self.labels.dtype.kind == "i"


def load_tokenized(directory: Path) -> TokenizedTexts:
    """Return the texts in a folder that `tokenize_to_disk` wrote.

    Raises:
        InputError: A file is missing or has another size than when it was written.
    """
    try:
        found = json.loads((directory / DESCRIPTION).read_text("utf-8"))
        labelled = found.pop("labelled")
        texts = TokenizedTexts(
            directory=directory,
            lengths=np.load(directory / LENGTHS, allow_pickle=False),
            labels=np.load(directory / LABELS, allow_pickle=False) if labelled else None,
            label_names=tuple(found.pop("label_names")),
            **found,
        )
        sizes = {TOKENS: texts.tokens * np.dtype(texts.dtype).itemsize}
        sizes |= {SEGMENTS: texts.tokens} if texts.pairs else {}
        for name, size in sizes.items():
            if (directory / name).stat().st_size != size:
                raise ValueError(f"{name} does not have {size:,} bytes")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"A folder of tokenized texts must be complete. Received: {str(directory)!r} "
            f"({str(error)[:200]}). Delete it; it is written again."
        ) from error
    return texts
