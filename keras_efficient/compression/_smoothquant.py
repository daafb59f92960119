"""Move what is hard to round of a layer's inputs into its weight."""

import numpy as np


def smoothing(channels, matrix, migration):
    """How much smaller to make each input, and larger each row of the weight.

    s_j = max|X_j|^α / max|W_j|^(1-α): with α = 0.5 both have the same range for each input j.

    Args:
        channels: float array [inputs], max|X_j|.
        matrix: float array [inputs, outputs], W.
        migration: float in [0, 1], α.

    Returns:
        float32 array [inputs], of numbers above 0.

    Reference:
        Xiao et al. 2022, "SmoothQuant".
    """
    x, w = np.asarray(channels, np.float64), np.abs(np.asarray(matrix, np.float64)).max(1)
    # An input that is always zero, or that nothing reads, has nothing to move.
    usable = (x > 1e-12) & (w > 1e-12)
    x, w = np.where(usable, x, 1.0), np.where(usable, w, 1.0)
    return np.clip(x**migration / w ** (1 - migration), 1e-6, 1e6).astype(np.float32)
