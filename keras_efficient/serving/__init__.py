"""Write a trained model as a SavedModel that plain TensorFlow serves, checked in a bare process.

The room is called `serving` because `ke.export` is the verb. Importing it imports no TensorFlow.
"""

from keras_efficient.lazy import lazily

_HOMES = {
    "BenchReport": "keras_efficient.serving.timing.report",
    "Evaluation": "keras_efficient.serving.evaluation",
    "ExportReport": "keras_efficient.serving.report",
    "TextTokenizer": "keras_efficient.serving.text.tokenizing",
    "archive": "keras_efficient.serving.versions.archiving",
    "bench": "keras_efficient.serving.timing.benching",
    "check_destination": "keras_efficient.serving.versions.destination",
    "check_graph": "keras_efficient.serving.servers.graph_check",
    "check_manifest": "keras_efficient.serving.versions.manifest_check",
    "export": "keras_efficient.serving.saved_model",
    "find_version": "keras_efficient.serving.versions.finding",
    "grpc_request": "keras_efficient.serving.servers.requests",
    "plan_server": "keras_efficient.serving.servers.starting",
    "predict": "keras_efficient.serving.servers.predicting",
    "rest_request": "keras_efficient.serving.servers.requests",
    "unpack": "keras_efficient.serving.versions.unpacking",
    "write_manifest": "keras_efficient.serving.versions.manifest",
    "write_page": "keras_efficient.serving.page",
    "write_warm_up": "keras_efficient.serving.versions.warm_up",
}

__all__ = list(_HOMES)
__getattr__, __dir__ = lazily(__name__, _HOMES)
