"""Write a trained model as a SavedModel that plain TensorFlow serves, checked in a bare process.

The room is called `serving` because `ke.export` is the verb. Importing it imports no TensorFlow.
"""

from keras_efficient.lazy import lazily

_HOMES = {
    "ExportReport": "keras_efficient.serving.report",
    "check_destination": "keras_efficient.serving.destination",
    "export": "keras_efficient.serving.saved_model",
    "write_page": "keras_efficient.serving.page",
}

__all__ = list(_HOMES)
__getattr__, __dir__ = lazily(__name__, _HOMES)
