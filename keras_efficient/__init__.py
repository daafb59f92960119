"""Train a Transformer several times cheaper and ship it several times smaller.

Every public name is loaded on first use: importing this package imports neither TensorFlow nor
Keras, and changes nothing in the process.
"""

from keras_efficient.lazy import lazily

__version__ = "0.1.0"

_HOMES = {
    "InputError": "keras_efficient.errors",
    "accumulate": "keras_efficient.step",
    "adversarial": "keras_efficient.step",
    "export": "keras_efficient.serving",
    "find_learning_rate": "keras_efficient.callbacks",
    "mixed_precision": "keras_efficient.step",
    "remat": "keras_efficient.models",
    "sam": "keras_efficient.step",
    "strategy": "keras_efficient.distribute",
}
_ROOMS = (
    "callbacks",
    "data",
    "distribute",
    "flavor",
    "layers",
    "models",
    "optimizers",
    "schedules",
    "serving",
    "step",
)

__all__ = ["__version__", *_HOMES, *_ROOMS]
__getattr__, __dir__ = lazily(
    __name__, {**_HOMES, **{room: f"{__name__}.{room}" for room in _ROOMS}}
)
