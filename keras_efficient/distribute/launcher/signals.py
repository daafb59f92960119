"""`Signals`, which records the signals that ask the launcher to stop."""

import signal
import time

#: Signals within so many seconds count as one: `timeout` and a closing terminal send theirs twice.
_TOGETHER_SECONDS = 1.0


class Signals:
    """A context manager that counts SIGINT, SIGTERM and SIGHUP.

    Attributes:
        received: number of the first signal, or None.
        count: how many signals came; those within a second after the first are not counted.
    """

    def __init__(self):
        self.received: int | None = None
        self.count = 0
        self._first = 0.0
        self._previous = {}

    def __enter__(self) -> "Signals":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # A signal that is ignored already, as under nohup, stays ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number, frame):
        if self.received is None:
            self.received, self._first = number, time.monotonic()
        elif time.monotonic() - self._first < _TOGETHER_SECONDS:
            return
        self.count += 1
