"""Write a trained model as a SavedModel that plain TensorFlow serves, checked in a bare process.

The room is called `serving` because `ke.export` is the verb. Importing it imports no TensorFlow.
"""

import importlib

_HOMES = {
    "ExportReport": "keras_efficient.serving.report",
    "check_destination": "keras_efficient.serving.destination",
    "export": "keras_efficient.serving.saved_model",
    "write_page": "keras_efficient.serving.page",
}

__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(__all__)
