"""Plain lines about the progress of a `fit`, for logs in which a progress bar cannot be drawn."""

import sys
import time
from collections.abc import Callable
from typing import Any

from keras_efficient._errors import InputError
from keras_efficient.callbacks._throughput import Throughput
from keras_efficient.flavor import Callback


class ProgressLines(Callback):
    """Print a line about the training every so many seconds, and one after each epoch.

    A line has the epoch, the step, its share of all steps, the speed, the loss and the estimated
    time left. The first step has a line of its own, since it includes compilation. Use it with
    `verbose=0` where output goes to a file: nohup, Slurm, Kubernetes.

    Args:
        seconds: float > 0, time between lines in seconds. Default: 30.0.
        throughput: a `Throughput` before this one in the same list of callbacks, whose examples
            per second are shown. Default: None.
        write: function of a str that prints a line. Default: None, standard error.

    Raises:
        InputError: `seconds` is not positive.

    Examples:
        >>> speed = ke.callbacks.Throughput()
        >>> callbacks = [speed, ke.callbacks.ProgressLines(60.0, throughput=speed)]
        >>> model.fit(dataset, verbose=0, callbacks=callbacks)

    Reference:
        `ke.callbacks.Progress`, the bar for terminals.
    """

    def __init__(
        self,
        seconds: float = 30.0,
        throughput: Throughput | None = None,
        write: Callable[[str], Any] | None = None,
    ):
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
            raise InputError(
                f"`seconds` between lines must be positive. Received: {seconds!r}. Give for "
                "example 30.0."
            )
        self.seconds, self.throughput, self.write = seconds, throughput, write

    def on_train_begin(self, logs: dict | None = None):
        self._first = self._printed = None

    def on_epoch_begin(self, epoch: int, logs: dict | None = None):
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict | None = None):
        now = time.monotonic()
        params: Any = self.params or {}
        steps, epochs = params.get("steps"), params.get("epochs") or 1
        # A resumed epoch does not begin with its first batch.
        done = self._epoch * (steps or 0) + batch + 1
        self._first = self._first or (now, done)
        if self._printed is not None and now - self._printed < self.seconds:
            return
        self._printed = now
        parts = [f"epoch {self._epoch + 1}/{epochs}"]
        if steps:
            parts.append(f"step {done:,} of {epochs * steps:,} ({done / (epochs * steps):.0%})")
        else:
            parts.append(f"step {batch + 1:,} of the epoch")
        rate = self.throughput and self.throughput.last_step["examples_per_second"]
        parts += [f"{rate:.1f} examples/s"] if rate else []
        parts += _values(logs)
        since, before = self._first
        if steps and done > before:
            # Without the first step, which compiles.
            left = (now - since) / (done - before) * (epochs * steps - done)
            parts.append(f"{_duration(left)} left")
        self._line(parts)

    def on_epoch_end(self, epoch: int, logs: dict | None = None):
        epochs = (self.params or {}).get("epochs") or 1
        self._line([f"epoch {epoch + 1}/{epochs} done", *_values(logs)])
        self._printed = time.monotonic()

    def _line(self, parts):
        text = "train: " + ", ".join(parts)
        if self.write is None:
            print(text, file=sys.stderr, flush=True)
        else:
            self.write(text)


def _values(logs):
    names = ("loss", "accuracy", "val_loss", "val_accuracy", "val_macro_f1")
    logs = logs or {}
    return [f"{name} {float(logs[name]):.4f}" for name in names if name in logs]


def _duration(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
