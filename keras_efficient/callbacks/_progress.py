"""Show a `fit` or `evaluate` as a rich progress bar."""

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as Bars,
)

from keras_efficient.flavor import Callback


def progress_bar(console=None):
    """The bars of this package: phase, bar, step, speed, time left (in the end: taken)."""
    return Bars(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("[cyan]{task.fields[speed]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
    )


class Progress(Callback):
    """A bar over all epochs of `fit` (use with `verbose=0`), and one for each `evaluate` alone.

    Args:
        bars: a started `rich.progress.Progress` made by `bars()`, so that several phases share
            one display; None (default) opens one for the `fit`.
        throughput: a `Throughput` in the same list of callbacks, before this one: shows examples/s.
    """

    def __init__(self, bars=None, throughput=None):
        self.bars, self.throughput = progress_bar, throughput
        self._training = False

    def on_train_begin(self, logs=None):
        self._training = True
        self._open("train")

    def on_epoch_begin(self, epoch, logs=None):
        epochs, steps = self.params.get("epochs", 1), self.params.get("steps") or 0
        description = f"train {epoch + 1}/{epochs}"
        self._bars.update(
            self._task, description=description, completed=epoch * steps, total=epochs * steps
        )

    def on_train_batch_end(self, batch, logs=None):
        logs = logs or {}
        rate = self.throughput and self.throughput.last_step["examples_per_second"]
        speed = [f"{rate:.0f} ex/s"] if rate else []
        speed += [
            f"{name} {float(logs[name]):.3f}" for name in ("loss", "accuracy") if name in logs
        ]
        self._bars.update(self._task, advance=1, speed="  ".join(speed))

    def on_train_end(self, logs=None):
        self._training = False
        self._close()

    def on_test_begin(self, logs=None):
        if not self._training:
            self._open("evaluate")

    def on_test_batch_end(self, batch, logs=None):
        if not self._training:
            self._bars.update(self._task, advance=1)

    def on_test_end(self, logs=None):
        if not self._training:
            self._close()

    def _open(self, description):
        self._bars = self.bars or progress_bar()
        if self.bars is None:
            self._bars.start()
        steps = (self.params or {}).get("steps") or 0
        self._task = self._bars.add_task(description, total=steps, speed="")

    def _close(self):
        self._bars.stop_task(self._task)
        if self.bars is None:
            self._bars.stop()
