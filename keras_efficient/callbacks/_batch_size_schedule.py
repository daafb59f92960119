"""Let the batch grow during training: several batches of `fit` make one update."""

from keras_efficient import flavor as flavors
from keras_efficient.flavor import Callback
from keras_efficient.training import _accumulation_window as accumulation_window


class BatchSizeSchedule(Callback):
    """Set how many of the dataset's batches make one update, by the updates made so far.

    The dataset gives the smallest batch; gradients are summed over as many batches as the schedule
    says and applied once, exactly as one batch of them all (`ke.accumulate` splits the other way,
    and the two compose). Changing the number traces nothing anew. `iterations`, schedules and
    moving averages count updates. A window that is not full at an epoch's end makes its update
    there, before validation. Give it before callbacks that save the model.

    Adds `batches_per_update` to the epoch's logs.

    Args:
        batches_per_update: dict {update: batches} (from that update on), or a function
            `update -> batches`. {0: 1, 1000: 2, 2000: 4} doubles twice: a warm-up of the batch
            size, or "increase the batch instead of decaying the rate".

    Attributes:
        batches: int, the present number.

    Raises:
        ValueError: an empty dict, one that does not start at update 0, updates below 0, or a number
            of batches that is not a positive int.

    Example:
        >>> growth = ke.callbacks.BatchSizeSchedule({0: 1, 1000: 2, 2000: 4})
        >>> model.fit(dataset, callbacks=[growth])

    Reference:
        Smith et al. 2018, "Don't Decay the Learning Rate, Increase the Batch Size".
    """

    #: What `Resume` saves.
    resumes = ("batches",)

    def __init__(self, batches_per_update):
        if not callable(batches_per_update):
            batches_per_update = _steps(batches_per_update)
        self.schedule = batches_per_update
        self.batches = None

    def set_model(self, model):
        self.model, self._flavor = model, flavors.of(model)
        self._window, self.batches = accumulation_window.attach(model, self), None

    def on_train_batch_begin(self, batch, logs=None):
        updates = int(self._flavor.optimizer(self.model).iterations.numpy())
        batches = _checked(self.schedule(updates), f"update {updates}")
        if batches != self.batches:
            self.batches = batches
            self._window.batches.assign(batches)

    def on_test_begin(self, logs=None):
        self._window.flush()

    def on_epoch_end(self, epoch, logs=None):
        self._window.flush()
        if logs is not None:
            logs["batches_per_update"] = self.batches

    def on_train_end(self, logs=None):
        self._window.flush()
        accumulation_window.detach(self.model, self)


def _steps(table):
    if not isinstance(table, dict) or 0 not in table or min(table) < 0:
        raise ValueError(
            "`batches_per_update` must be a function, or a dict of updates to batches that says "
            f"what to start with: {{0: 1, 1000: 2}}. Received: {table!r}."
        )
    for update, batches in table.items():
        _checked(batches, f"update {update}")
    starts = sorted(table)

    def schedule(updates):
        return table[max(start for start in starts if start <= updates)]

    return schedule


def _checked(batches, where):
    if type(batches) is not int or batches < 1:
        raise ValueError(
            f"The batches per update must be a positive int. Received: {batches!r} for {where}."
        )
    return batches
