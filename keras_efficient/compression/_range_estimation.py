"""How much of its extremes a range may leave out so that rounding costs least."""

import numpy as np

from keras_efficient.compression._integers import from_integers, input_grid, to_integers


def of_percentile(seen, percentile):
    """The range that leaves out `100 - percentile` percent of the numbers at either end."""
    edges = np.linspace(seen.low, seen.high, len(seen.counts) + 1)
    below = np.concatenate([[0], np.cumsum(seen.counts)]) / max(1, seen.counts.sum())
    share = percentile / 100
    low = edges[np.searchsorted(below, 1 - share, "right") - 1]
    high = edges[np.searchsorted(below, share, "left")]
    return min(float(low), 0.0), max(float(high), 0.0)


def of_least_error(seen, bits=8):
    """The range, of 64 shares of the full one, with the least mean square error of rounding."""
    if not seen.high > seen.low:
        return seen.low, seen.high
    edges = np.linspace(seen.low, seen.high, len(seen.counts) + 1)
    x = ((edges[1:] + edges[:-1]) / 2).astype(np.float32)

    def error(share):
        scale, zero, top = input_grid(seen.low * share, seen.high * share, bits)
        rounded = np.clip(np.rint(x / scale), -zero, top - zero) * scale
        return (seen.counts * (rounded - x).astype(np.float64) ** 2).sum()

    share = min(np.linspace(1, 0.2, 64), key=error)
    return float(seen.low * share), float(seen.high * share)


def of_weight(matrix, bits, group_size):
    """For each channel (or group) of [inputs, outputs] the share of its largest magnitude.

    Returns:
        float32 array [groups, outputs], of 1.0, 0.975, ... 0.5 the one with the least square error.
    """
    groups = 1 if group_size is None else len(matrix) // group_size
    best = clip = None
    for share in np.arange(1, 0.49, -0.025, dtype=np.float32):
        shares = np.full((groups, matrix.shape[1]), share, np.float32)
        seen = from_integers(*to_integers(matrix, bits, group_size, clip=shares))
        error = ((seen - matrix) ** 2).reshape(groups, -1, matrix.shape[1]).sum(1)
        if best is None:
            best, clip = error, shares
        clip = np.where(error < best, share, clip)
        best = np.minimum(best, error)
    return clip.astype(np.float32)
