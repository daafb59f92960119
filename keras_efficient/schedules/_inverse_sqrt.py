"""`inverse_sqrt` decay, and `noam`, the schedule of the Transformer paper."""

import tensorflow as tf

from keras_efficient.schedules._schedule import Schedule
from keras_efficient.schedules._validation import (
    REQUIRED,
    check_rules,
    is_number,
    is_whole,
    peak_rule,
)


def inverse_sqrt(peak: float, *, decay_steps: int = REQUIRED) -> Schedule:
    """Create a schedule that decays with the inverse square root of the updates.

        rate(t) = peak · √(k / (t + k))

    After a warm-up of w = k updates this is `peak · √(w / t)`, the Transformer's schedule. With
    `warmup(..., k, start=peak)` it is T5's, `peak · √(k / max(t, k))`.

    Args:
        peak: float > 0, the rate at update 0.
        decay_steps: int > 0, k, in optimizer updates; the rate is half of `peak` at update 3k.
            Required, although the default is None.

    Returns:
        A `Schedule`. It has no end, and so needs no length of the training.

    Raises:
        ValueError: a number is out of its range, or `decay_steps` is missing.

    Examples:
        >>> schedule = ke.schedules.warmup(ke.schedules.inverse_sqrt(1.0, decay_steps=100), 100)
        >>> [float(schedule(step)) for step in (0, 50, 100, 400)]
        [0.0, 0.5, 1.0, 0.5]

    Reference:
        Vaswani et al. 2017, "Attention Is All You Need", section 5.3; Raffel et al. 2020, "T5",
        section 3.1.2.
    """
    check_rules(
        {
            **peak_rule(peak),
            "`decay_steps` must be a whole number > 0, usually the length of the warm-up": is_whole(
                decay_steps, least=1
            ),
        },
        peak=peak,
        decay_steps=decay_steps,
    )
    return Schedule(inverse_sqrt_rate, {"peak": float(peak), "decay_steps": int(decay_steps)})


def inverse_sqrt_rate(step, peak, decay_steps):
    """Return the rate of `inverse_sqrt` at `step`, a float32 scalar tensor."""
    return peak * tf.sqrt(decay_steps / (step + decay_steps))


def noam(model_dim: int, *, warmup_steps: int = REQUIRED, factor: float = 1.0) -> Schedule:
    """Create the schedule of the Transformer paper, whose peak depends on the model's width.

        rate(t) = f · d^-½ · min((t + 1)^-½, (t + 1) · w^-1.5)

    The paper counts updates from 1, hence `t + 1`. The highest rate is `f / √(d w)`.

    Args:
        model_dim: int > 0, d, the width of the model's hidden states.
        warmup_steps: int > 0, w, in optimizer updates. Required, although the default is None.
        factor: float > 0, f. Default: 1.

    Returns:
        A `Schedule`. It has no end, and so needs no length of the training.

    Raises:
        ValueError: a number is out of its range, or `warmup_steps` is missing.

    Examples:
        >>> schedule = ke.schedules.noam(512, warmup_steps=4000)
        >>> f"{float(schedule(3999)):.2e}"
        '6.99e-04'

    Reference:
        Vaswani et al. 2017, "Attention Is All You Need", equation 3.
    """
    check_rules(
        {
            "`model_dim` must be a whole number > 0": is_whole(model_dim, least=1),
            "`warmup_steps` must be a whole number > 0": is_whole(warmup_steps, least=1),
            "`factor` must be > 0": is_number(factor, above=0),
        },
        model_dim=model_dim,
        warmup_steps=warmup_steps,
        factor=factor,
    )
    return Schedule(
        noam_rate,
        {
            "model_dim": int(model_dim),
            "warmup_steps": int(warmup_steps),
            "factor": float(factor),
        },
    )


def noam_rate(step, model_dim, warmup_steps, factor):
    """Return the rate of `noam` at `step`, a float32 scalar tensor."""
    count = step + 1.0
    return factor * model_dim**-0.5 * tf.minimum(tf.math.rsqrt(count), count * warmup_steps**-1.5)
