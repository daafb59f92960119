"""Lower the learning rate or enlarge the batch when validation stops improving."""

import math
from typing import Any

from keras_efficient import flavor as flavors
from keras_efficient._errors import InputError
from keras_efficient.callbacks._monitor import MODES, improves_upwards, monitored_value
from keras_efficient.flavor import Callback
from keras_efficient.training import _accumulation_window as accumulation_window


class AdaptOnPlateau(Callback):
    """Multiply the learning rate and the batch size when a monitored value stops improving.

    After `patience` epochs in a row without an improvement by more than `min_delta`, the learning
    rate is multiplied by `rate_factor`, and the number of the dataset's batches per update by
    `batch_factor`. These are the epochs at which the libraries' `ReduceLROnPlateau` acts. Works on
    a float rate and on a `ke.schedules` schedule, whose `scale` it lowers. The training step is not
    traced again.

    Adds `learning_rate_scale` and, if batches grow, `batches_per_update` to the epoch's logs.

    Args:
        monitor: name in the epoch's logs. Default: "val_loss".
        mode: "min" or "max"; "auto" is "max" for names with "acc", "auc", "f1", "precision" or
            "recall", else "min". Default: "auto".
        patience: int >= 0, number of epochs without an improvement after which to adapt; 0 does as
            1, as in `ReduceLROnPlateau`. Default: 2.
        rate_factor: float in (0, 1]; 1 does not change the rate. Default: 0.5.
        batch_factor: int >= 1; 1 does not change the batch. Default: 1.
        max_batches: int >= 1, maximum number of batches per update. Default: 64.
        min_scale: float >= 0, minimum of the product of all factors of the rate. Default: 0.0.
        min_delta: float >= 0, smallest change that counts as an improvement. Default: 0.0.

    Attributes:
        scale: float, product of the factors of the rate so far.
        batches: int, number of batches per update at present.

    Raises:
        ValueError: a number is out of range, or both factors are 1.
        InputError: in `fit`, if the rate is a schedule that is not of `ke.schedules`, or `monitor`
            is not in the logs.

    Examples:
        >>> adapt = ke.callbacks.AdaptOnPlateau("loss", patience=1, rate_factor=0.5, batch_factor=2)
        >>> model.fit(dataset, callbacks=[adapt])

    Reference:
        Smith et al. 2018, "Don't Decay the Learning Rate, Increase the Batch Size". With the rate
        alone it is `keras.callbacks.ReduceLROnPlateau`, which takes float rates only.
    """

    #: Attributes that `Resume` saves.
    resumes = ("scale", "batches", "_best", "_waited")

    def __init__(
        self,
        monitor: str = "val_loss",
        *,
        mode: str = "auto",
        patience: int = 2,
        rate_factor: float = 0.5,
        batch_factor: int = 1,
        max_batches: int = 64,
        min_scale: float = 0.0,
        min_delta: float = 0.0,
    ):
        rules = {
            "`mode` must be 'auto', 'min' or 'max'": mode in MODES,
            "`patience` must be an int >= 0": type(patience) is int and patience >= 0,
            "`rate_factor` must be in (0, 1]": 0 < rate_factor <= 1,
            "`batch_factor` must be an int >= 1": type(batch_factor) is int and batch_factor >= 1,
            "`max_batches` must be an int >= 1": type(max_batches) is int and max_batches >= 1,
            "`min_scale` and `min_delta` must be >= 0": min_scale >= 0 and min_delta >= 0,
            "`rate_factor` < 1 or `batch_factor` > 1": rate_factor < 1 or batch_factor > 1,
        }
        broken = [rule for rule, holds in rules.items() if not holds]
        if broken:
            raise ValueError(
                f"{'; '.join(broken)}. Received: mode={mode!r}, patience={patience!r}, "
                f"rate_factor={rate_factor!r}, batch_factor={batch_factor!r}, "
                f"max_batches={max_batches!r}, min_scale={min_scale!r}, min_delta={min_delta!r}."
            )
        self.monitor, self.sign = monitor, -1 if improves_upwards(monitor, mode) else 1
        self.patience, self.min_delta, self.min_scale = patience, min_delta, min_scale
        self.rate_factor, self.batch_factor = rate_factor, batch_factor
        self.max_batches = max_batches
        self.scale, self.batches, self._window = 1.0, 1, None

    def set_model(self, model: Any):
        self.model = model
        if self.batch_factor > 1:
            self._window = accumulation_window.attach(model, self)
            self._window.batches.assign(self.batches)

    def on_train_begin(self, logs: dict | None = None):
        optimizer = flavors.of(self.model).optimizer(self.model)
        rate = getattr(optimizer, "_learning_rate", optimizer.learning_rate)
        if callable(rate) and not hasattr(rate, "scale"):
            raise InputError(
                "AdaptOnPlateau changes a float learning rate, or a schedule of ke.schedules. "
                f"Received: {type(rate).__name__}. Use the schedule of that name in ke.schedules."
            )
        self._rate = rate.scale if callable(rate) else rate
        self._best, self._waited = math.inf, 0

    def on_test_begin(self, logs: dict | None = None):
        self._flush()

    def on_epoch_end(self, epoch: int, logs: dict | None = None):
        self._flush()
        logs = {} if logs is None else logs
        value = self.sign * monitored_value(self.monitor, logs)
        if value < self._best - self.min_delta:
            self._best, self._waited = value, 0
        else:
            self._waited += 1
            if self._waited >= self.patience:
                self._waited = 0
                self._adapt()
        logs["learning_rate_scale"] = self.scale
        if self._window is not None:
            logs["batches_per_update"] = self.batches

    def _adapt(self):
        scale = max(self.scale * self.rate_factor, self.min_scale)
        self._rate.assign(self._rate * (scale / self.scale))
        self.scale = scale
        if self._window is not None:
            self.batches = min(self.batches * self.batch_factor, self.max_batches)
            self._window.batches.assign(self.batches)

    def _flush(self):
        if self._window is not None:
            self._window.flush()

    def on_train_end(self, logs: dict | None = None):
        if self._window is not None:
            self._flush()
            accumulation_window.detach(self.model, self)
