"""Record of every step and epoch of a `fit`, as a run report shows them."""

from typing import Any

import tensorflow as tf

from keras_efficient.callbacks._throughput import Throughput
from keras_efficient.flavor import Callback


class RunLog(Callback):
    """Record loss, learning rate and speed per step, and the metrics per epoch.

    Args:
        throughput: a `Throughput` before this one in the same list of callbacks, whose rates are
            recorded too. Default: None.

    Attributes:
        steps: list of dicts with step (updates made), loss (mean of the epoch so far),
            learning_rate (of that update), and with `throughput` examples_per_second and
            tokens_per_second.
        epochs: list of dicts with epoch (from 1) and the epoch's logs (loss, accuracy, val_loss,
            ...).

    Examples:
        >>> log = ke.callbacks.RunLog()
        >>> model.fit(dataset, epochs=2, callbacks=[log])
        >>> [entry["step"] for entry in log.steps], len(log.epochs)
        ([1, 2, 3, 4], 2)

    Reference:
        `keras.callbacks.History`, with the steps besides the epochs.
    """

    #: Attributes that `Resume` saves.
    resumes = ("steps", "epochs")

    def __init__(self, throughput: Throughput | None = None):
        self.throughput = throughput
        self.steps: list[dict[str, Any]] = []
        self.epochs: list[dict[str, Any]] = []

    def on_train_batch_end(self, batch: int, logs: dict | None = None):
        optimizer = self.model.optimizer
        entry = {
            "step": int(optimizer.iterations.numpy()),
            "loss": float((logs or {}).get("loss", "nan")),
            "learning_rate": float(tf.convert_to_tensor(_learning_rate(optimizer)).numpy()),
        }
        if self.throughput is not None:
            entry.update(self.throughput.last_step)
        self.steps.append(entry)

    def on_epoch_end(self, epoch: int, logs: dict | None = None):
        values = {name: float(value) for name, value in (logs or {}).items()}
        self.epochs.append({"epoch": epoch + 1, **values})


def _learning_rate(optimizer: Any) -> Any:
    """Return the learning rate of the last update."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    # tf_keras' `learning_rate` is that of the last update, Keras 3's that of the next one, so the
    # schedule is evaluated.
    schedule = getattr(optimizer, "_learning_rate", None)
    return schedule(optimizer.iterations - 1) if callable(schedule) else optimizer.learning_rate
