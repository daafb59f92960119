"""Checks of the arguments that the optimizers share."""

import math
from numbers import Real
from typing import Any, TypeAlias

from keras_efficient import flavor as flavors
from keras_efficient.flavor import Flavor
from keras_efficient.schedules._schedule import Schedule

#: A number, a schedule of this package, or a `LearningRateSchedule` of the optimizer's library.
LearningRate: TypeAlias = float | Schedule | Any


def is_number(value: Any) -> bool:
    """Return whether `value` is a finite real number, and not a bool."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_number(
    name: str, value: Any, low: float = 0.0, below: float = math.inf, *, exclusive: bool = False
) -> None:
    """Check that `value` is a number in [low, below), or in (low, below) if `exclusive`.

    Raises:
        ValueError: it is not.
    """
    if is_number(value) and low <= value < below and not (exclusive and value == low):
        return
    span = f"in {'(' if exclusive else '['}{low:g}, {below:g})"
    if below == math.inf:
        span = f"{'>' if exclusive else '>='} {low:g}"
    raise ValueError(
        f"`{name}` must be a number {span}. Received: {name}={value!r}. Omit it to use the default."
    )


def check_adam(beta_1: float, beta_2: float, epsilon: float) -> None:
    """Check the arguments of the optimizers that keep Adam's two moments."""
    check_number("beta_1", beta_1, below=1)
    check_number("beta_2", beta_2, below=1)
    check_number("epsilon", epsilon, exclusive=True)


def rate_for(flavor: Flavor, rate: LearningRate) -> Any:
    """Return a learning rate in the form that a library's optimizers take.

    Raises:
        TypeError: it is neither a number nor a schedule of this package or of that library.
        ValueError: it is negative.
    """
    if isinstance(rate, Schedule):
        return rate.wrap(flavor)
    if isinstance(rate, Real):
        check_number("learning_rate", rate)
        return float(rate)
    if isinstance(rate, flavor.keras.optimizers.schedules.LearningRateSchedule):
        return rate
    try:
        origin = f"an object of {flavors.of(rate).name}"
    except TypeError:
        origin = "not a schedule"
    raise TypeError(
        "`learning_rate` must be a number, a `ke.schedules` schedule or a schedule of the "
        f"optimizer's own library, {flavor.name}. Received: {rate!r}, {origin}. Use a schedule of "
        "`ke.schedules`, which works with both libraries, or pass the model's library as "
        "`library=`."
    )
