"""Optimizers of one form for Keras 3 and tf_keras, steered by the paths of the variables."""

from keras_efficient.lazy import lazily

_HOMES = {
    "AdamW": "keras_efficient.optimizers.adamw",
    "Adafactor": "keras_efficient.optimizers.adafactor",
    "Group": "keras_efficient.optimizers.rules",
    "LAMB": "keras_efficient.optimizers.lamb",
    "Lion": "keras_efficient.optimizers.lion",
    "NO_DECAY": "keras_efficient.optimizers.rules",
    "SGD": "keras_efficient.optimizers.sgd",
    "custom_objects": "keras_efficient.optimizers.loading",
    "describe": "keras_efficient.optimizers.describing",
    "layer_depths": "keras_efficient.optimizers.depths",
}
__all__ = list(_HOMES)
__getattr__, __dir__ = lazily(__name__, _HOMES)
