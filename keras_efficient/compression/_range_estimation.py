"""Estimate the ranges of activations and weights that lose least by quantization."""

import numpy as np

from keras_efficient.compression._integers import from_integers, input_grid, to_integers


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


def weight_clip(matrix: np.ndarray, bits: int, group_size: int | None) -> np.ndarray:
    """Return the clipping range of each channel or group, as a share of its largest magnitude.

    Args:
        matrix: float32 array [inputs, outputs].
        bits: 8 or 4.
        group_size: number of consecutive inputs in a group, or None: all inputs.

    Returns:
        float32 array [groups, outputs]: of 1.0, 0.975, ... 0.5 the share with the least squared
        error.
    """
    groups = 1 if group_size is None else len(matrix) // group_size
    best = np.full((groups, matrix.shape[1]), np.inf)
    clip = np.ones((groups, matrix.shape[1]), np.float32)
    for share in np.arange(1, 0.49, -0.025, dtype=np.float32):
        shares = np.full((groups, matrix.shape[1]), share, np.float32)
        rounded = from_integers(*to_integers(matrix, bits, group_size, clip=shares))
        error = ((rounded - matrix) ** 2).reshape(groups, -1, matrix.shape[1]).sum(1)
        clip = np.where(error < best, share, clip)
        best = np.minimum(best, error)
    return clip.astype(np.float32)
