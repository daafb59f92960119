"""`warmup` before any schedule, `warmup_linear` and `warmup_cosine`."""

import tensorflow as tf

from keras_efficient.flavor import Tensor
from keras_efficient.schedules._cosine import cosine
from keras_efficient.schedules._polynomial import linear
from keras_efficient.schedules._schedule import Schedule
from keras_efficient.schedules._validation import (
    REQUIRED,
    check_rules,
    end_rule,
    is_number,
    is_whole,
    peak_rule,
)


def warmup(schedule: Schedule, steps: int, start: float = 0.0) -> Schedule:
    """Create a schedule that rises linearly to the start of `schedule`, then follows it.

        rate(t) = start + (schedule(0) - start) · t / w        t < w
        rate(t) = schedule(t - w)                              t >= w

    `schedule` counts its updates from the end of the warm-up, so the whole training has `steps`
    updates more than `schedule`.

    Args:
        schedule: `Schedule` to follow.
        steps: int >= 0, w, the length of the warm-up in optimizer updates.
        start: float >= 0, the rate at update 0. Default: 0.

    Returns:
        A `Schedule`.

    Raises:
        TypeError: `schedule` is something else, such as a schedule of Keras.
        ValueError: a number is out of its range.

    Examples:
        >>> decay = ke.schedules.exponential(1e-3, decay_steps=100, decay_rate=0.9)
        >>> schedule = ke.schedules.warmup(decay, steps=50)
        >>> [round(float(schedule(step)), 6) for step in (0, 25, 50, 150)]
        [0.0, 0.0005, 0.001, 0.0009]

    Reference:
        Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 2.2.
    """
    if not isinstance(schedule, Schedule):
        raise TypeError(
            "`schedule` must be one of `ke.schedules`. Received: "
            f"{schedule!r} of type {type(schedule).__name__}. For a constant rate use "
            "`ke.schedules.constant(rate)`."
        )
    check_rules(
        {
            "`steps` must be a whole number >= 0": is_whole(steps, least=0),
            "`start` must be >= 0": is_number(start, least=0),
        },
        steps=steps,
        start=start,
    )
    arguments = {"schedule": schedule, "steps": int(steps), "start": float(start)}
    return Schedule(warmup_rate, arguments)


def warmup_rate(step, schedule, steps, start):
    """Return the rate of `warmup` at `step`, a float32 scalar tensor."""
    warm = schedule(tf.maximum(step - steps, 0.0))
    if not steps:
        return warm
    return tf.where(step < steps, linear_ramp(step, start, schedule(0), steps), warm)


def linear_ramp(step: Tensor, start: float, end: Tensor | float, steps: int) -> Tensor:
    """Return the value at `step` of the straight line from `start` at 0 to `end` at `steps`."""
    return start + (end - start) * step / max(1, steps)


def warmup_linear(
    peak: float, *, warmup_steps: int, total_steps: int = REQUIRED, end: float = 0.0
) -> Schedule:
    """Create a schedule that rises linearly from 0 to `peak`, then decays linearly to `end`.

        rate(t) = peak · t / w                                    t < w
        rate(t) = peak + (end - peak) · (t - w) / (T - w)         w <= t < T
        rate(t) = end                                             afterwards

    It is `linear` after a `warmup`, with `total_steps` including both.

    Args:
        peak: float > 0, the highest rate, reached at update `warmup_steps`.
        warmup_steps: int >= 0, w, in optimizer updates.
        total_steps: int > warmup_steps, T, in optimizer updates: batches per epoch times epochs.
            Required, although the default is None.
        end: float >= 0, the rate from update `total_steps` on. Default: 0.

    Returns:
        A `Schedule`.

    Raises:
        ValueError: a number is out of its range, or `total_steps` is missing.

    Examples:
        >>> schedule = ke.schedules.warmup_linear(1.0, warmup_steps=10, total_steps=30)
        >>> [float(schedule(step)) for step in (0, 5, 10, 20, 30)]
        [0.0, 0.5, 1.0, 0.5, 0.0]

    Reference:
        Devlin et al. 2019, "BERT", appendix A.2.
    """
    decay_steps = _decay_steps(peak, warmup_steps, total_steps, end)
    return warmup(linear(peak, total_steps=decay_steps, end=end), warmup_steps)


def warmup_cosine(
    peak: float, *, warmup_steps: int, total_steps: int = REQUIRED, end: float = 0.0
) -> Schedule:
    """Create a schedule that rises linearly from 0 to `peak`, then decays along half a cosine.

        rate(t) = peak · t / w                                                       t < w
        rate(t) = end + (peak - end) · (1 + cos(π (t - w) / (T - w))) / 2       w <= t < T
        rate(t) = end                                                           afterwards

    It is `cosine` after a `warmup`, with `total_steps` including both.

    Args:
        peak: float > 0, the highest rate, reached at update `warmup_steps`.
        warmup_steps: int >= 0, w, in optimizer updates.
        total_steps: int > warmup_steps, T, in optimizer updates: batches per epoch times epochs.
            Required, although the default is None.
        end: float >= 0, the rate from update `total_steps` on. Default: 0.

    Returns:
        A `Schedule`.

    Raises:
        ValueError: a number is out of its range, or `total_steps` is missing.

    Examples:
        >>> schedule = ke.schedules.warmup_cosine(5e-5, warmup_steps=100, total_steps=2000)
        >>> model.compile(ke.optimizers.AdamW(schedule), loss)

    Reference:
        Loshchilov & Hutter 2017, "SGDR", without restarts.
    """
    decay_steps = _decay_steps(peak, warmup_steps, total_steps, end)
    return warmup(cosine(peak, total_steps=decay_steps, end=end), warmup_steps)


def _decay_steps(peak, warmup_steps, total_steps, end):
    """Check the arguments, and return the number of updates after the warm-up."""
    check_rules(
        {
            **peak_rule(peak),
            "`warmup_steps` must be >= 0, and whole": is_whole(warmup_steps, least=0),
            "`total_steps` must be greater than `warmup_steps`, and whole": is_whole(total_steps)
            and (not is_whole(warmup_steps) or total_steps > warmup_steps),
            **end_rule(end),
        },
        peak=peak,
        warmup_steps=warmup_steps,
        total_steps=total_steps,
        end=end,
    )
    return total_steps - warmup_steps
