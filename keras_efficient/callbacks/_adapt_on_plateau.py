"""When validation stops improving: lower the learning rate, enlarge the batch, or both."""

import math

from keras_efficient import flavor as flavors
from keras_efficient._errors import InputError
from keras_efficient.flavor import Callback
from keras_efficient.training import _accumulation_window as accumulation_window


class AdaptOnPlateau(Callback):
    """Multiply the learning rate and the batch size when a monitored value stops improving.

    After `patience` epochs without an improvement of more than `min_delta`, the rate is multiplied
    by `rate_factor` and the number of the dataset's batches per update by `batch_factor`. Works on
    a float rate and on top of a `ke.schedules` schedule (whose `scale` it lowers); nothing is
    traced anew.

    Adds `learning_rate_scale` and, if batches grow, `batches_per_update` to the epoch's logs.

    Args:
        monitor: name in the epoch's logs.
        mode: "min" or "max"; "auto" (default) takes "max" for names with "acc", "auc", "f1",
            "precision" or "recall".
        patience: int >= 0, epochs to wait for an improvement.
        rate_factor: float in (0, 1]; 1 leaves the rate alone.
        batch_factor: int >= 1; 1 (default) leaves the batch alone.
        max_batches: int >= 1, the most batches per update.
        min_scale: float >= 0, the least that the rate is multiplied by in all.
        min_delta: float >= 0, what counts as an improvement.

    Attributes:
        scale: float, what the rate has been multiplied by so far.
        batches: int, batches per update at present.

    Raises:
        ValueError: a number out of range, or nothing to adapt.
        InputError: in `fit`, if the rate belongs to a schedule that is not of `ke.schedules`, or
            `monitor` is not in the logs.

    Example:
        >>> adapt = ke.callbacks.AdaptOnPlateau("loss", patience=1, rate_factor=0.5, batch_factor=2)
        >>> model.fit(dataset, callbacks=[adapt])

    Reference:
        Smith et al. 2018, "Don't Decay the Learning Rate, Increase the Batch Size". The rate alone
        is what `keras.callbacks.ReduceLROnPlateau` does, for float rates only.
    """

    #: What `Resume` saves.
    resumes = ("scale", "batches", "_best", "_waited")

    def __init__(
        self,
        monitor="val_loss",
        *,
        mode="auto",
        patience=2,
        rate_factor=0.5,
        batch_factor=1,
        max_batches=64,
        min_scale=0.0,
        min_delta=0.0,
    ):
        rules = {
            "`mode` must be 'auto', 'min' or 'max'": mode in ("auto", "min", "max"),
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
        rising = any(word in monitor for word in ("acc", "auc", "f1", "precision", "recall"))
        self.monitor, self.sign = monitor, -1 if mode == "max" or (mode == "auto" and rising) else 1
        self.patience, self.min_delta, self.min_scale = patience, min_delta, min_scale
        self.rate_factor, self.batch_factor = rate_factor, batch_factor
        self.max_batches = max_batches
        self.scale, self.batches, self._window = 1.0, 1, None

    def set_model(self, model):
        self.model = model
        if self.batch_factor > 1:
            self._window = accumulation_window.attach(model, self)
            self._window.batches.assign(self.batches)

    def on_train_begin(self, logs=None):
        optimizer = flavors.of(self.model).optimizer(self.model)
        rate = getattr(optimizer, "_learning_rate", optimizer.learning_rate)
        if callable(rate) and not hasattr(rate, "scale"):
            raise InputError(
                "AdaptOnPlateau changes a float learning rate, or a schedule of ke.schedules. "
                f"Received: {type(rate).__name__}. Use the schedule of that name in ke.schedules."
            )
        self._rate = rate.scale if callable(rate) else rate
        self._best, self._waited = math.inf, 0

    def on_test_begin(self, logs=None):
        self._flush()

    def on_epoch_end(self, epoch, logs=None):
        self._flush()
        logs = {} if logs is None else logs
        if self.monitor not in logs:
            raise InputError(
                f"`monitor` must be in the epoch's logs. Received: {self.monitor!r} with logs of "
                f"{sorted(logs)}. Give `fit` validation_data, or monitor one of these."
            )
        value = self.sign * float(logs[self.monitor])
        if value < self._best - self.min_delta:
            self._best, self._waited = value, 0
        else:
            self._waited += 1
            if self._waited > self.patience:
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

    def on_train_end(self, logs=None):
        if self._window is not None:
            self._flush()
            accumulation_window.detach(self.model, self)
