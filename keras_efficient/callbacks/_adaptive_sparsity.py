"""Stop the growth of sparsity when a monitored value falls too far below its best."""

import math
from typing import Any

from keras_efficient import flavor as flavors
from keras_efficient._errors import InputError
from keras_efficient.callbacks._monitor import MODES, improves_upwards, monitored_value
from keras_efficient.flavor import Callback
from keras_efficient.parametrize._attach import updaters


class AdaptiveSparsity(Callback):
    """Stop the growth of sparsity where a monitored value falls too far below its best.

    After every epoch whose value is within `max_drop` of the best so far, and of `baseline`,
    weights and masks are kept as good. After the first other epoch, those of the last good epoch
    are restored and the masks are frozen; training continues with that sparsity. For a finer stop
    use shorter epochs (`fit(steps_per_epoch=...)`). For a model pruned by `ke.prune`, with or
    without `adaptive=`.

    Adds `sparsity`, the share of zeros among all pruned weights, to the epoch's logs.

    Args:
        monitor: name in the epoch's logs. Default: "val_accuracy".
        max_drop: float >= 0, how much worse than the best a good epoch may be. Default: 0.01.
        baseline: float, the value of the dense model if training starts from it; the weights
            that `fit` starts with then count as good. Default: None, the best of this run so far.
        mode: "min" or "max"; "auto" is "max" for names with "acc", "auc", "f1", "precision" or
            "recall", else "min". Default: "auto".

    Attributes:
        best: float, the best value so far; None before the first epoch.
        stopped_epoch: int, index of the epoch after which the masks were frozen; None before.

    Raises:
        ValueError: `max_drop` is below 0, or `mode` is none of the three.
        InputError: in `fit`, if the model is not pruned or `monitor` is not in the logs.

    Examples:
        >>> report = ke.prune(model, 0.9, end_step=100)
        >>> stop = ke.callbacks.AdaptiveSparsity("loss", max_drop=0.5, mode="min")
        >>> model.fit(dataset, callbacks=[stop])

    Reference:
        Zhu & Gupta 2017, "To prune, or not to prune", for the schedule that this stops.
    """

    #: Attributes that `Resume` saves.
    resumes = ("best", "stopped_epoch", "_good")

    def __init__(
        self,
        monitor: str = "val_accuracy",
        *,
        max_drop: float = 0.01,
        baseline: float | None = None,
        mode: str = "auto",
    ):
        if mode not in MODES:
            raise ValueError(f"`mode` must be 'auto', 'min' or 'max'. Received: {mode!r}.")
        if not max_drop >= 0:
            raise ValueError(
                "`max_drop` must be at least 0, the distance from the best that is still good. "
                f"Received: {max_drop!r}."
            )
        self.monitor, self.sign = monitor, 1 if improves_upwards(monitor, mode) else -1
        self.max_drop, self.baseline = max_drop, baseline
        self.best: float | None = None
        self.stopped_epoch: int | None = None
        self._good: Any = None

    def on_train_begin(self, logs: dict | None = None):
        self._masks = [updater for updater in updaters(self.model) if hasattr(updater, "hold")]
        if not self._masks:
            raise InputError(
                "AdaptiveSparsity needs a pruned model. Received: "
                f"{self.model.name!r}, which has no masks. Apply ke.prune(model, ...) first, or "
                "leave the callback out."
            )
        self.best, self.stopped_epoch = self.baseline, None
        self._good = None if self.baseline is None else self._values()

    def on_epoch_end(self, epoch: int, logs: dict | None = None):
        logs = {} if logs is None else logs
        value = monitored_value(self.monitor, logs)
        if self.stopped_epoch is None:
            if self.best is None or self.sign * (value - self.best) >= -self.max_drop:
                self._good = self._values()
            else:
                self._stop(epoch)
        if math.isfinite(value) and (self.best is None or self.sign * (value - self.best) > 0):
            self.best = value
        sizes = [sum(mask.weight.size for mask in masks.masks) for masks in self._masks]
        zeros = [size * m.sparsity() for size, m in zip(sizes, self._masks, strict=True)]
        logs["sparsity"] = sum(zeros) / sum(sizes)

    def _stop(self, epoch):
        self.stopped_epoch = epoch
        with self.model.distribute_strategy.scope():
            for variable, value in zip(self._variables(), self._good, strict=True):
                variable.assign(value)
            for masks in self._masks:
                masks.hold()

    def _values(self):
        return [variable.numpy() for variable in self._variables()]

    def _variables(self):
        """Return the weights of model and masks, without the counters of updates."""
        flavor = flavors.of(self.model)
        counters = {id(v) for masks in self._masks for v in (masks.step, masks.held)}
        return [v for v in flavor.weights(self.model) if id(v) not in counters]
