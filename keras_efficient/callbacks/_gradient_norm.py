"""Global norm of the gradients, in the logs."""

from typing import Any

import tensorflow as tf

from keras_efficient.flavor import Callback
from keras_efficient.training import _train_step_hook as train_step_hook
from keras_efficient.training._microbatch_step import square_norm


class GradientNorm(Callback):
    """Measure the global norm of every update's gradient, before it is clipped.

        ‖g‖ = √ Σ gᵢ²        over all trainable variables, replicas and microbatches

    It is measured after the all-reduce and without the loss scale, of the gradient that the
    optimizer's `global_clipnorm` then clips. Adds `gradient_norm` (the epoch's mean) and
    `gradient_norm_max` to the epoch's logs.

    Attributes:
        last: float, the norm of the last update's gradient.

    Examples:
        >>> norm = ke.callbacks.GradientNorm()
        >>> model.fit(dataset, callbacks=[norm])
        >>> norm.last > 0
        True

    Reference:
        Pascanu et al. 2013, "On the difficulty of training recurrent neural networks".
    """

    #: Attributes that `Resume` saves.
    resumes = ("_norm", "_norms")

    def __init__(self):
        self._norm: Any = None
        self._norms: list[float] = []

    def set_model(self, model: Any):
        self.model = model
        step = train_step_hook.attach(model)
        step.join(self, step.gradient_observers)

    def build(self, model: Any):
        """Create the variables, before the training step is traced."""
        if self._norm is None:
            self._norm = tf.Variable(tf.zeros([]), trainable=False)

    def __call__(self, gradients: Any):
        """Measure an update's gradients, in the graph before it is applied."""
        self._norm.assign(tf.sqrt(square_norm(gradients.values)))

    @property
    def last(self) -> float:
        return float(self._norm.numpy())

    def on_epoch_begin(self, epoch: int, logs: dict | None = None):
        self._norms = []

    def on_train_batch_end(self, batch: int, logs: dict | None = None):
        self._norms.append(self.last)

    def on_epoch_end(self, epoch: int, logs: dict | None = None):
        if logs is not None and self._norms:
            logs["gradient_norm"] = sum(self._norms) / len(self._norms)
            logs["gradient_norm_max"] = max(self._norms)

    def on_train_end(self, logs: dict | None = None):
        train_step_hook.attach(self.model).leave(self)
        train_step_hook.detach_if_idle(self.model)
