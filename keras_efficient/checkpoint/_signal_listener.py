"""Record a termination signal that arrives while a model's `fit` runs."""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any


class SignalListener:
    """Records the first of some signals, for the training loop to act on.

    A second signal has its usual effect: it ends the process, or raises KeyboardInterrupt. Python
    accepts signal handlers in the main thread only; elsewhere nothing is recorded.

    Args:
        model: the model whose `fit` is to be stopped.
        signals: numbers of the signals to record.
        is_active: function that returns whether the running `fit` acts on the signal.

    Attributes:
        received: int, the number of the signal received; None if there was none.
    """

    def __init__(self, model: Any, signals: tuple[int, ...], is_active: Callable[[], bool]):
        self.model, self.signals, self.is_active = model, signals, is_active
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def start(self):
        """Install the handlers."""
        self.received = None
        if threading.current_thread() is not threading.main_thread():
            return
        for number in self.signals:
            previous = signal.getsignal(number)
            # None stands for a handler written in C, which Python could not put back.
            if number not in self._previous and previous is not None:
                self._previous[number] = previous
                signal.signal(number, self._handle)

    def stop(self):
        """Restore the handlers that were installed before."""
        if threading.current_thread() is threading.main_thread():
            for number, previous in self._previous.items():
                signal.signal(number, previous)
        self._previous = {}

    def _handle(self, number: int, frame: FrameType | None):
        previous = self._previous.get(number, signal.SIG_DFL)
        if _inside_fit(frame, self.model) and self.is_active():
            self.received = number
            again = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, again)
            return
        # An error ended that `fit`, of which callbacks are not told.
        self.stop()
        if callable(previous):
            previous(number, frame)
        elif previous == signal.SIG_DFL:
            os.kill(os.getpid(), number)


def _inside_fit(frame: FrameType | None, model: Any) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "fit" and frame.f_locals.get("self") is model:
            return True
        frame = frame.f_back
    return False
