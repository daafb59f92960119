"""Decays that are powers of the training's progress: linear, polynomial, exponential."""

import tensorflow as tf

from keras_efficient.schedules._schedule import Schedule
from keras_efficient.schedules._validation import (
    check,
    end_rule,
    number,
    peak_rule,
    total_rule,
    whole,
)


def linear(peak, *, total_steps=None, end=0.0) -> Schedule:
    """Fall linearly from `peak` to `end`.

        rate(t) = end + (peak - end) · (1 - t / T)        t < T;   end afterwards

    Args:
        peak: float > 0, the rate at update 0.
        total_steps: int > 0, T, in optimizer updates: batches per epoch times epochs.
        end: float >= 0, the rate from update `total_steps` on.

    Returns:
        A `Schedule`.

    Raises:
        ValueError: a number out of its range, or no `total_steps`.

    Example:
        >>> ke.schedules.warmup(ke.schedules.linear(1e-3, total_steps=90), 10)
        warmup(schedule=linear(peak=0.001, total_steps=90, end=0.0), steps=10, start=0.0)

    Reference:
        Devlin et al. 2019, "BERT", appendix A.2 (after a warm-up).
    """
    check(
        {**peak_rule(peak), **total_rule(total_steps), **end_rule(end)},
        peak=peak,
        total_steps=total_steps,
        end=end,
    )
    arguments = {"peak": float(peak), "total_steps": int(total_steps), "end": float(end)}
    return Schedule(linear_rate, arguments)


def linear_rate(step, peak, total_steps, end):
    """The rate of `linear` at `step`."""
    return end + (peak - end) * left(step, total_steps)


def polynomial(peak, *, total_steps=None, power=2.0, end=0.0) -> Schedule:
    """Fall from `peak` to `end` along a power of what is left of the training.

        rate(t) = end + (peak - end) · (1 - t / T)ᵖ        t < T;   end afterwards

    Args:
        peak: float > 0, the rate at update 0.
        total_steps: int > 0, T, in optimizer updates: batches per epoch times epochs.
        power: float > 0, p. 1 is `linear`; larger falls faster at first.
        end: float >= 0, the rate from update `total_steps` on.

    Returns:
        A `Schedule`.

    Raises:
        ValueError: a number out of its range, or no `total_steps`.

    Example:
        >>> schedule = ke.schedules.polynomial(1.0, total_steps=10, power=2.0)
        >>> float(schedule(5))
        0.25

    Reference:
        Chen et al. 2018, "DeepLab", section 4.1 (the "poly" policy).
    """
    check(
        {
            **peak_rule(peak),
            **total_rule(total_steps),
            "`power` must be > 0": number(power, above=0),
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
    """The rate of `polynomial` at `step`."""
    return end + (peak - end) * left(step, total_steps) ** power


def exponential(peak, *, decay_steps=None, decay_rate, staircase=False) -> Schedule:
    """Multiply the rate by `decay_rate` every `decay_steps` updates.

        rate(t) = peak · γ^(t / k)              smooth
        rate(t) = peak · γ^⌊t / k⌋              staircase

    Args:
        peak: float > 0, the rate at update 0.
        decay_steps: int > 0, k, in optimizer updates.
        decay_rate: float in (0, 1], γ.
        staircase: bool, fall in steps (default: smoothly).

    Returns:
        A `Schedule`. It never ends.

    Raises:
        ValueError: a number out of its range, or no `decay_steps`.

    Example:
        >>> schedule = ke.schedules.exponential(1.0, decay_steps=10, decay_rate=0.5, staircase=True)
        >>> [float(schedule(step)) for step in (0, 9, 10, 20)]
        [1.0, 1.0, 0.5, 0.25]

    Reference:
        Li & Arora 2020, "An Exponential Learning Rate Schedule for Deep Learning".
    """
    check(
        {
            **peak_rule(peak),
            "`decay_steps` must be a whole number > 0: the updates in which the rate falls by "
            "`decay_rate`": whole(decay_steps, least=1),
            "`decay_rate` must be in (0, 1]": number(decay_rate, above=0, most=1),
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
    """The rate of `exponential` at `step`."""
    times = step / decay_steps
    return peak * tf.constant(decay_rate) ** (tf.floor(times) if staircase else times)


def left(step, total_steps):
    """The share of the training that is left at `step`: 1 at first, 0 from `total_steps` on."""
    return 1.0 - tf.clip_by_value(step / total_steps, 0.0, 1.0)
