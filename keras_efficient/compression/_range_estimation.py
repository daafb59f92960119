"""Estimate the ranges of activations and weights that lose least by quantization."""

import numpy as np

from keras_efficient.compression._integers import TINY, from_integers, input_grid, to_integers


def percentile_range(stats, percentile: float) -> tuple[float, float]:
    """Return the range that excludes `100 - percentile` percent of the numbers at either end."""
    edges = np.linspace(stats.low, stats.high, len(stats.counts) + 1)
    below = np.concatenate([[0], np.cumsum(stats.counts)]) / max(1, stats.counts.sum())
    share = percentile / 100
    low = edges[np.searchsorted(below, 1 - share, "right") - 1]
    high = edges[np.searchsorted(below, share, "left")]
    return min(float(low), 0.0), max(float(high), 0.0)


def least_error_range(stats, bits: int = 8) -> tuple[float, float]:
    """Return the range, of 64 shares of the full one, with the least mean squared error."""
    if not stats.high > stats.low:
        return stats.low, stats.high
    edges = np.linspace(stats.low, stats.high, len(stats.counts) + 1)
    x = ((edges[1:] + edges[:-1]) / 2).astype(np.float32)

    def error(share):
        scale, zero, top = input_grid(stats.low * share, stats.high * share, bits)
        rounded = np.clip(np.rint(x / scale), -zero, top - zero) * scale
        return (stats.counts * (rounded - x).astype(np.float64) ** 2).sum()

    share = min(np.linspace(1, 0.2, 64), key=error)
    return float(stats.low * share), float(stats.high * share)


def weight_clip(
    matrix: np.ndarray, bits: int, group_size: int | None, gram: np.ndarray | None = None
) -> np.ndarray:
    """Return the clipping range of each channel or group, as a share of its largest magnitude.

    Clipping trades an error of the few largest weights, always towards zero, for smaller errors of
    all others. The squared error of the weights counts both alike, but what matters is the error of
    the product XW. There, the weights of large inputs count more, and errors of inputs that
    correlate add up. Without the inputs, a clipped channel can be worse than an unclipped one.

    Args:
        matrix: float32 array [inputs, outputs], W.
        bits: 8, 7 or 4.
        group_size: number of consecutive inputs in a group, or None: all inputs.
        gram: float array [inputs, inputs], XᵀX of some inputs X. Default: None, which measures the
            error of the weights themselves.

    Returns:
        float32 array [groups, outputs]: of 1.0, 0.975, ... 0.5 the share with the least squared
        error. With `gram` no output has a larger error than without clipping.
    """
    size = group_size or len(matrix)
    groups, outputs = len(matrix) // size, matrix.shape[1]
    if gram is not None:
        gram = (gram / max(np.trace(gram), TINY)).astype(np.float32)

    def rounding_error(shares):
        return from_integers(*to_integers(matrix, bits, group_size, clip=shares)) - matrix

    best = np.full((groups, outputs), np.inf)
    clip = np.ones((groups, outputs), np.float32)
    for share in np.arange(1, 0.49, -0.025, dtype=np.float32):
        difference = rounding_error(np.full((groups, outputs), share, np.float32))
        difference = difference.reshape(groups, size, outputs)
        weighted = difference
        if gram is not None:
            # With XᵀX of each group's own inputs.
            starts = range(0, len(matrix), size)
            weighted = np.stack(
                [
                    gram[i : i + size, i : i + size] @ part
                    for i, part in zip(starts, difference, strict=True)
                ]
            )
        error = (weighted * difference).sum(1)
        clip = np.where(error < best, share, clip)
        best = np.minimum(best, error)
    clip = clip.astype(np.float32)
    if gram is not None and groups > 1:
        # The errors of an output's groups add up, too.
        clipped, plain = (
            ((gram @ error) * error).sum(0)
            for error in (rounding_error(clip), rounding_error(np.ones_like(clip)))
        )
        clip[:, clipped > plain] = 1.0
    return clip
