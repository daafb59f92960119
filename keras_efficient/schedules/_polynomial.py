"""`linear`, `polynomial` and `exponential` decay."""

import tensorflow as tf

from keras_efficient.flavor import Tensor
from keras_efficient.schedules._schedule import Schedule
from keras_efficient.schedules._validation import (
    REQUIRED,
    check_rules,
    end_rule,
    is_number,
    is_whole,
    peak_rule,
    total_rule,
)


def linear(peak: float, *, total_steps: int = REQUIRED, end: float = 0.0) -> Schedule:
    """Create a schedule that decays linearly from `peak` to `end`.

        rate(t) = end + (peak - end) · (1 - t / T)        t < T
        rate(t) = end                                     afterwards

    Args:
        peak: float > 0, the rate at update 0.
        total_steps: int > 0, T, in optimizer updates: batches per epoch times epochs. Required,
            although the default is None.
        end: float >= 0, the rate from update `total_steps` on. Default: 0.

    Returns:
        A `Schedule`.

    Raises:
        ValueError: a number is out of its range, or `total_steps` is missing.

    Examples:
        >>> ke.schedules.warmup(ke.schedules.linear(1e-3, total_steps=90), 10)
        warmup(schedule=linear(peak=0.001, total_steps=90, end=0.0), steps=10, start=0.0)

    Reference:
        Devlin et al. 2019, "BERT", appendix A.2, where it follows a warm-up.
    """
    check_rules(
        {**peak_rule(peak), **total_rule(total_steps), **end_rule(end)},
        peak=peak,
        total_steps=total_steps,
        end=end,
    )
    arguments = {"peak": float(peak), "total_steps": int(total_steps), "end": float(end)}
    return Schedule(linear_rate, arguments)


def linear_rate(step, peak, total_steps, end):
    """Return the rate of `linear` at `step`, a float32 scalar tensor."""
    return end + (peak - end) * remaining(step, total_steps)


def polynomial(
    peak: float, *, total_steps: int = REQUIRED, power: float = 2.0, end: float = 0.0
) -> Schedule:
    """Create a schedule that decays from `peak` to `end` along a power of the remaining updates.

        rate(t) = end + (peak - end) · (1 - t / T)ᵖ        t < T
        rate(t) = end                                      afterwards

    Args:
        peak: float > 0, the rate at update 0.
        total_steps: int > 0, T, in optimizer updates: batches per epoch times epochs. Required,
            although the default is None.
        power: float > 0, p. 1 is `linear`; a larger power decays faster at first. Default: 2.
        end: float >= 0, the rate from update `total_steps` on. Default: 0.

    Returns:
        A `Schedule`.

    Raises:
        ValueError: a number is out of its range, or `total_steps` is missing.

    Examples:
        >>> schedule = ke.schedules.polynomial(1.0, total_steps=10, power=2.0)
        >>> float(schedule(5))
        0.25

    Reference:
        Chen et al. 2018, "DeepLab", section 4.1 (the "poly" policy).
    """
    check_rules(
        {
            **peak_rule(peak),
            **total_rule(total_steps),
            "`power` must be > 0": is_number(power, above=0),
            **end_rule(end),
        },
        peak=peak,
        total_steps=total_steps,
        power=power,
        end=end,
    )
    return Schedule(
        polynomial_rate,
        {
            "peak": float(peak),
            "total_steps": int(total_steps),
            "power": float(power),
            "end": float(end),
        },
    )


def polynomial_rate(step, peak, total_steps, power, end):
    """Return the rate of `polynomial` at `step`, a float32 scalar tensor."""
    return end + (peak - end) * remaining(step, total_steps) ** power


def exponential(
    peak: float,
    *,
    decay_steps: int = REQUIRED,
    decay_rate: float,
    staircase: bool = False,
) -> Schedule:
    """Create a schedule that multiplies the rate by `decay_rate` every `decay_steps` updates.

        rate(t) = peak · γ^(t / k)              smooth
        rate(t) = peak · γ^⌊t / k⌋              staircase

    Args:
        peak: float > 0, the rate at update 0.
        decay_steps: int > 0, k, in optimizer updates. Required, although the default is None.
        decay_rate: float in (0, 1], γ.
        staircase: bool, whether to decay in steps instead of smoothly. Default: False.

    Returns:
        A `Schedule`. It has no end, and so needs no length of the training.

    Raises:
        ValueError: a number is out of its range, or `decay_steps` is missing.

    Examples:
        >>> schedule = ke.schedules.exponential(1.0, decay_steps=10, decay_rate=0.5, staircase=True)
        >>> [float(schedule(step)) for step in (0, 9, 10, 20)]
        [1.0, 1.0, 0.5, 0.25]

    Reference:
        Li & Arora 2020, "An Exponential Learning Rate Schedule for Deep Learning".
    """
    check_rules(
        {
            **peak_rule(peak),
            "`decay_steps` must be a whole number > 0: the updates in which the rate falls by "
            "`decay_rate`": is_whole(decay_steps, least=1),
            "`decay_rate` must be in (0, 1]": is_number(decay_rate, above=0, most=1),
        },
        peak=peak,
        decay_steps=decay_steps,
        decay_rate=decay_rate,
    )
    return Schedule(
        exponential_rate,
        {
            "peak": float(peak),
            "decay_steps": int(decay_steps),
            "decay_rate": float(decay_rate),
            "staircase": bool(staircase),
        },
    )


def exponential_rate(step, peak, decay_steps, decay_rate, staircase):
    """Return the rate of `exponential` at `step`, a float32 scalar tensor."""
    decays = step / decay_steps
    return peak * tf.constant(decay_rate) ** (tf.floor(decays) if staircase else decays)


def remaining(step: Tensor, total_steps: int) -> Tensor:
    """Return the remaining fraction of the training: 1 at step 0, and 0 from `total_steps` on."""
    return 1.0 - tf.clip_by_value(step / total_steps, 0.0, 1.0)
