"""Learning-rate schedules: pure functions of the number of updates made so far."""

from keras_efficient.lazy import lazily

# The files are named otherwise than the functions: a module `linear` would shadow `linear`.
_HOMES = {
    "Schedule": "keras_efficient.schedules.schedule",
    "constant": "keras_efficient.schedules.plateaus",
    "cosine": "keras_efficient.schedules.cosines",
    "cosine_restarts": "keras_efficient.schedules.cosines",
    "exponential": "keras_efficient.schedules.powers",
    "inverse_sqrt": "keras_efficient.schedules.roots",
    "linear": "keras_efficient.schedules.powers",
    "noam": "keras_efficient.schedules.roots",
    "one_cycle": "keras_efficient.schedules.cycles",
    "polynomial": "keras_efficient.schedules.powers",
    "warmup": "keras_efficient.schedules.warming",
    "warmup_cosine": "keras_efficient.schedules.warming",
    "warmup_linear": "keras_efficient.schedules.warming",
    "wsd": "keras_efficient.schedules.plateaus",
}
__all__ = list(_HOMES)
__getattr__, __dir__ = lazily(__name__, _HOMES)
