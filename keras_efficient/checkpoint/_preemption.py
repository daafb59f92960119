"""Notice that the machine is about to be taken away."""

import os
import signal
import threading

#: The exit code of a run that saved itself and made room: 128 + SIGTERM, as of a killed process.
EXIT_PREEMPTED = 143


class Preemption:
    """Listens for SIGTERM, which schedulers send some seconds before they kill.

    The first one only sets `received`, for the training loop to see; a second one kills, as it
    would without this. Outside of the main thread Python allows no handlers: nothing is noticed.

    Args:
        model: the model whose `fit` is to be told.
        wanted: function that says whether that `fit` is one that listens.

    Attributes:
        received: bool.
    """

    def __init__(self, model, wanted):
        self.model, self.wanted, self.received = model, wanted, False
        self._before = None

    def listen(self):
        """Take SIGTERM over."""
        self.received = False
        if threading.current_thread() is threading.main_thread() and self._before is None:
            before = signal.getsignal(signal.SIGTERM)
            # (None is a handler of C's, which could not be put back.)
            if before is not None:
                self._before = before
                signal.signal(signal.SIGTERM, self._note)

    def ignore(self):
        """Give SIGTERM back to who had it."""
        if self._before is not None:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def _note(self, number, frame):
        before = self._before
        if _in_fit(frame, self.model) and self.wanted():
            self.received = True
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            return
        # `fit` is gone and told nobody: an error ended it.
        self.ignore()
        if callable(before):
            before(number, frame)
        elif before == signal.SIG_DFL:
            os.kill(os.getpid(), signal.SIGTERM)


def _in_fit(frame, model):
    while frame is not None:
        if frame.f_code.co_name == "fit" and frame.f_locals.get("self") is model:
            return True
        frame = frame.f_back
    return False
