"""Arrays of few different numbers as indices into a table of these."""

import numpy as np
import tensorflow as tf

from keras_efficient.exporters.inference_ops.encoding import Encoding
from keras_efficient.exporters.inference_ops.packed_bits import pack_bits, unpack_bits

#: Elements that are looked at first: most arrays have too many different numbers among them.
_FIRST = 4096
_MOST = 256


class Codebook(Encoding):
    """An array as indices of 1 to 8 bits, and a table.

    Args:
        array: array of any shape.
        indices: int array of its shape.
        table: array [numbers], or [numbers, columns] with a table for each column of a matrix.
    """

    def __init__(self, array: np.ndarray, indices: np.ndarray, table: np.ndarray):
        self.bits = max(1, (len(table) - 1).bit_length())
        packed = pack_bits(indices.reshape(-1).astype("uint8"), self.bits)
        super().__init__(array, {"indices": packed, "table": table})

    def decode(self):
        packed, table = map(tf.convert_to_tensor, self.variables)
        indices = tf.cast(unpack_bits(packed, self.size, self.bits), tf.int32)
        if len(table.shape) == 2:
            columns = self.parts["table"].shape[1]
            indices = tf.reshape(indices, [-1, columns]) * columns + tf.range(columns)
            table = tf.reshape(table, [-1])
        return tf.reshape(tf.gather(table, indices), self.shape)

    def describe(self):
        return f"{self.bits}-bit codebook of {self.dtype}"


def codebook(array: np.ndarray) -> Codebook | None:
    """Return an array as a `Codebook`, or None if it has more than 256 different numbers."""
    flat = array.reshape(-1)
    if len(np.unique(flat[:_FIRST])) > _MOST:
        return None
    table = np.unique(flat)
    return None if len(table) > _MOST else Codebook(array, np.searchsorted(table, array), table)


def codebook_of_columns(matrix: np.ndarray) -> Codebook | None:
    """Return a matrix as a `Codebook` with a table for each column.

    Clustered weights that are rounded with a scale for each output are such matrices.

    Returns:
        None if a column has more than 128 different numbers.
    """
    tables = []
    for column in matrix.T:
        tables.append(np.unique(column))
        if len(tables[-1]) > _MOST // 2:
            return None
    table = np.zeros((max(map(len, tables)), len(tables)), matrix.dtype)
    indices = np.empty(matrix.shape, "uint8")
    for number, (column, found) in enumerate(zip(matrix.T, tables, strict=True)):
        table[: len(found), number] = found
        indices[:, number] = np.searchsorted(found, column)
    return Codebook(matrix, indices, table)
