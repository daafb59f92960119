"""Learning-rate schedules: pure functions of the number of updates made so far."""

from keras_efficient.lazy import lazily

_HOMES = {
    "Schedule": "keras_efficient.schedules.schedule",
    "warmup_cosine": "keras_efficient.schedules.warmup",
    "warmup_linear": "keras_efficient.schedules.warmup",
}
__all__ = list(_HOMES)
__getattr__, __dir__ = lazily(__name__, _HOMES)
