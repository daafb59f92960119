"""Get a pretrained Transformer, a task head and its tokenizer."""

import importlib

_HOMES = {
    "Loaded": "keras_efficient.models.load_model",
    "keep_float32": "keras_efficient.models.float32",
    "load": "keras_efficient.models.load_model",
}
__all__ = list(_HOMES)


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
