"""`one_cycle`: one rise and one fall of the learning rate."""

import tensorflow as tf

from keras_efficient.schedules._cosine import half_cosine
from keras_efficient.schedules._schedule import Schedule
from keras_efficient.schedules._validation import (
    REQUIRED,
    check_rules,
    is_number,
    is_whole,
    peak_rule,
)


def one_cycle(
    peak: float,
    *,
    total_steps: int = REQUIRED,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
) -> Schedule:
    """Create a one-cycle schedule: a rise to `peak` and a long fall, along half cosines.

        start = peak / div_factor,  end = start / final_div_factor
        r = pct_start · T, rounded to a whole update
        rate(t) = peak + (start - peak) · (1 + cos(π t / r)) / 2                      t < r
        rate(t) = end + (peak - end) · (1 + cos(π (t - r) / (T - r))) / 2        r <= t < T
        rate(t) = end                                                            afterwards

    It includes the warm-up. The paper also varies the momentum, which this does not, and uses
    straight lines; the half cosines are those of fastai and PyTorch.

    Args:
        peak: float > 0, the highest rate, usually found with `ke.find_learning_rate`.
        total_steps: int >= 2, T, in optimizer updates: batches per epoch times epochs. Required,
            although the default is None.
        pct_start: float in (0, 1), the fraction of the updates in which the rate rises.
            Default: 0.3.
        div_factor: float >= 1, `peak / start`. Default: 25.
        final_div_factor: float >= 1, `start / end`. Default: 1e4.

    Returns:
        A `Schedule`.

    Raises:
        ValueError: a number is out of its range, or `total_steps` is missing.

    Examples:
        >>> schedule = ke.schedules.one_cycle(1.0, total_steps=100)
        >>> [round(float(schedule(step)), 6) for step in (0, 30, 100)]
        [0.04, 1.0, 4e-06]

    Reference:
        Smith & Topin 2018, "Super-Convergence: Very Fast Training of Neural Networks Using Large
        Learning Rates"; `torch.optim.lr_scheduler.OneCycleLR`.
    """
    check_rules(
        {
            **peak_rule(peak),
            "`total_steps` must be a whole number >= 2: a schedule that decays must know the "
            "length of the training": is_whole(total_steps, least=2),
            "`pct_start` must be > 0 and < 1": is_number(pct_start, above=0) and pct_start < 1,
            "`div_factor` must be >= 1": is_number(div_factor, least=1),
            "`final_div_factor` must be >= 1": is_number(final_div_factor, least=1),
        },
        peak=peak,
        total_steps=total_steps,
        pct_start=pct_start,
        div_factor=div_factor,
        final_div_factor=final_div_factor,
    )
    return Schedule(
        one_cycle_rate,
        {
            "peak": float(peak),
            "total_steps": int(total_steps),
            "pct_start": float(pct_start),
            "div_factor": float(div_factor),
            "final_div_factor": float(final_div_factor),
        },
    )


def one_cycle_rate(step, peak, total_steps, pct_start, div_factor, final_div_factor):
    """Return the rate of `one_cycle` at `step`, a float32 scalar tensor."""
    start = peak / div_factor
    end = start / final_div_factor
    # At least one update of each.
    rise = min(max(1, round(pct_start * total_steps)), total_steps - 1)
    rising = peak + (start - peak) * half_cosine(step / rise)
    progress = tf.clip_by_value((step - rise) / (total_steps - rise), 0.0, 1.0)
    return tf.where(step < rise, rising, end + (peak - end) * half_cosine(progress))
