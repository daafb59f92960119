"""Callbacks that both `fit`s accept, one per file."""

from keras_efficient.lazy import lazily

_HOMES = {
    "Checkpoint": "keras_efficient.callbacks.checkpoint",
    "Progress": "keras_efficient.callbacks.progress",
    "bars": "keras_efficient.callbacks.progress",
    "find_learning_rate": "keras_efficient.callbacks.learning_rate_finder",
    "RunLog": "keras_efficient.callbacks.run_log",
    "Throughput": "keras_efficient.callbacks.throughput",
}
__all__ = list(_HOMES)
__getattr__, __dir__ = lazily(__name__, _HOMES)
