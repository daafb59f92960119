"""Stop making a model sparser where validation falls."""

import math

from keras_efficient import flavor as flavors
from keras_efficient._errors import InputError
from keras_efficient.flavor import Callback
from keras_efficient.parametrize._attach import updaters

_RISING = ("acc", "auc", "f1", "precision", "recall")


class AdaptiveSparsity(Callback):
    """Stop the growth of sparsity where a monitored value falls too far below its best.

    After every epoch: while the value is within `max_drop` of the best so far (and of `baseline`),
    weights and masks are remembered as good. Once it is not, those of the last good epoch come
    back, and masks move no more; training goes on with that sparsity. For a finer stop let epochs
    be shorter (`fit(steps_per_epoch=...)`). For a model pruned by `ke.prune`, with or without
    `adaptive=`.

    Adds `sparsity`, the share of zeros among all weights that are pruned, to the epoch's logs.

    Args:
        monitor: name in the epoch's logs. Default "val_accuracy".
        max_drop: float >= 0, how much worse than the best is still good enough. Default 0.01.
        baseline: float, what the dense model had, where training starts from it: then the weights
            `fit` starts with count as good. Default None: the best of this run so far.
        mode: "min" or "max"; "auto" (default) takes "max" for names with "acc", "auc", "f1",
            "precision" or "recall".

    Attributes:
        best: float or None, the best value so far.
        stopped_epoch: int or None, the epoch after which masks were stopped.

    Raises:
        ValueError: `max_drop` below 0, or another mode.
        InputError: in `fit`, if the model is not pruned or `monitor` is not in the logs.

    Example:
        >>> report = ke.prune(model, 0.9, end_step=100)
        >>> stop = ke.callbacks.AdaptiveSparsity("loss", max_drop=0.5, mode="min")
        >>> model.fit(dataset, callbacks=[stop])
    """

    #: What `Resume` saves.
    resumes = ("best", "stopped_epoch", "_good")

    def __init__(self, monitor="val_accuracy", *, max_drop=0.01, baseline=None, mode="auto"):
        if mode not in ("auto", "min", "max"):
            raise ValueError(f"`mode` must be 'auto', 'min' or 'max'. Received: {mode!r}.")
        if not max_drop >= 0:
            raise ValueError(
                "`max_drop` must be at least 0: how far below the best is still good enough. "
                f"Received: {max_drop!r}."
            )
        rising = mode == "max" or (mode == "auto" and any(word in monitor for word in _RISING))
        self.monitor, self.sign = monitor, 1 if rising else -1
        self.max_drop, self.baseline = max_drop, baseline
        self.best = self.stopped_epoch = self._good = None

    def on_train_begin(self, logs=None):
        self._masks = [updater for updater in updaters(self.model) if hasattr(updater, "hold")]
        if not self._masks:
            raise InputError(
                "AdaptiveSparsity watches a model that is pruned. Received: "
                f"{self.model.name!r}, which has no masks. Apply ke.prune(model, ...) first, or "
                "leave the callback out."
            )
        self.best, self.stopped_epoch = self.baseline, None
        self._good = None if self.baseline is None else self._values()

    def on_epoch_end(self, epoch, logs=None):
        logs = {} if logs is None else logs
        if self.monitor not in logs:
            raise InputError(
                f"`monitor` must be in the epoch's logs. Received: {self.monitor!r} with logs of "
                f"{sorted(logs)}. Give `fit` validation_data, or monitor one of these."
            )
        value = float(logs[self.monitor])
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
        """The model's weights, those of masks among them, without the counters of updates."""
        flavor = flavors.of(self.model)
        counters = {id(v) for masks in self._masks for v in (masks.step, masks.held)}
        return [v for v in flavor.weights(self.model) if id(v) not in counters]
