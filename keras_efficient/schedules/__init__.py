"""Learning-rate schedules: pure functions of the number of updates made so far."""

import importlib

_HOMES = {
    "Schedule": "keras_efficient.schedules.schedule",
    "warmup_cosine": "keras_efficient.schedules.warmup",
    "warmup_linear": "keras_efficient.schedules.warmup",
}
__all__ = list(_HOMES)


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
