"""A linear warm-up, then a decay to the end of training."""

import math

import tensorflow as tf

from keras_efficient.schedules.schedule import Schedule


def warmup_linear(peak, *, warmup_steps, total_steps, end=0.0) -> Schedule:
    """Rise linearly from 0 to `peak`, then fall linearly to `end`.

        rate(t) = peak · t / w                                    t < w
        rate(t) = peak + (end - peak) · (t - w) / (T - w)         w <= t < T;   end afterwards

    Args:
        peak: float > 0, the highest rate, reached at update `warmup_steps`.
        warmup_steps: int >= 0, w, in optimizer updates.
        total_steps: int > warmup_steps, T, in optimizer updates.
        end: float >= 0, the rate from update `total_steps` on.

    Returns:
        A `Schedule`.

    Raises:
        ValueError: a number out of its range.

    Reference:
        Devlin et al. 2019, "BERT", appendix A.2.
    """
    return Schedule(linear, _checked(peak, warmup_steps, total_steps, end))


def warmup_cosine(peak, *, warmup_steps, total_steps, end=0.0) -> Schedule:
    """Rise linearly from 0 to `peak`, then fall to `end` along half a cosine.

        rate(t) = peak · t / w                                                       t < w
        rate(t) = end + (peak - end) · (1 + cos(π (t - w) / (T - w))) / 2     w <= t < T

    Args, Returns, Raises: as `warmup_linear`.

    Reference:
        Loshchilov & Hutter 2017, "SGDR", without restarts.
    """
    return Schedule(cosine, _checked(peak, warmup_steps, total_steps, end))


def linear(step, peak, warmup_steps, total_steps, end):
    """The rate of `warmup_linear` at `step`."""
    left = 1.0 - _progress(step, warmup_steps, total_steps)
    return _warm(step, peak, warmup_steps, end + (peak - end) * left)


def cosine(step, peak, warmup_steps, total_steps, end):
    """The rate of `warmup_cosine` at `step`."""
    left = 0.5 * (1.0 + tf.cos(math.pi * _progress(step, warmup_steps, total_steps)))
    return _warm(step, peak, warmup_steps, end + (peak - end) * left)


def _warm(step, peak, warmup_steps, rate):
    return tf.where(step < warmup_steps, peak * step / max(1, warmup_steps), rate)


def _progress(step, warmup_steps, total_steps):
    return tf.clip_by_value((step - warmup_steps) / (total_steps - warmup_steps), 0.0, 1.0)


def _checked(peak, warmup_steps, total_steps, end):
    rules = {
        "`peak` must be > 0": peak > 0,
        "`warmup_steps` must be >= 0": warmup_steps >= 0,
        "`total_steps` must be greater than `warmup_steps`": total_steps > warmup_steps,
        "`end` must be >= 0": end >= 0,
    }
    broken = [rule for rule, holds in rules.items() if not holds]
    if broken:
        raise ValueError(
            f"{'; '.join(broken)}. Received: peak={peak}, warmup_steps={warmup_steps}, "
            f"total_steps={total_steps}, end={end}. Steps are optimizer updates: batches per epoch "
            "times epochs."
        )
    return {
        "peak": float(peak),
        "warmup_steps": int(warmup_steps),
        "total_steps": int(total_steps),
        "end": float(end),
    }
