"""Integers of 1 to 8 bits, packed into bytes, and unpacked by operations of a graph."""

import numpy as np
import tensorflow as tf

#: Widths of the fields of which a byte holds a whole number.
_WIDTHS = (8, 4, 2, 1)


def pack_bits(integers: np.ndarray, bits: int) -> np.ndarray:
    """Pack integers below `2 ** bits`.

    5 bits, for example, are a field of 4 bits and one of 1 bit. All fields of a width follow each
    other. A byte holds fields that are far apart, so that a graph unpacks many at a time.

    Args:
        integers: uint8 array [size].
        bits: 1 to 8.

    Returns:
        uint8 array.
    """
    packed, low = [], 0
    for width in _fields(bits):
        per_byte = 8 // width
        length = _length(integers.size, width)
        field = np.zeros(per_byte * length, "uint8")
        field[: integers.size] = (integers >> low) & (2**width - 1)
        shifts = width * np.arange(per_byte, dtype="uint8")[:, None]
        packed.append(np.bitwise_or.reduce(field.reshape(per_byte, length) << shifts, 0))
        low += width
    return np.concatenate(packed).astype("uint8")


def unpack_bits(packed: tf.Tensor, size: int, bits: int) -> tf.Tensor:
    """Return the integers of `pack_bits`, uint8 [size]."""
    unpacked, low, start = tf.zeros([size], tf.uint8), 0, 0
    for width in _fields(bits):
        length = _length(size, width)
        field = tf.concat(split_bytes(packed[start : start + length], width), 0)[:size]
        unpacked += tf.bitwise.left_shift(field, tf.constant(low, tf.uint8))
        low, start = low + width, start + length
    return unpacked


def split_bytes(packed: tf.Tensor, width: int) -> list[tf.Tensor]:
    """Return the fields of `width` bits of all bytes, from the lowest to the highest."""
    last = tf.constant(2**width - 1, tf.uint8)
    return [
        tf.bitwise.bitwise_and(tf.bitwise.right_shift(packed, tf.constant(low, tf.uint8)), last)
        for low in range(0, 8, width)
    ]


def _fields(bits):
    return [width for width in _WIDTHS if bits & width]


def _length(size, width):
    return -(-size * width // 8)
