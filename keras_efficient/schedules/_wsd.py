"""Schedules that stay level: constant, and warm-up, stable, decay."""

import tensorflow as tf

from keras_efficient.schedules._cosine import half_cosine
from keras_efficient.schedules._schedule import Schedule
from keras_efficient.schedules._validation import (
    check,
    end_rule,
    number,
    peak_rule,
    total_rule,
    whole,
)
from keras_efficient.schedules._warmup import rising

#: By the name of the decay's shape: what is left of the rate at a progress from 0 to 1.
_SHAPES = {
    "linear": lambda progress: 1.0 - progress,
    "cosine": half_cosine,
    "sqrt": lambda progress: 1.0 - tf.sqrt(progress),
}


def constant(rate) -> Schedule:
    """Always `rate`.

    Args:
        rate: float >= 0.

    Returns:
        A `Schedule`.

    Raises:
        ValueError: `rate` is negative or no number.

    Example:
        >>> ke.schedules.warmup(ke.schedules.constant(1e-4), steps=100)
        warmup(schedule=constant(rate=0.0001), steps=100, start=0.0)
    """
    check({"`rate` must be >= 0": number(rate, least=0)}, rate=rate)
    return Schedule(constant_rate, {"rate": float(rate)})


def constant_rate(step, rate):
    """The rate of `constant` at `step`."""
    return tf.fill(tf.shape(step), rate)


def wsd(
    peak, *, warmup_steps, total_steps=None, decay_steps=None, end=0.0, decay="linear"
) -> Schedule:
    """Warm up, stay at `peak`, decay in the last `decay_steps` updates (WSD).

        rate(t) = peak · t / w                                            t < w
        rate(t) = peak                                                    w <= t < T - D
        rate(t) = end + (peak - end) · f((t - (T - D)) / D)               T - D <= t < T
        rate(t) = end                                                     afterwards

        f(p) = 1 - p   (linear),   (1 + cos πp) / 2   (cosine),   1 - √p   (sqrt)

    The stable part is the same whatever `total_steps` is: a checkpoint of it can be trained on for
    longer, and decayed later.

    Args:
        peak: float > 0, the highest rate.
        warmup_steps: int >= 0, w, in optimizer updates.
        total_steps: int, T, in optimizer updates: batches per epoch times epochs.
        decay_steps: int > 0, D, in optimizer updates; the paper: a tenth of `total_steps`.
        end: float >= 0, the rate from update `total_steps` on.
        decay: "linear" (default), "cosine" or "sqrt", the shape of the decay.

    Returns:
        A `Schedule`.

    Raises:
        ValueError: a number out of its range, no `total_steps` or `decay_steps`, or an unknown
            shape.

    Example:
        >>> schedule = ke.schedules.wsd(1.0, warmup_steps=10, total_steps=100, decay_steps=20)
        >>> [float(schedule(step)) for step in (5, 10, 80, 90, 100)]
        [0.5, 1.0, 1.0, 0.5, 0.0]

    Reference:
        Hu et al. 2024, "MiniCPM", section 4; Hägele et al. 2024, "Scaling Laws and Compute-Optimal
        Training Beyond Fixed Training Durations" (1 - √p).
    """
    sound = whole(warmup_steps, least=0) and whole(total_steps) and whole(decay_steps)
    check(
        {
            **peak_rule(peak),
            "`warmup_steps` must be >= 0, and whole": whole(warmup_steps, least=0),
            **total_rule(total_steps),
            "`decay_steps` must be a whole number > 0": whole(decay_steps, least=1),
            "`total_steps` must be at least `warmup_steps` + `decay_steps`": not sound
            or total_steps >= warmup_steps + decay_steps,
            **end_rule(end),
            f"`decay` must be one of {tuple(_SHAPES)}": decay in _SHAPES,
        },
        peak=peak,
        warmup_steps=warmup_steps,
        total_steps=total_steps,
        decay_steps=decay_steps,
        end=end,
        decay=decay,
    )
    return Schedule(
        wsd_rate,
        {
            "peak": float(peak),
            "warmup_steps": int(warmup_steps),
            "total_steps": int(total_steps),
            "decay_steps": int(decay_steps),
            "end": float(end),
            "decay": decay,
        },
    )


def wsd_rate(step, peak, warmup_steps, total_steps, decay_steps, end, decay):
    """The rate of `wsd` at `step`."""
    progress = (step - (total_steps - decay_steps)) / decay_steps
    fallen = end + (peak - end) * _SHAPES[decay](tf.clip_by_value(progress, 0.0, 1.0))
    return tf.where(step < warmup_steps, rising(step, 0.0, peak, warmup_steps), fallen)
