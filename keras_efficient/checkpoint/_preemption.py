"""Stop a run on a signal from the scheduler, on all of its workers at the same step."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from keras_efficient._errors import InputError
from keras_efficient.checkpoint._signal_listener import SignalListener
from keras_efficient.checkpoint._store import StoredCheckpoint
from keras_efficient.checkpoint._variables import hook_of
from keras_efficient.distribute._multi_worker_strategy import MultiWorkerStrategy
from keras_efficient.training import _train_step_hook as train_step_hook
from keras_efficient.training._stop_signal import StopSignal

#: Exit code of a process that saved its run on SIGTERM and stopped: 128 + 15, the code of a
#: process killed by SIGTERM. Kubernetes and the Slurm script of `keras-efficient launch` start
#: such a process again.
EXIT_PREEMPTED = 143


class StopValidation(BaseException):
    """Ends a validation so that the run can be saved and the process exit."""


class Preemption:
    """Whether a run is to be saved and stopped, with the same answer on all workers.

    Args:
        model: the model that `fit` trains.
        signals: numbers of the signals to stop on.
        is_active: function that returns whether the running `fit` acts on a signal.

    Attributes:
        workers: the model's `MultiWorkerStrategy`; None if it trains in one process.
    """

    def __init__(self, model: Any, signals: tuple[int, ...], is_active: Callable[[], bool]):
        self.model, self.workers = model, _workers_of(model)
        self._listener = SignalListener(model, signals, is_active)

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the checkpoints."""
        return self.workers is None or self.workers.cluster.index == 0

    def attach(self, hook: train_step_hook.TrainStepHook, callback: Any):
        """Make workers tell each other to stop, in the all-reduce of this package's step."""
        if self.workers is not None:
            hook.join(callback, hook.requesters)
            hook.stop_signal = StopSignal(self.model)

    def start(self):
        """Listen for the signals."""
        self._listener.start()

    def stop(self):
        """Listen no longer, and restore the handlers that were installed before."""
        self._listener.stop()

    @property
    def requested(self) -> bool:
        """Whether to stop after this step; all workers agree."""
        received = self._listener.received is not None
        if self.workers is None:
            return received
        stop_signal: Any = hook_of(self.model).stop_signal
        if received:
            stop_signal.send()
        return stop_signal.received

    def requested_at_end(self) -> bool:
        """Whether to stop after the last update, when no other step can tell the workers."""
        received = self._listener.received is not None
        return received if self.workers is None else self.workers.agree(received, any)

    def saved_by_all(self, saved: bool) -> bool:
        """Whether all workers saved the run. Waits for them: one that left would fail the rest."""
        return saved if self.workers is None else self.workers.agree(saved, all)

    def exit(self, saved: bool, directory: Path, verbose: int) -> NoReturn:
        """End the process, or raise KeyboardInterrupt if the signal was SIGINT."""
        number = self._listener.received or signal.SIGTERM
        name = signal.Signals(number).name
        if saved and verbose:
            print(f"Stopped by {name}. {directory} is saved: start again to continue.", flush=True)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        if not saved:
            raise SystemExit(
                f"Stopped by {name}, and {directory} could not be written: what was trained since "
                "the last save is lost."
            )
        raise SystemExit(128 + number)

    def check_same_checkpoint(self, checkpoint: StoredCheckpoint | None, directory: Path):
        """Refuse workers that would continue from different checkpoints.

        Raises:
            InputError: the checkpoints differ.
        """
        if self.workers is None:
            return
        state = {"total": -1, "epoch": -1} if checkpoint is None else checkpoint.state
        own = np.array([state["total"], state["epoch"]], np.int64)
        (found,) = self.workers.gather_arrays([own])
        if (found != own).any():
            listed = ", ".join("none" if total < 0 else f"step {total}" for total, _ in found)
            raise InputError(
                "All workers must see the same checkpoints, those that the first one writes. "
                f"Received: {str(directory)!r}, in which they see: {listed}. Use a folder on a "
                "file system that they share."
            )


def _workers_of(model: Any) -> Any:
    """Return the strategy of several workers that a model trains under, or None."""
    strategy = model.distribute_strategy
    several = getattr(strategy.extended, "_in_multi_worker_mode", lambda: False)()
    if several and not isinstance(strategy, MultiWorkerStrategy):
        raise InputError(
            "Resume on several workers needs a strategy that knows their cluster. Received: "
            f"{type(strategy).__name__}. Make the model in the scope of ke.strategy('auto')."
        )
    return strategy if several else None
