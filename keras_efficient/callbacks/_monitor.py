"""Monitored values: their direction of improvement, and their look-up in the epoch's logs."""

from keras_efficient._errors import InputError

MODES = ("auto", "min", "max")


def improves_upwards(monitor: str, mode: str) -> bool:
    """Return whether larger values of `monitor` are better, by its name if `mode` is "auto"."""
    named = any(word in monitor for word in ("acc", "auc", "f1", "precision", "recall"))
    return mode == "max" or (mode == "auto" and named)


def monitored_value(monitor: str, logs: dict) -> float:
    """Return the monitored value of an epoch.

    Raises:
        InputError: it is not in the logs.
    """
    if monitor not in logs:
        raise InputError(
            f"`monitor` must be in the epoch's logs. Received: {monitor!r} with logs of "
            f"{sorted(logs)}. Give `fit` validation_data, or monitor one of these."
        )
    return float(logs[monitor])
