"""The integers that a rounded weight or activation stands for, in NumPy.

The same float32 operations in the same order as `fake_quant`, so the integers here are those of
the model's forward pass, bit for bit, eager or compiled: a compiler may turn x / 127 into
x · (1 / 127) and may fuse a product with a sum, so scales are products and no sum follows one.
What writes a model down takes its integers from here.
"""

import numpy as np

#: A channel whose largest number is below this counts as zeros: its scale would be no normal float.
TINY = np.float32(1e-30)


def largest(bits) -> int:
    """The largest integer of a symmetric narrow range: 127 of 8 bits, 7 of 4."""
    return 2 ** (bits - 1) - 1


def reciprocal(number) -> np.float32:
    """1 / number, rounded to float32."""
    return np.float32(1) / np.float32(number)


def to_integers(matrix, bits=8, group_size=None, *, per_channel=True, clip=None):
    """Round a matrix to integers of a symmetric narrow range.

    With n = 2^(bits-1) - 1, and m the largest magnitude of a channel (or group of it):
    scale = m · (1 / n), integer = round(x / scale), ties to even, in float32.

    Args:
        matrix: float32 array [inputs, outputs].
        bits: 8 or 4. Default 8.
        group_size: int that divides inputs, or None (default): one group of all.
        per_channel: bool, a scale for each output (default) or one for all.
        clip: None or array [groups, outputs] above 0: m is so many times the largest magnitude.

    Returns:
        (int8 array [inputs, outputs], float32 scales [groups, outputs], or [1, 1]).
    """
    x = np.asarray(matrix, np.float32)
    inputs, outputs = x.shape
    size = group_size or inputs
    x = x.reshape(inputs // size, size, outputs)
    most = np.abs(x).max(1 if per_channel else None, keepdims=True)
    if clip is not None:
        most = most * np.asarray(clip, np.float32)[:, None]
    n = np.float32(largest(bits))
    scale = np.where(most > TINY, most * reciprocal(n), np.float32(1)).astype(np.float32)
    rounded = np.clip(np.rint(x / scale), -n, n)
    return rounded.reshape(inputs, outputs).astype(np.int8), scale[:, 0]


def from_integers(integers, scales):
    """The float32 matrix [inputs, outputs] that `to_integers` gave integers and scales of."""
    inputs, outputs = integers.shape
    groups = len(scales)
    x = integers.astype(np.float32).reshape(groups, inputs // groups, outputs) * scales[:, None]
    return x.reshape(inputs, outputs)


def input_integers(x, low, high, bits=8):
    """Round activations to unsigned integers of the range [low, high], in which zero is one.

    scale = (high - low) · (1 / (2^bits - 1)), zero point z = round(-low / scale),
    integer = clip(round(x / scale) + z, 0, 2^bits - 1).

    Args:
        x: float array of any shape.
        low, high: floats, low <= 0 <= high, low < high.
        bits: int, at most 8. Default 8.

    Returns:
        (uint8 array, float32 scale, int zero point); the value is (integer - zero point) · scale.
    """
    scale, zero, top = input_grid(low, high, bits)
    rounded = np.rint(np.asarray(x, np.float32) / scale)
    return (np.clip(rounded, -zero, top - zero) + zero).astype(np.uint8), scale, int(zero)


def input_grid(low, high, bits=8):
    """(float32 scale, zero point, largest integer) of the range [low, high]."""
    low, high, top = np.float32(low), np.float32(high), np.float32(2**bits - 1)
    scale = (high - low) * reciprocal(top)
    return scale, np.rint(-low / scale), top
