"""`constant`, and `wsd`: warm-up, stable phase and decay."""

import tensorflow as tf

from keras_efficient.schedules._cosine import half_cosine
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
from keras_efficient.schedules._warmup import linear_ramp

#: The remaining fraction of the rate, as a function of the progress from 0 to 1, per shape.
_SHAPES = {
    "linear": lambda progress: 1.0 - progress,
    "cosine": half_cosine,
    "sqrt": lambda progress: 1.0 - tf.sqrt(progress),
}


def constant(rate: float) -> Schedule:
    """Create a schedule with a constant rate.

        rate(t) = rate

    Args:
        rate: float >= 0.

    Returns:
        A `Schedule`.

    Raises:
        ValueError: `rate` is negative or not a number.

    Examples:
        >>> ke.schedules.warmup(ke.schedules.constant(1e-4), steps=100)
        warmup(schedule=constant(rate=0.0001), steps=100, start=0.0)

    Reference:
        `optax.constant_schedule`.
    """
    check_rules({"`rate` must be >= 0": is_number(rate, least=0)}, rate=rate)
    return Schedule(constant_rate, {"rate": float(rate)})


def constant_rate(step, rate):
    """Return the rate of `constant` at `step`, a float32 scalar tensor."""
    return tf.fill(tf.shape(step), rate)


def wsd(
    peak: float,
    *,
    warmup_steps: int,
    total_steps: int = REQUIRED,
    decay_steps: int = REQUIRED,
    end: float = 0.0,
    decay: str = "linear",
) -> Schedule:
    """Create a warmup-stable-decay schedule, which decays in the last `decay_steps` updates.

        rate(t) = peak · t / w                                            t < w
        rate(t) = peak                                                    w <= t < T - D
        rate(t) = end + (peak - end) · f((t - (T - D)) / D)               T - D <= t < T
        rate(t) = end                                                     afterwards

        f(p) = 1 - p   (linear),   (1 + cos πp) / 2   (cosine),   1 - √p   (sqrt)

    The stable phase does not depend on `total_steps`: a checkpoint from it can be trained for
    longer, and decayed later.

    Args:
        peak: float > 0, the highest rate.
        warmup_steps: int >= 0, w, in optimizer updates.
        total_steps: int >= warmup_steps + decay_steps, T, in optimizer updates: batches per epoch
            times epochs. Required, although the default is None.
        decay_steps: int > 0, D, in optimizer updates; the paper uses a tenth of `total_steps`.
            Required, although the default is None.
        end: float >= 0, the rate from update `total_steps` on. Default: 0.
        decay: shape of the decay: "linear", "cosine" or "sqrt". Default: "linear".

    Returns:
        A `Schedule`.

    Raises:
        ValueError: a number is out of its range, `total_steps` or `decay_steps` is missing, or
            `decay` is unknown.

    Examples:
        >>> schedule = ke.schedules.wsd(1.0, warmup_steps=10, total_steps=100, decay_steps=20)
        >>> [float(schedule(step)) for step in (5, 10, 80, 90, 100)]
        [0.5, 1.0, 1.0, 0.5, 0.0]

    Reference:
        Hu et al. 2024, "MiniCPM", section 4; Hägele et al. 2024, "Scaling Laws and Compute-Optimal
        Training Beyond Fixed Training Durations" (1 - √p).
    """
    valid = is_whole(warmup_steps, least=0) and is_whole(total_steps) and is_whole(decay_steps)
    check_rules(
        {
            **peak_rule(peak),
            "`warmup_steps` must be >= 0, and whole": is_whole(warmup_steps, least=0),
            **total_rule(total_steps),
            "`decay_steps` must be a whole number > 0": is_whole(decay_steps, least=1),
            "`total_steps` must be at least `warmup_steps` + `decay_steps`": not valid
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
    """Return the rate of `wsd` at `step`, a float32 scalar tensor."""
    progress = (step - (total_steps - decay_steps)) / decay_steps
    decayed = end + (peak - end) * _SHAPES[decay](tf.clip_by_value(progress, 0.0, 1.0))
    return tf.where(step < warmup_steps, linear_ramp(step, 0.0, peak, warmup_steps), decayed)
