"""Sparse arrays as a bit for each number, and the numbers that are not zero."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from keras_efficient.exporters.inference_ops.encoding import Encoding
from keras_efficient.exporters.inference_ops.packed_bits import split_bytes


class Bitmap(Encoding):
    """An array as a bitmap, 1 where it is not zero, and an encoding of these numbers.

    Element i is bit i // length of byte i % length, where length is the number of bytes. The
    numbers are in the order of the bytes and, within a byte, of its bits.

    Args:
        array: array of any shape.
        encode: function of an array [numbers] that returns an `Encoding`. A zero precedes the
            numbers that are not zero.
    """

    def __init__(self, array: np.ndarray, encode: Callable[[np.ndarray], Encoding]):
        length = -(-array.size // 8)
        padded = np.zeros(8 * length, array.dtype)
        padded[: array.size] = array.reshape(-1)
        padded = padded.reshape(8, length)
        bits = np.packbits(padded != 0, axis=0, bitorder="little")[0]
        numbers = padded.T[(padded != 0).T]
        self.numbers = encode(np.concatenate([np.zeros(1, array.dtype), numbers]))
        super().__init__(array, {"bitmap": bits} | self.numbers.parts)

    def create(self, name):
        super().create(name)
        self.numbers.variables = self.variables[1:]

    def decode(self):
        bitmap = tf.convert_to_tensor(self.variables[0])
        counts = tf.cast(tf.raw_ops.PopulationCount(x=bitmap), tf.int32)
        # Index of the number before the first of each byte.
        last, indices = tf.cumsum(counts, exclusive=True), []
        for bit in split_bytes(bitmap, 1):
            bit = tf.cast(bit, tf.int32)
            last += bit
            indices.append(last * bit)
        flat = tf.gather(self.numbers.decode(), tf.concat(indices, 0))
        return tf.reshape(flat[: self.size], self.shape)

    def describe(self):
        return f"bitmap and {self.numbers.describe()}"
