"""NumPy arithmetic between floats and the integers that quantized values stand for.

These are the float32 operations of `_fake_quant` in the same order, so the integers equal those of
the model's forward pass bit for bit, eager or compiled. A compiler may turn x / 127 into
x · (1 / 127) and may fuse a product with a sum. Therefore scales are computed as products, and no
sum follows a product. Exports take their integers from here.
"""

import numpy as np

#: Channels whose largest magnitude is below this count as zeros: their scale would be denormal.
TINY = np.float32(1e-30)


def largest(bits: int) -> int:
    """Return the largest integer of a symmetric narrow range: 127 for 8 bits, 63 for 7, 7 for 4."""
    return 2 ** (bits - 1) - 1


def reciprocal(number: float) -> np.float32:
    """Return 1 / number, rounded to float32."""
    return np.float32(1) / np.float32(number)


def to_integers(
    matrix: np.ndarray,
    bits: int = 8,
    group_size: int | None = None,
    *,
    per_channel: bool = True,
    clip: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Round a matrix to integers of a symmetric narrow range.

    With n = 2^(bits-1) - 1 and m the largest magnitude of a channel, or of a group of it:
    scale = m · (1 / n), integer = round(x / scale), ties to even, in float32.

    Args:
        matrix: float32 array [inputs, outputs].
        bits: 8, 7 or 4. Default: 8.
        group_size: int that divides inputs. Default: None, one group of all inputs.
        per_channel: whether each output has its own scale. Default: True. False: one for all.
        clip: array [groups, outputs] of numbers above 0 that m is multiplied with. Default: None.

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
    scale = np.where(most > TINY, most * reciprocal(largest(bits)), np.float32(1)).astype(
        np.float32
    )
    rounded = np.clip(np.rint(x / scale), -n, n)
    return rounded.reshape(inputs, outputs).astype(np.int8), scale[:, 0]


def from_integers(integers: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return the float32 matrix [inputs, outputs] of the results of `to_integers`."""
    inputs, outputs = integers.shape
    groups = len(scales)
    x = integers.astype(np.float32).reshape(groups, inputs // groups, outputs) * scales[:, None]
    return x.reshape(inputs, outputs)


def input_integers(
    x: np.ndarray, low: float, high: float, bits: int = 8
) -> tuple[np.ndarray, np.float32, int]:
    """Round activations to unsigned integers of the range [low, high], which contains zero.

    scale = (high - low) · (1 / (2^bits - 1)), zero point z = round(-low / scale),
    integer = clip(round(x / scale) + z, 0, 2^bits - 1).

    Args:
        x: float array of any shape.
        low: lower end of the range, low <= 0 and low < high.
        high: upper end of the range, high >= 0.
        bits: at most 8. Default: 8.

    Returns:
        (uint8 array, float32 scale, int zero point); the value is (integer - zero point) · scale.
    """
    scale, zero, top = input_grid(low, high, bits)
    rounded = np.rint(np.asarray(x, np.float32) / scale)
    return (np.clip(rounded, -zero, top - zero) + zero).astype(np.uint8), scale, int(zero)


def input_grid(low: float, high: float, bits: int = 8) -> tuple[np.float32, np.float32, np.float32]:
    """Return (scale, zero point, largest integer) of the range [low, high], all float32."""
    first, last, top = np.float32(low), np.float32(high), np.float32(2**bits - 1)
    scale = (last - first) * reciprocal(float(top))
    return scale, np.rint(-first / scale), top
