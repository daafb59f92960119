"""The training step: everything that touches gradients, in one order."""

import importlib

_HOMES = {
    "accumulate": "keras_efficient.step.accumulation",
    "mixed_precision": "keras_efficient.step.precision",
    "Precision": "keras_efficient.step.precision",
}
__all__ = list(_HOMES)


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
