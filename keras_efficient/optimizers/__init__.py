"""Optimizers with decay exclusions by path, for Keras 3 and tf_keras."""

from keras_efficient.lazy import lazily

_HOMES = {
    "AdamW": "keras_efficient.optimizers.adamw",
    "NO_DECAY": "keras_efficient.optimizers.exclusions",
}
__all__ = list(_HOMES)
__getattr__, __dir__ = lazily(__name__, _HOMES)
