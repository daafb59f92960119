"""Initial weights of a classification head."""

import numpy as np


def head_weights(width: int, num_labels: int, seed: int) -> list[np.ndarray]:
    """Return the initial kernel `[width, num_labels]` and bias `[num_labels]` of a head.

    Args:
        width: Size of the head's input.
        num_labels: Number of classes.
        seed: Seed of the kernel, which is normal with standard deviation 0.02.
    """
    kernel = np.random.default_rng(seed).normal(0.0, 0.02, (width, num_labels))
    return [kernel.astype("float32"), np.zeros(num_labels, "float32")]
