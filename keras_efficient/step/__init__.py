"""The training step: everything that touches gradients, in one order."""

from keras_efficient.lazy import lazily

_HOMES = {
    "accumulate": "keras_efficient.step.accumulation",
    "adversarial": "keras_efficient.step.adversary",
    "mixed_precision": "keras_efficient.step.precision",
    "Precision": "keras_efficient.step.precision",
    "sam": "keras_efficient.step.second_pass",
}
__all__ = list(_HOMES)
__getattr__, __dir__ = lazily(__name__, _HOMES)
