"""Checks of the arguments of schedules, which report every broken rule in one message."""

import math
import numbers
from typing import Any

#: Default of arguments that must be given; omitting one is a ValueError that explains it.
REQUIRED: Any = None
#: Ends every message.
STEPS = "Steps are optimizer updates: batches per epoch times epochs."


def check_rules(rules: dict[str, bool], **received: Any) -> None:
    """Check that all rules hold.

    Args:
        rules: dict from the text of each rule to whether it holds.
        **received: the arguments, for the message.

    Raises:
        ValueError: some rules do not hold; the message lists them.
    """
    broken = [rule for rule, holds in rules.items() if not holds]
    if broken:
        listed = ", ".join(f"{name}={value!r}" for name, value in received.items())
        raise ValueError(f"{'; '.join(broken)}. Received: {listed}. {STEPS}")


def is_number(
    value: Any, *, above: float = -math.inf, least: float = -math.inf, most: float = math.inf
) -> bool:
    """Return whether `value` is a finite real number within the bounds, and not a bool."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    number = float(value)
    return math.isfinite(number) and number > above and least <= number <= most


def is_whole(value: Any, *, least: float = -math.inf) -> bool:
    """Return whether `value` is a whole number, such as 300 or 300.0, and at least `least`."""
    return is_number(value, least=least) and value == int(value)


def peak_rule(peak: Any) -> dict[str, bool]:
    return {"`peak` must be > 0": is_number(peak, above=0)}


def end_rule(end: Any) -> dict[str, bool]:
    return {"`end` must be >= 0": is_number(end, least=0)}


def total_rule(total_steps: Any) -> dict[str, bool]:
    return {
        "`total_steps` must be a whole number > 0: a schedule that decays must know the length of "
        "the training": is_whole(total_steps, least=1)
    }
