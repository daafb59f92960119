"""Gradient noise scale: the batch size beyond which more examples per update hardly help."""

from typing import Any

import tensorflow as tf

from keras_efficient._errors import InputError
from keras_efficient.flavor import Callback
from keras_efficient.training import (
    _accumulation_window as accumulation_window,
    _train_step_hook as train_step_hook,
)
from keras_efficient.training._microbatch_step import square_norm


def noise_scale(small: Any, large: Any, small_size: Any, large_size: Any) -> tuple[Any, Any]:
    """Estimate the two quantities whose ratio is the simple noise scale.

        |G|² ≈ (B·|g_B|² - b·|g_b|²) / (B - b)        tr Σ ≈ (|g_b|² - |g_B|²) / (1/b - 1/B)

    Args:
        small: scalar tensor, mean square norm |g_b|² of gradients of `small_size` examples.
        large: scalar tensor, mean square norm |g_B|² of gradients of `large_size` examples.
        small_size: number of examples b.
        large_size: number of examples B.

    Returns:
        |G|², the square norm of the true gradient, and tr Σ, the variance of one example's. Both
        are noisy and may be negative, so average them before dividing. Zeros if the sizes are
        equal.
    """
    squared = tf.math.divide_no_nan(
        large_size * large - small_size * small, large_size - small_size
    )
    variance = tf.math.divide_no_nan(small - large, 1.0 / small_size - 1.0 / large_size)
    return squared, variance


