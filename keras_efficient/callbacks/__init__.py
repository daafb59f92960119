"""Callbacks that both `fit`s accept, one per file."""

import importlib

_HOMES = {
    "Checkpoint": "keras_efficient.callbacks.checkpoint",
    "Progress": "keras_efficient.callbacks.progress",
    "bars": "keras_efficient.callbacks.progress",
    "RunLog": "keras_efficient.callbacks.run_log",
    "Throughput": "keras_efficient.callbacks.throughput",
}
__all__ = list(_HOMES)


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
