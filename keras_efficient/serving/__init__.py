"""Write a trained model as a SavedModel that plain TensorFlow serves, checked in a bare process.

The room is called `serving` because `ke.export` is the verb. Importing it imports no TensorFlow.
"""

from keras_efficient.lazy import lazily

_HOMES = {
    "Evaluation": "keras_efficient.serving.evaluation",
    "ExportReport": "keras_efficient.serving.report",
    "archive": "keras_efficient.serving.archiving",
    "check_destination": "keras_efficient.serving.destination",
    "check_graph": "keras_efficient.serving.graph_check",
    "check_manifest": "keras_efficient.serving.manifest_check",
    "export": "keras_efficient.serving.saved_model",
    "find_version": "keras_efficient.serving.versions",
    "grpc_request": "keras_efficient.serving.requests",
    "plan_server": "keras_efficient.serving.starting",
    "predict": "keras_efficient.serving.predicting",
    "rest_request": "keras_efficient.serving.requests",
    "unpack": "keras_efficient.serving.unpacking",
    "write_manifest": "keras_efficient.serving.manifest",
    "write_page": "keras_efficient.serving.page",
    "write_warm_up": "keras_efficient.serving.warm_up",
}

__all__ = list(_HOMES)
__getattr__, __dir__ = lazily(__name__, _HOMES)
