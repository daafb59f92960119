"""One cycle: up and down once."""

import tensorflow as tf

from keras_efficient.schedules._cosine import half_cosine
from keras_efficient.schedules._schedule import Schedule
from keras_efficient.schedules._validation import check, number, peak_rule, whole


def one_cycle(
    peak, *, total_steps=None, rise_share=0.3, start_divisor=25.0, end_divisor=1e4
) -> Schedule:
    """Rise from a low rate to a high one, then fall far below the first, along half cosines.

        start = peak / 25,  end = start / 10⁴,  r = 0.3 · T rounded to a whole update
        rate(t) = peak + (start - peak) · (1 + cos(π t / r)) / 2                      t < r
        rate(t) = end + (peak - end) · (1 + cos(π (t - r) / (T - r))) / 2        r <= t < T
        rate(t) = end                                                            afterwards

    It has its warm-up in it. The paper moves the momentum against the rate, which this does not,
    and uses straight lines; half cosines are those of fastai and PyTorch.

    Args:
        peak: float > 0, the highest rate, as a rule found with `ke.find_learning_rate`.
        total_steps: int >= 2, T, in optimizer updates: batches per epoch times epochs.
        rise_share: float in (0, 1), the share of the updates in which the rate rises.
        start_divisor: float >= 1, `peak / start`.
        end_divisor: float >= 1, `start / end`.

    Returns:
        A `Schedule`.

    Raises:
        ValueError: a number out of its range, or no `total_steps`.

    Example:
        >>> schedule = ke.schedules.one_cycle(1.0, total_steps=100)
        >>> [round(float(schedule(step)), 6) for step in (0, 30, 100)]
        [0.04, 1.0, 4e-06]

    Reference:
        Smith & Topin 2018, "Super-Convergence: Very Fast Training of Neural Networks Using Large
        Learning Rates".
    """
    check(
        {
            **peak_rule(peak),
            "`total_steps` must be a whole number >= 2: a schedule that decays must know the "
            "length of the training": whole(total_steps, least=2),
            "`rise_share` must be > 0 and < 1": number(rise_share, above=0) and rise_share < 1,
            "`start_divisor` must be >= 1": number(start_divisor, least=1),
            "`end_divisor` must be >= 1": number(end_divisor, least=1),
        },
        peak=peak,
        total_steps=total_steps,
        rise_share=rise_share,
        start_divisor=start_divisor,
        end_divisor=end_divisor,
    )
    return Schedule(
        one_cycle_rate,
        {
            "peak": float(peak),
            "total_steps": int(total_steps),
            "rise_share": float(rise_share),
            "start_divisor": float(start_divisor),
            "end_divisor": float(end_divisor),
        },
    )


def one_cycle_rate(step, peak, total_steps, rise_share, start_divisor, end_divisor):
    """The rate of `one_cycle` at `step`."""
    start = peak / start_divisor
    end = start / end_divisor
    # At least one update up, and one down.
    rise = min(max(1, round(rise_share * total_steps)), total_steps - 1)
    up = peak + (start - peak) * half_cosine(step / rise)
    progress = tf.clip_by_value((step - rise) / (total_steps - rise), 0.0, 1.0)
    return tf.where(step < rise, up, end + (peak - end) * half_cosine(progress))
