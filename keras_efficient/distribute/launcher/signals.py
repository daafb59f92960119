"""The signals that stop the launcher."""

import signal
import time

#: Signals so close in time are one: `timeout` and a closing terminal send theirs twice.
_TOGETHER = 1.0


class Signals:
    """Counts SIGINT, SIGTERM and SIGHUP while it is entered.

    Attributes:
        received: the first one's number, or None.
        count: how many there were, those within a second of the first left out.
    """

    def __init__(self):
        self.received = None
        self.count = 0
        self._first = None
        self._before = {}

    def __enter__(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # Who started us with nohup means it.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number, frame):
        if self.received is None:
            self.received, self._first = number, time.monotonic()
        elif time.monotonic() - self._first < _TOGETHER:
            return
        self.count += 1
