"""Smaller models: pruning, quantization, clustering and sharing, as views of weights."""

from keras_efficient.lazy import lazily

_HOMES = {
    "Movement": "keras_efficient.compress.masks",
    "Pruned": "keras_efficient.compress.pruning",
    "Reconstruction": "keras_efficient.compress.reconstructing",
    "calibrate": "keras_efficient.compress.calibrating",
    "cluster": "keras_efficient.compress.clustering",
    "prune": "keras_efficient.compress.pruning",
    "quantize_aware": "keras_efficient.compress.quantizing",
    "sensitivity": "keras_efficient.compress.sensitivities",
    "share": "keras_efficient.compress.sharing",
}

__all__ = list(_HOMES)
__getattr__, __dir__ = lazily(__name__, _HOMES)
