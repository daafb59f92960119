"""Loss scale of float16 training in the logs, and an end to a run whose every step overflows."""

import warnings
from typing import Any

from keras_efficient._errors import InputError
from keras_efficient.flavor import Callback
from keras_efficient.training import _train_step_hook as train_step_hook


class LossScale(Callback):
    """Log the dynamic loss scale and the overflows; stop when every step overflows.

    A step whose gradients overflow in float16 is skipped by all replicas, halves the scale, and
    is not counted by `iterations` or schedules. Some overflows are normal, because the scale is
    raised until one occurs. A run whose every step is skipped learns nothing, and both libraries
    continue it for ever (keras#16100); this callback ends it and names the likely causes.

    Adds `loss_scale` and `overflows` (skipped steps so far) to the epoch's logs.

    Args:
        patience: int >= 1, number of consecutive skipped steps after which to stop. Default: 32,
            twice what lowers Keras' initial scale, 2¹⁵, to 1.

    Attributes:
        scale: float, the present loss scale.
        overflows: int, number of steps skipped since the callback was first given to `fit`.

    Raises:
        ValueError: `patience` is not a positive int.
        InputError: in `fit`, if the optimizer does not scale the loss.

    Examples:
        >>> watch = ke.callbacks.LossScale()
        >>> watch.overflows
        0

        Pass it to the `fit` of a model made under `ke.mixed_precision("mixed_float16")`.

    Reference:
        Micikevicius et al. 2018, "Mixed Precision Training", section 3.2.
    """

    #: Attributes that `Resume` saves.
    resumes = ("overflows", "_in_a_row", "_seen")

    def __init__(self, patience: int = 32):
        if type(patience) is not int or patience < 1:
            raise ValueError(f"`patience` must be a positive int. Received: {patience!r}.")
        self.patience = patience
        self.overflows = self._in_a_row = 0

    def set_model(self, model: Any):
        self.model = model
        step = train_step_hook.attach(model)
        step.join(self, step.requesters)
        self._step, self._seen = step, step.training_step.skipped_steps

    @property
    def scale(self) -> float:
        scaling: Any = self._step.flavor.loss_scale(self.model)
        return float(getattr(scaling.scale, "numpy", lambda: scaling.scale)())

    def on_train_begin(self, logs: dict | None = None):
        optimizer = self.model.optimizer
        if self._step.flavor.optimizer(self.model) is optimizer:
            raise InputError(
                "LossScale needs an optimizer that scales the loss. Received: "
                f"{type(optimizer).__name__}. Set ke.mixed_precision('mixed_float16') before the "
                "model is made, or leave the callback out: float32 and bfloat16 need no loss scale."
            )

    def on_train_batch_end(self, batch: int, logs: dict | None = None):
        skipped = self._step.training_step.skipped_steps
        # A training step that was set up again counts from 0.
        new = skipped - self._seen if skipped >= self._seen else skipped
        self._seen = skipped
        self.overflows += new
        self._in_a_row = self._in_a_row + new if new else 0
        if self._in_a_row >= self.patience:
            self.model.stop_training = True
            warnings.warn(
                f"Stopped: the last {self._in_a_row} steps overflowed and were skipped, down to a "
                f"loss scale of {self.scale:g}. No loss scale helps here, because the loss or a "
                "gradient itself is inf or nan. Likely causes are inf in the data, logits that are "
                "not float32, masks added as -1e9 in float16 (whose maximum is 65504), or too high "
                "a learning rate; bfloat16 has the range of float32.",
                stacklevel=2,
            )

    def on_epoch_end(self, epoch: int, logs: dict | None = None):
        if logs is not None:
            logs["loss_scale"], logs["overflows"] = self.scale, self.overflows

    def on_train_end(self, logs: dict | None = None):
        self._step.leave(self)
        train_step_hook.detach_if_idle(self.model)
