"""The last lines of a worker, and the traceback among them."""

import collections
import threading

_HEADS = ("Traceback (most recent call last):", "  + Exception Group Traceback (most recent")
_CHAINED = (
    "The above exception was the direct cause of the following exception:",
    "During handling of the above exception, another exception occurred:",
)


class Tail:
    """Keeps the last lines of a worker's output.

    Args:
        kept: how many; default: 2000.
    """

    def __init__(self, kept=2000):
        self._lock = threading.Lock()
        self._all = collections.deque(maxlen=kept)
        self._errors = collections.deque(maxlen=kept)

    def add(self, stream, text):
        with self._lock:
            self._all.append(text)
            if stream == "stderr":
                self._errors.append(text)

    def last_words(self, lines=20):
        """The last traceback on stderr with those it names as its cause, else the last lines."""
        with self._lock:
            errors, everything = list(self._errors), list(self._all)
        heads = [number for number, line in enumerate(errors) if line.startswith(_HEADS)]
        if not heads:
            return everything[-lines:]
        first = heads.pop()
        while heads and any(line in _CHAINED for line in errors[max(0, first - 3) : first]):
            first = heads.pop()
        return errors[first:]
