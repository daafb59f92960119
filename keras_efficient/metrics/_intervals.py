"""Confidence intervals of 95% for scores of an evaluation."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

_RESAMPLES = 1000
_Z = 1.959964


def share_interval(share: float, weights: np.ndarray) -> tuple[float, float]:
    """Return Wilson's interval of a share of examples.

    Args:
        share: the share found, in [0, 1].
        weights: float array [examples]; those that differ count as fewer examples.

    Reference:
        Wilson 1927; Kish 1965 for the effective number of weighted examples.
    """
    total, squares = float(np.sum(weights)), float(np.sum(np.square(weights, dtype=float)))
    n = total**2 / squares if squares else 1.0
    middle = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * np.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    return float(max(0.0, middle - half)), float(min(1.0, middle + half))


def bootstrap_intervals(
    columns: Mapping[str, Any],
    scores: Mapping[str, Callable[[dict[str, np.ndarray]], Any]],
) -> dict[str, tuple[float, float]]:
    """Return the percentile bootstrap intervals of scores that follow from sums over examples.

    Args:
        columns: by name, float array [examples], the terms of a sum.
        scores: by name, function of the sums by name, float arrays [resamples], that returns the
            scores of the resamples.

    Reference:
        Efron & Tibshirani 1993, "An Introduction to the Bootstrap".
    """
    table = np.stack([np.asarray(column, "float64") for column in columns.values()], 1)
    random, size = np.random.default_rng(0), len(table)
    sums = np.empty((_RESAMPLES, table.shape[1]))
    for number in range(_RESAMPLES):
        drawn = np.bincount(random.integers(size, size=size), minlength=size)
        sums[number] = drawn @ table
    by_name = dict(zip(columns, sums.T, strict=True))
    found = {}
    for name, score in scores.items():
        low, high = np.percentile(score(by_name), [2.5, 97.5])
        found[name] = float(low), float(high)
    return found
