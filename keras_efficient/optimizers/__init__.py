"""Optimizers with decay exclusions by path, for Keras 3 and tf_keras."""

import importlib

_HOMES = {
    "AdamW": "keras_efficient.optimizers.adamw",
    "NO_DECAY": "keras_efficient.optimizers.exclusions",
}
__all__ = list(_HOMES)


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
