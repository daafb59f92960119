"""`LogTail`, which keeps the last lines of a worker and finds the traceback among them."""

import collections
import threading

_HEADS = ("Traceback (most recent call last):", "  + Exception Group Traceback (most recent")
_CHAINED = (
    "The above exception was the direct cause of the following exception:",
    "During handling of the above exception, another exception occurred:",
)


class LogTail:
    """The last lines of a worker's output.

    Args:
        kept: number of lines to keep. Default: 2000.
    """

    def __init__(self, kept: int = 2000):
        self._lock = threading.Lock()
        self._all: collections.deque[str] = collections.deque(maxlen=kept)
        self._errors: collections.deque[str] = collections.deque(maxlen=kept)

    def add(self, stream: str, text: str) -> None:
        """Add a line from the stream "stdout" or "stderr"."""
        with self._lock:
            self._all.append(text)
            if stream == "stderr":
                self._errors.append(text)

    def excerpt(self, lines: int = 20) -> list[str]:
        """Return the last traceback on stderr with the ones chained to it, or the last lines.

        Args:
            lines: number of lines to return if there is no traceback. Default: 20.
        """
        with self._lock:
            errors, everything = list(self._errors), list(self._all)
        heads = [number for number, line in enumerate(errors) if line.startswith(_HEADS)]
        if not heads:
            return everything[-lines:]
        first = heads.pop()
        while heads and any(line in _CHAINED for line in errors[max(0, first - 3) : first]):
            first = heads.pop()
        return errors[first:]
