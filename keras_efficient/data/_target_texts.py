"""`TargetTexts`: a text to generate for each text, as labels of records."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from keras_efficient.data._check_text import check_text
from keras_efficient.data._structured_labels import StructuredLabels


class TargetTexts(StructuredLabels):
    """What a sequence-to-sequence model should generate for each text.

    `ke.data.text` tokenizes them as it does the texts.

    Args:
        texts: strings with at least one character that is not white space.

    Examples:
        >>> targets = ke.data.TargetTexts(["K AE1 T", "D AO1 G"])
        >>> len(targets), targets[[1]].texts
        (2, ('D AO1 G',))

    Reference:
        The `text_target` of Hugging Face's tokenizers,
        https://huggingface.co/docs/transformers/tasks/translation.
    """

    def __init__(self, texts: Iterable[str]):
        self.texts = tuple(texts)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, indices: Any) -> "TargetTexts":
        return TargetTexts(self.texts[i] for i in np.asarray(indices).tolist())

    def __add__(self, other: "TargetTexts") -> "TargetTexts":
        return TargetTexts((*self.texts, *other.texts))

    def tobytes(self) -> bytes:
        """Return the same bytes for the same texts, on every machine."""
        parts = [text.encode() for text in self.texts]
        sizes = np.array([len(part) for part in parts], "<i8").tobytes()
        return sizes + b"".join(parts)

    def check(self, records: Any) -> None:
        """Require texts that can be tokenized.

        Raises:
            InputError: one of them is empty, or no valid text.
        """
        for number, text in enumerate(self.texts):
            check_text(text, f"target of {records.source}, item {number}")
