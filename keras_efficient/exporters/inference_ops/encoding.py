"""`Encoding`: how the numbers of an array are stored in a SavedModel."""

import math
from typing import Any

import numpy as np
import tensorflow as tf


class Encoding:
    """Arrays of which a graph makes another array, equal in all numbers.

    Args:
        array: the array that is encoded.
        parts: dict of the arrays that are stored, by name.

    Attributes:
        shape: shape of the array.
        dtype: its NumPy dtype.
        size: its number of elements.
        parts: as given.
        variables: list of a `tf.Variable` for each part, after `create`.
    """

    def __init__(self, array: np.ndarray, parts: dict[str, Any]):
        self.shape, self.dtype, self.parts = array.shape, array.dtype, parts
        self.size = math.prod(self.shape)
        self.variables: list[Any] = []

    @property
    def bytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self.parts.values())

    def create(self, name: str) -> None:
        """Create the variables of an export, before the graph that reads them."""
        with tf.device("CPU:0"):
            self.variables = [
                tf.Variable(array, trainable=False, name=f"{name}.{part}".replace("/", "."))
                for part, array in self.parts.items()
            ]

    def decode(self) -> tf.Tensor:
        """Return the array, made of the variables."""
        raise NotImplementedError

    def describe(self) -> str:
        """Return a short name of the form, for reports."""
        raise NotImplementedError


class Plain(Encoding):
    """An array that is stored as it is."""

    def __init__(self, array: np.ndarray, part: str = "values"):
        super().__init__(array, {part: array})

    def decode(self):
        return tf.convert_to_tensor(self.variables[0])

    def describe(self):
        return str(self.dtype)
