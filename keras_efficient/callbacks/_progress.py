"""Progress bar of a `fit` or `evaluate` in the terminal, drawn by rich."""

from typing import Any

import rich.progress
from rich.console import Console

from keras_efficient.callbacks._throughput import Throughput
from keras_efficient.flavor import Callback


def progress_bar(console: Console | None = None) -> rich.progress.Progress:
    """Return a display for several progress bars: phase, bar, step, speed, and time.

    The time is the estimated time left; of a phase that has ended, the time it took.

    Args:
        console: the `rich.console.Console` to draw on. Default: None, standard output.

    Returns:
        A `rich.progress.Progress`, to be used as a context, whose tasks have the field `speed`.

    Examples:
        >>> with ke.callbacks.progress_bar() as bar:
        ...     progress = ke.callbacks.Progress(bar)
        ...     model.fit(dataset, verbose=0, callbacks=[progress])
        ...     model.evaluate(dataset, verbose=0, callbacks=[progress])

    Reference:
        `rich.progress.Progress`.
    """
    return rich.progress.Progress(
        rich.progress.TextColumn("[bold]{task.description}"),
        rich.progress.BarColumn(bar_width=20),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("[cyan]{task.fields[speed]}"),
        rich.progress.TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
    )


class Progress(Callback):
    """Show one progress bar over all epochs of `fit`, and one for each separate `evaluate`.

    Use it with `verbose=0`.

    Args:
        bar: a started display made by `progress_bar()`, so that several phases share it. Default:
            None, each `fit` or `evaluate` opens its own.
        throughput: a `Throughput` before this one in the same list of callbacks, whose examples
            per second are shown. Default: None.

    Examples:
        >>> speed = ke.callbacks.Throughput()
        >>> callbacks = [speed, ke.callbacks.Progress(throughput=speed)]
        >>> model.fit(dataset, verbose=0, callbacks=callbacks)

    Reference:
        `keras.callbacks.ProgbarLogger`, with one bar per epoch.
    """

    def __init__(
        self, bar: rich.progress.Progress | None = None, throughput: Throughput | None = None
    ):
        self.bar, self.throughput = bar, throughput
        self._training = False

    def on_train_begin(self, logs: dict | None = None):
        self._training, self._completed = True, 0
        self._open("train")

    def on_epoch_begin(self, epoch: int, logs: dict | None = None):
        params: Any = self.params
        epochs, steps = params.get("epochs", 1), params.get("steps") or 0
        description, self._completed = f"train {epoch + 1}/{epochs}", epoch * steps
        self._bar.update(
            self._task,
            description=description,
            completed=self._completed,
            total=epochs * steps,
        )

    def on_train_batch_end(self, batch: int, logs: dict | None = None):
        logs = logs or {}
        rate = self.throughput and self.throughput.last_step["examples_per_second"]
        speed = [f"{rate:.0f} ex/s"] if rate else []
        speed += [
            f"{name} {float(logs[name]):.3f}" for name in ("loss", "accuracy") if name in logs
        ]
        # A resumed epoch does not begin with its first batch.
        completed = self._completed + batch + 1
        self._bar.update(self._task, completed=completed, speed="  ".join(speed))

    def on_train_end(self, logs: dict | None = None):
        self._training = False
        self._close()

    def on_test_begin(self, logs: dict | None = None):
        if not self._training:
            self._open("evaluate")

    def on_test_batch_end(self, batch: int, logs: dict | None = None):
        if not self._training:
            self._bar.update(self._task, advance=1)

    def on_test_end(self, logs: dict | None = None):
        if not self._training:
            self._close()

    def _open(self, description):
        self._bar = self.bar or progress_bar()
        if self.bar is None:
            self._bar.start()
        steps = (self.params or {}).get("steps") or 0
        self._task = self._bar.add_task(description, total=steps, speed="")

    def _close(self):
        self._bar.stop_task(self._task)
        if self.bar is None:
            self._bar.stop()