class GradientNoiseScale(Callback):
    """Measure the gradient noise scale from microbatches, and optionally adapt the batch to it.

        B_noise = tr Σ / |G|²

    Well below it, a batch of twice the size is worth twice the updates; well above it, more
    examples per update are wasted. The cost is the norm of every microbatch's gradient.

    Where every epoch draws each of N examples once, the examples of a batch are no independent
    draws, and the estimate of |G|² is too small by tr Σ / N: it is that of the distribution the
    data comes from. B_noise is then too large by 1 / (1 - B_noise / N) for the N examples
    themselves, as by half at N = 3 B_noise. `dataset_size` corrects it.

    Adds `gradient_noise_scale`, in examples, to the epoch's logs.

    Args:
        smoothing: float in [0, 1), weight of the past in the moving averages of tr Σ and |G|².
            Default: 0.9.
        max_batches: int >= 1. If given, the batch is adapted at the end of every epoch and every
            `every_updates` updates, to the number of the dataset's batches per update that comes
            nearest to B_noise, between one and `max_batches`. Default: None, not adapted.
        every_updates: int >= 1, number of updates between adaptations. Default: 50.
        dataset_size: int >= 1, the number N of examples of which every epoch draws each once. The
            result is then that of these examples. Default: None, draws are independent, or N is
            much larger than B_noise.

    Attributes:
        value: float, B_noise in examples; nan before the first update, inf where the gradient is
            lost in the noise.
        batches: int, number of batches per update at present.

    Raises:
        ValueError: a number is out of range; in `fit`, losses are summed instead of averaged.
        InputError: in `fit`, if an update has one microbatch only: use `ke.accumulate`, several
            replicas, or a `BatchSizeSchedule`.

    Examples:
        >>> noise = ke.callbacks.GradientNoiseScale()
        >>> model = ke.accumulate(model, microbatches=2)
        >>> model.fit(dataset, callbacks=[noise])

    Reference:
        McCandlish et al. 2018, "An Empirical Model of Large-Batch Training", appendix A.1.
    """

    #: Makes the training step measure every microbatch's gradient.
    square_norms = True

    #: Attributes that `Resume` saves.
    resumes = ("batches", "_state", "_adapted")

    def __init__(
        self,
        smoothing: float = 0.9,
        *,
        max_batches: int | None = None,
        every_updates: int = 50,
        dataset_size: int | None = None,
    ):
        if not 0 <= smoothing < 1:
            raise ValueError(f"`smoothing` must be in [0, 1). Received: {smoothing!r}.")
        counts = {"max_batches": max_batches, "every_updates": every_updates}
        for name, value in (counts | {"dataset_size": dataset_size}).items():
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"`{name}` must be a positive int. Received: {value!r}.")
        self.smoothing, self.max_batches = smoothing, max_batches
        self.every_updates, self.dataset_size = every_updates, dataset_size
        self.batches = 1
        self._state: Any = None
        self._window: Any = None

    def set_model(self, model: Any):
        self.model = model
        self._step = train_step_hook.attach(model)
        self._step.join(self, self._step.gradient_observers)
        if self.max_batches is not None:
            self._window = accumulation_window.attach(model, self)
            self._window.batches.assign(self.batches)
        self._adapted = 0

    def build(self, model: Any):
        """Create the variables, before the training step is traced."""
        if self._state is None:
            # |G|², tr Σ, updates, microbatches of the last update, examples per batch.
            self._state = tf.Variable(tf.zeros([5]), trainable=False)

    def __call__(self, gradients: Any):
        """Take an update's gradients into account, in the graph before it is applied."""
        if self._step.training_step.loss_is_sum:
            raise ValueError(
                "The gradient noise scale needs a loss that is averaged over examples. Received: "
                'reduction="sum". Use the default reduction.'
            )
        totals, state = gradients.totals, self._state
        microbatches, examples = totals["microbatches"], totals["examples"]
        squared, variance = noise_scale(
            totals["square_norms"] / microbatches,
            square_norm(gradients.values),
            examples / microbatches,
            examples,
        )
        past = tf.where(state[2] > 0, self.smoothing, 0.0)
        # The last update of an epoch may have fewer batches.
        batches = 1.0 if self._window is None else tf.cast(self._window.seen, tf.float32)
        known = tf.logical_and(microbatches > 1, tf.math.is_finite(squared + variance))
        new = tf.stack(
            [
                past * state[0] + (1.0 - past) * squared,
                past * state[1] + (1.0 - past) * variance,
                state[2] + 1.0,
                microbatches,
                past * state[4] + (1.0 - past) * examples / batches,
            ]
        )
        skipped = tf.stack([state[0], state[1], state[2], microbatches, state[4]])
        state.assign(tf.where(known, new, skipped))

    @property
    def value(self) -> float:
        squared, variance, updates, *_ = self._state.numpy()
        if not updates:
            return float("nan")
        variance = max(variance, 0.0)
        if self.dataset_size is not None:
            squared += variance / self.dataset_size
        return float(variance / squared) if squared > 0 else float("inf")

    def on_train_batch_end(self, batch: int, logs: dict | None = None):
        _, _, updates, microbatches, _ = self._state.numpy()
        alone = self._step.window is None or self._step.window is self._window
        if microbatches == 1 and alone and not updates:
            raise InputError(
                "The gradient noise scale compares microbatches with the whole batch. Received: "
                "updates of one microbatch. Use ke.accumulate(model, microbatches=2) or more."
            )
        if self._window is not None and updates - self._adapted >= self.every_updates:
            self._adapt()

    def on_test_begin(self, logs: dict | None = None):
        if self._window is not None:
            self._window.flush()

    def on_epoch_end(self, epoch: int, logs: dict | None = None):
        if self._window is not None:
            self._window.flush()
            self._adapt()
        if logs is not None:
            logs["gradient_noise_scale"] = self.value

    def _adapt(self):
        _, _, updates, _, examples = self._state.numpy()
        self._adapted, value = updates, self.value
        if value == value and examples:
            wanted = min(value / examples, float(self.max_batches or 1))
            self.batches = max(1, min(round(wanted), self.max_batches or 1))
            self._window.batches.assign(self.batches)

    def on_train_end(self, logs: dict | None = None):
        self._step.leave(self)
        if self._window is not None:
            self._window.flush()
            accumulation_window.detach(self.model, self)
        train_step_hook.detach_if_idle(self.model)
