"""The checks that the schedules share: every rule that is broken, in one message."""

import math
import numbers

STEPS = "Steps are optimizer updates: batches per epoch times epochs."


def check(rules, **received):
    """Raise a ValueError that names each rule of `rules` ({rule: whether it holds}) broken."""
    broken = [rule for rule, holds in rules.items() if not holds]
    if broken:
        listed = ", ".join(f"{name}={value!r}" for name, value in received.items())
        raise ValueError(f"{'; '.join(broken)}. Received: {listed}. {STEPS}")


def number(value, *, above=-math.inf, least=-math.inf, most=math.inf):
    """Whether `value` is a finite plain number in the range."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    return math.isfinite(value) and value > above and least <= value <= most


def whole(value, *, least=-math.inf):
    """Whether `value` is a whole number (300 and 300.0 are) from `least` on."""
    return number(value, least=least) and value == int(value)


def peak_rule(peak):
    return {"`peak` must be > 0": number(peak, above=0)}


def end_rule(end):
    return {"`end` must be >= 0": number(end, least=0)}


def total_rule(total_steps):
    return {
        "`total_steps` must be a whole number > 0: a schedule that decays must know the length of "
        "the training": whole(total_steps, least=1)
    }
