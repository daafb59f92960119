"""Schedule of the batch size: several batches of `fit` make one update."""

from collections.abc import Callable
from typing import Any

from keras_efficient import flavor as flavors
from keras_efficient.flavor import Callback
from keras_efficient.training import _accumulation_window as accumulation_window


class BatchSizeSchedule(Callback):
    """Set the number of the dataset's batches per update, as a function of the updates made.

    Gradients are summed over as many batches of the dataset as the schedule says and applied
    once, which equals one update with a single batch of them all. `ke.accumulate` splits batches
    instead, and the two compose. A change does not trace the training step again. `iterations`,
    schedules and moving averages count updates. An incomplete window at the end of an epoch makes
    its update there, before validation. Place the callback before those that save the model.

    Adds `batches_per_update` to the epoch's logs.

    Args:
        batches_per_update: dict {update: batches from that update on}, or a function
            `update -> batches`. {0: 1, 1000: 2, 2000: 4} doubles the batch twice.

    Attributes:
        batches: int, number of batches per update at present.

    Raises:
        ValueError: a dict is empty, does not start at update 0 or has updates below 0; or a number
            of batches is not a positive int.

    Examples:
        >>> growth = ke.callbacks.BatchSizeSchedule({0: 1, 1000: 2, 2000: 4})
        >>> model.fit(dataset, callbacks=[growth])

    Reference:
        Smith et al. 2018, "Don't Decay the Learning Rate, Increase the Batch Size".
    """

    #: Attributes that `Resume` saves.
    resumes = ("batches",)

    def __init__(self, batches_per_update: dict[int, int] | Callable[[int], int]):
        if not callable(batches_per_update):
            batches_per_update = _piecewise(batches_per_update)
        self.schedule = batches_per_update
        self.batches = None

    def set_model(self, model: Any):
        self.model, self._flavor = model, flavors.of(model)
        self._window, self.batches = accumulation_window.attach(model, self), None

    def on_train_batch_begin(self, batch: int, logs: dict | None = None):
        updates = int(self._flavor.optimizer(self.model).iterations.numpy())
        batches = _validate(self.schedule(updates), f"update {updates}")
        if batches != self.batches:
            self.batches = batches
            self._window.batches.assign(batches)

    def on_test_begin(self, logs: dict | None = None):
        self._window.flush()

    def on_epoch_end(self, epoch: int, logs: dict | None = None):
        self._window.flush()
        if logs is not None:
            logs["batches_per_update"] = self.batches

    def on_train_end(self, logs: dict | None = None):
        self._window.flush()
        accumulation_window.detach(self.model, self)


def _piecewise(table):
    if not isinstance(table, dict) or 0 not in table or min(table) < 0:
        raise ValueError(
            "`batches_per_update` must be a function, or a dict from updates to batches that "
            f"starts at update 0: {{0: 1, 1000: 2}}. Received: {table!r}."
        )
    for update, batches in table.items():
        _validate(batches, f"update {update}")
    starts = sorted(table)

    def schedule(updates):
        return table[max(start for start in starts if start <= updates)]

    return schedule


def _validate(batches, where):
    if type(batches) is not int or batches < 1:
        raise ValueError(
            f"The batches per update must be a positive int. Received: {batches!r} for {where}."
        )
    return batches
