"""Callbacks that both `fit`s accept, one per file."""

from keras_efficient.lazy import lazily

_HOMES = {
    "AdaptOnPlateau": "keras_efficient.callbacks.adapt_on_plateau",
    "AdaptiveSparsity": "keras_efficient.callbacks.adaptive_sparsity",
    "BatchSizeSchedule": "keras_efficient.callbacks.batch_size_schedule",
    "Checkpoint": "keras_efficient.callbacks.checkpoint",
    "EMA": "keras_efficient.callbacks.moving_average",
    "GradientNoiseScale": "keras_efficient.callbacks.gradient_noise_scale",
    "GradientNorm": "keras_efficient.callbacks.gradient_norm",
    "GradualUnfreezing": "keras_efficient.callbacks.gradual_unfreezing",
    "LossScale": "keras_efficient.callbacks.loss_scale",
    "Progress": "keras_efficient.callbacks.progress",
    "bars": "keras_efficient.callbacks.progress",
    "find_learning_rate": "keras_efficient.callbacks.learning_rate_finder",
    "EXIT_PREEMPTED": "keras_efficient.callbacks.preemption",
    "Resume": "keras_efficient.callbacks.resuming",
    "RunLog": "keras_efficient.callbacks.run_log",
    "Throughput": "keras_efficient.callbacks.throughput",
}
__all__ = list(_HOMES)
__getattr__, __dir__ = lazily(__name__, _HOMES)
