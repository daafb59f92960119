"""Train a Transformer several times cheaper and ship it several times smaller.

Every public name is loaded on first use: importing this package imports neither TensorFlow nor
Keras, and changes nothing in the process.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "InputError": "keras_efficient.errors",
    "accumulate": "keras_efficient.step",
    "export": "keras_efficient.serving",
    "mixed_precision": "keras_efficient.step",
}
_ROOMS = ("callbacks", "data", "flavor", "models", "optimizers", "schedules", "serving", "step")

__all__ = ["__version__", *_HOMES, *_ROOMS]


def __getattr__(name: str):
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name in _ROOMS:
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__():
    return sorted(__all__)
