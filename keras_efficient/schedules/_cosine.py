"""`cosine` decay, and `cosine_restarts`."""

import functools
import math

import tensorflow as tf

from keras_efficient.flavor import Tensor
from keras_efficient.schedules._polynomial import remaining
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

#: The largest update number up to which float32 represents every integer.
_LARGEST_STEP = 2**24


def cosine(peak: float, *, total_steps: int = REQUIRED, end: float = 0.0) -> Schedule:
    """Create a schedule that decays from `peak` to `end` along half a cosine.

        rate(t) = end + (peak - end) · (1 + cos(π t / T)) / 2        t < T
        rate(t) = end                                                afterwards

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
        >>> schedule = ke.schedules.cosine(1e-3, total_steps=100, end=1e-5)
        >>> model.compile(ke.optimizers.AdamW(schedule), loss)

    Reference:
        Loshchilov & Hutter 2017, "SGDR", without restarts.
    """
    check_rules(
        {**peak_rule(peak), **total_rule(total_steps), **end_rule(end)},
        peak=peak,
        total_steps=total_steps,
        end=end,
    )
    arguments = {"peak": float(peak), "total_steps": int(total_steps), "end": float(end)}
    return Schedule(cosine_rate, arguments)


def cosine_rate(step, peak, total_steps, end):
    """Return the rate of `cosine` at `step`, a float32 scalar tensor."""
    return end + (peak - end) * half_cosine(1.0 - remaining(step, total_steps))


def cosine_restarts(
    peak: float,
    *,
    restart_every: int = REQUIRED,
    t_mul: float = 1.0,
    m_mul: float = 1.0,
    end: float = 0.0,
) -> Schedule:
    """Create a schedule of half cosines with restarts, each cycle `t_mul` times longer.

        rate(t) = end + (pᵢ - end) · (1 + cos(π (t - sᵢ) / (sᵢ₊₁ - sᵢ))) / 2        sᵢ <= t < sᵢ₊₁
        sᵢ = T₀ · (1 + m + ... + mⁱ⁻¹), rounded to a whole update
        pᵢ = max(end, peak · μⁱ)

    Args:
        peak: float > 0, the rate at update 0.
        restart_every: int > 0, T₀, the length of the first cycle in optimizer updates. Required,
            although the default is None.
        t_mul: float >= 1, m, the ratio of the lengths of successive cycles. Default: 1.
        m_mul: float in (0, 1], μ, the ratio of the peaks of successive cycles. Default: 1.
        end: float >= 0, the rate at the end of each cycle. Default: 0.

    Returns:
        A `Schedule`. It has no end: stop the training at the end of a cycle, where the rate is
        lowest.

    Raises:
        ValueError: a number is out of its range, or `restart_every` is missing.

    Examples:
        >>> schedule = ke.schedules.cosine_restarts(1.0, restart_every=10, t_mul=2, m_mul=0.5)
        >>> [float(schedule(step)) for step in (0, 10, 30)]
        [1.0, 0.5, 0.25]

    Reference:
        Loshchilov & Hutter 2017, "SGDR: Stochastic Gradient Descent with Warm Restarts", equation
        5; `keras.optimizers.schedules.CosineDecayRestarts`.
    """
    check_rules(
        {
            **peak_rule(peak),
            "`restart_every` must be a whole number > 0: the updates of the first cycle": is_whole(
                restart_every, least=1
            ),
            "`t_mul` must be >= 1": is_number(t_mul, least=1),
            "`m_mul` must be in (0, 1]": is_number(m_mul, above=0, most=1),
            **end_rule(end),
        },
        peak=peak,
        restart_every=restart_every,
        t_mul=t_mul,
        m_mul=m_mul,
        end=end,
    )
    return Schedule(
        cosine_restarts_rate,
        {
            "peak": float(peak),
            "restart_every": int(restart_every),
            "t_mul": float(t_mul),
            "m_mul": float(m_mul),
            "end": float(end),
        },
    )


def cosine_restarts_rate(step, peak, restart_every, t_mul, m_mul, end):
    """Return the rate of `cosine_restarts` at `step`, a float32 scalar tensor."""
    if t_mul == 1.0:
        cycle = tf.floor(step / restart_every)
        start, length = cycle * restart_every, restart_every
    else:
        starts = tf.constant(_starts(restart_every, t_mul), tf.float32)
        index = tf.reduce_sum(tf.cast(step >= starts[:-1], tf.int32)) - 1
        cycle, start = tf.cast(index, tf.float32), tf.gather(starts, index)
        length = tf.gather(starts, index + 1) - start
    highest = tf.maximum(end, peak * tf.constant(m_mul) ** cycle)
    return end + (highest - end) * half_cosine((step - start) / length)


@functools.cache
def _starts(restart_every, t_mul):
    """Return the updates at which cycles begin; a logarithm would miss them by rounding errors."""
    starts, exact, length = [0], 0.0, float(restart_every)
    while starts[-1] <= _LARGEST_STEP:
        exact, length = exact + length, length * t_mul
        starts.append(round(exact))
    return starts


def half_cosine(progress: Tensor) -> Tensor:
    """Return (1 + cos(π progress)) / 2: 1 at progress 0, and 0 at progress 1."""
    return 0.5 * (1.0 + tf.cos(math.pi * progress))
