"""Keep what a run report shows: every step and epoch of a `fit`."""

import tensorflow as tf

from keras_efficient.flavor import Callback


class RunLog(Callback):
    """Record loss, learning rate and speed per step, and the metrics per epoch.

    Args:
        throughput: a `Throughput` in the same list of callbacks, before this one, or None.

    Attributes:
        steps: list of dicts: step (updates made), loss (mean of the epoch so far),
            learning_rate, examples_per_second, tokens_per_second.
        epochs: list of dicts: epoch (from 1) and the epoch's logs (loss, accuracy, val_loss ...).
    """

    #: What `Resume` saves.
    resumes = ("steps", "epochs")

    def __init__(self, throughput=None):
        self.throughput = throughput
        self.steps, self.epochs = [], []

    def on_train_batch_end(self, batch, logs=None):
        optimizer = self.model.optimizer
        entry = {
            "step": int(optimizer.iterations.numpy()),
            "loss": float((logs or {}).get("loss", "nan")),
            "learning_rate": float(tf.convert_to_tensor(_rate(optimizer)).numpy()),
        }
        if self.throughput is not None:
            entry.update(self.throughput.last_step)
        self.steps.append(entry)

    def on_epoch_end(self, epoch, logs=None):
        values = {name: float(value) for name, value in (logs or {}).items()}
        self.epochs.append({"epoch": epoch + 1, **values})


def _rate(optimizer):
    """The rate of the update just made."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    # tf_keras' `learning_rate` is the last one used, Keras 3's the next one: ask the schedule.
    schedule = getattr(optimizer, "_learning_rate", None)
    return schedule(optimizer.iterations - 1) if callable(schedule) else optimizer.learning_rate
