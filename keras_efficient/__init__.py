"""Train a Transformer several times cheaper and ship it several times smaller.

Every public name is loaded on first use: importing this package imports neither TensorFlow nor
Keras, and changes nothing in the process.
"""

from keras_efficient.lazy import lazily

__version__ = "0.1.0"

_HOMES = {
    "InputError": "keras_efficient.errors",
    "accumulate": "keras_efficient.step",
    "adalora": "keras_efficient.tuning",
    "adapters": "keras_efficient.tuning",
    "adversarial": "keras_efficient.step",
    "bitfit": "keras_efficient.tuning",
    "calibrate": "keras_efficient.compress",
    "cluster": "keras_efficient.compress",
    "export": "keras_efficient.serving",
    "find_learning_rate": "keras_efficient.callbacks",
    "load_adapters": "keras_efficient.tuning",
    "lora": "keras_efficient.tuning",
    "merge": "keras_efficient.parametrize",
    "mixed_precision": "keras_efficient.step",
    "prefix": "keras_efficient.tuning",
    "prune": "keras_efficient.compress",
    "quantize_aware": "keras_efficient.compress",
    "remat": "keras_efficient.models",
    "sam": "keras_efficient.step",
    "save_adapters": "keras_efficient.tuning",
    "share": "keras_efficient.compress",
    "strategy": "keras_efficient.distribute",
    "summary": "keras_efficient.parametrize",
    "switch_adapters": "keras_efficient.tuning",
}
_ROOMS = (
    "callbacks",
    "compress",
    "data",
    "distribute",
    "flavor",
    "layers",
    "models",
    "optimizers",
    "parametrize",
    "schedules",
    "serving",
    "step",
    "tuning",
)

__all__ = ["__version__", *_HOMES, *_ROOMS]
__getattr__, __dir__ = lazily(
    __name__, {**_HOMES, **{room: f"{__name__}.{room}" for room in _ROOMS}}
)
