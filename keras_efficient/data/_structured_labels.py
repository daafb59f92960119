"""`StructuredLabels`: labels of texts that are no array, such as tags of words or answers."""

import abc
from typing import Any


class StructuredLabels(abc.ABC):
    """Labels of texts that are no array: `ke.data.text` makes one of them with the tokens.

    Labels of this kind can be selected, hashed and checked like arrays, so that `Records` holds and
    `split` divides them.
    """

    @abc.abstractmethod
    def __len__(self) -> int:
        """Return the number of texts."""

    @abc.abstractmethod
    def __getitem__(self, indices: Any) -> "StructuredLabels":
        """Return the labels of the texts at an array of positions."""

    @abc.abstractmethod
    def __add__(self, other: Any) -> "StructuredLabels":
        """Return these labels followed by others of the same class."""

    @abc.abstractmethod
    def tobytes(self) -> bytes:
        """Return the same bytes for the same labels, on every machine."""

    @abc.abstractmethod
    def check(self, records: Any) -> None:
        """Require that the labels fit the texts and the names of the classes of `Records`.

        Raises:
            InputError: They do not.
        """
