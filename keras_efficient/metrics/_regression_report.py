"""Errors and correlations of predicted numbers, beside those of always predicting the mean."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from keras_efficient._errors import InputError
from keras_efficient.metrics._intervals import bootstrap_intervals
from keras_efficient.metrics._task_report import TaskReport


@dataclass(frozen=True)
class RegressionReport(TaskReport):
    """Quality of predicted numbers on labelled examples.

    The score is R², the share of the labels' variance that is explained: 1 for a perfect model, 0
    for always predicting the mean. Intervals are those of the percentile bootstrap with 1,000
    resamples. The warnings tell of predictions that are all equal, and of an RMSE that is not
    clearly below that of the mean.

    Attributes:
        mae: float, mean absolute error, in the unit of the labels.
        rmse: float, root of the mean squared error, in the unit of the labels.
        r2: float, R² = 1 - (rmse / baseline_rmse)².
        pearson: float, correlation of predictions and labels, 0 where it is undefined.
        spearman: float, correlation of their ranks, 0 where it is undefined.
        mean: float, mean of the labels, which the baseline predicts.
        baseline_mae: float, mean absolute error of always predicting `mean`.
        baseline_rmse: float, RMSE of always predicting `mean`: the labels' standard deviation.
        intervals: dict of the 95% confidence intervals of "mae", "rmse", "r2" and "pearson".

    Examples:
        >>> report = ke.metrics.regression_report([1.0, 2.0, 3.0], [1.0, 2.0, 2.0])
        >>> round(report.mae, 3), round(report.baseline_mae, 3), round(report.r2, 3)
        (0.333, 0.667, 0.5)
    """

    mae: float
    rmse: float
    r2: float
    pearson: float
    spearman: float
    mean: float
    baseline_mae: float
    baseline_rmse: float
    intervals: dict[str, tuple[float, float]]
    metric: ClassVar[str] = "R²"

    @property
    def score(self) -> float:
        """Return R²."""
        return self.r2

    def measures(self) -> dict[str, float]:
        """Return the scores as facts for an export's report."""
        return {name: getattr(self, name) for name in ("mae", "rmse", "r2", "pearson", "spearman")}

    def rows(self) -> list[tuple[str, str]]:
        """Return `(label, value)` pairs for display."""
        shown = {
            name: f"{getattr(self, name):.4f} (95% interval {low:.4f} to {high:.4f})"
            for name, (low, high) in self.intervals.items()
        }
        return [
            ("MAE", shown["mae"]),
            ("RMSE", shown["rmse"]),
            (
                "Mean baseline",
                f"MAE {self.baseline_mae:.4f}, RMSE {self.baseline_rmse:.4f} (always "
                f"{self.mean:.4g})",
            ),
            ("R²", shown["r2"]),
            ("Pearson", shown["pearson"]),
            ("Spearman", f"{self.spearman:.4f}"),
        ]


def regression_report(
    labels: Any, predictions: Any, *, sample_weight: Any = None
) -> RegressionReport:
    """Compare predicted numbers with the labels.

    With labels y, predictions p and their weighted mean ⟨·⟩: MAE = ⟨|y - p|⟩, RMSE = √⟨(y - p)²⟩
    and R² = 1 - ⟨(y - p)²⟩ / ⟨(y - ⟨y⟩)²⟩.

    Args:
        labels: float array [examples].
        predictions: float array [examples].
        sample_weight: float array [examples] >= 0. Default: None, ones.

    Returns:
        A `RegressionReport`.

    Raises:
        InputError: there are no examples, the shapes differ, or a label is not finite.

    Examples:
        >>> ke.metrics.regression_report([0.0, 1.0], [0.5, 0.5]).warnings[0]
        'The model predicts one number only: 0.5, for all 2 examples.'

    Reference:
        `sklearn.metrics.r2_score`, `scipy.stats.spearmanr` and `sklearn.dummy.DummyRegressor`,
        whose strategy "mean" is the baseline.
    """
    from scipy.stats import rankdata

    y, p = (np.asarray(x, "float64") for x in (labels, predictions))
    w = np.ones(y.shape) if sample_weight is None else np.asarray(sample_weight, "float64")
    if not y.size or y.ndim != 1 or len({y.shape, p.shape, w.shape}) > 1 or not w.sum():
        raise InputError(
            "A report needs one label and one predicted number per example, at least one. "
            f"Received: labels of shape {y.shape}, predictions of shape {p.shape}, weights of "
            f"shape {w.shape}. Give them as arrays of numbers."
        )
    if not np.isfinite(y).all() or not np.isfinite(p).all():
        raise InputError(
            "Labels and predictions must be finite. Received: NaN or infinities among "
            f"{'predictions' if np.isfinite(y).all() else 'labels'}. Check the data, and whether "
            "training diverged."
        )
    # Around a common centre, for which sums of squares lose no digits.
    centre = np.average(y, weights=w)
    y0, p0 = y - centre, p - centre
    terms = {"w": w, "y": w * y0, "p": w * p0, "yy": w * y0**2, "pp": w * p0**2, "yp": w * y0 * p0}
    terms |= {"absolute": w * np.abs(y - p)}
    sums = {name: np.atleast_1d(values.sum()) for name, values in terms.items()}
    scores = {
        "mae": lambda s: s["absolute"] / s["w"],
        "rmse": lambda s: np.sqrt(_squares(s) / s["w"]),
        "r2": _r2,
        "pearson": _correlation,
    }
    found = {name: float(score(sums)[0]) for name, score in scores.items()}
    intervals = bootstrap_intervals(terms, scores)
    ranks = [rankdata(x) for x in (y, p)]
    ranks = [x - np.average(x, weights=w) for x in ranks]
    spread = [np.sum(w * x**2) for x in ranks]
    spearman = np.sum(w * ranks[0] * ranks[1]) / np.sqrt(np.prod(spread)) if all(spread) else 0.0
    baseline = float(np.sqrt(np.average(y0**2, weights=w)))
    warnings = []
    if len(y) > 1 and np.ptp(p) == 0:
        warnings.append(
            f"The model predicts one number only: {p[0]:.4g}, for all {len(y):,} examples."
        )
    if baseline and intervals["r2"][0] <= 0:
        warnings.append(
            f"The RMSE, {found['rmse']:.4g}, is not clearly below that of always predicting the "
            f"mean, {baseline:.4g}: the interval of R² includes 0. Train longer, on more texts or "
            "with another learning rate."
        )
    return RegressionReport(
        examples=len(y),
        interval=intervals["r2"],
        warnings=tuple(warnings),
        **found,
        spearman=float(spearman),
        mean=float(centre),
        baseline_mae=float(np.average(np.abs(y0), weights=w)),
        baseline_rmse=baseline,
        intervals=intervals,
    )


def _squares(s):
    """Return the sum of squared errors; rounding must not make it negative."""
    return np.maximum(s["yy"] - 2 * s["yp"] + s["pp"], 0.0)


def _r2(s):
    spread = s["yy"] - s["y"] ** 2 / s["w"]
    constant = np.where(_squares(s) > 0, 0.0, 1.0)
    return np.where(spread > 0, 1 - _squares(s) / np.where(spread > 0, spread, 1), constant)


def _correlation(s):
    covariance = s["yp"] - s["y"] * s["p"] / s["w"]
    spreads = (s["yy"] - s["y"] ** 2 / s["w"]) * (s["pp"] - s["p"] ** 2 / s["w"])
    return np.where(spreads > 0, covariance / np.sqrt(np.where(spreads > 0, spreads, 1)), 0.0)
