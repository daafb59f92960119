"""`LogTail`, which keeps the last lines of a worker and finds the traceback among them."""

import collections
import threading

#: Longer lines are cut in the excerpt, which then ends in this sign.
_LINE_LENGTH, _CUT = 1000, " ..."
#: Most lines of an excerpt; of a longer one the first and the last ones are shown.
_FIRST_LINES, _LAST_LINES = 20, 80
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
        if len(text) > _LINE_LENGTH:
            text = text[:_LINE_LENGTH] + _CUT
        with self._lock:
            self._all.append(text)
            if stream == "stderr":
                self._errors.append(text)

    def excerpt(self, lines: int = 20) -> list[str]:
        """Return the last traceback on stderr with the ones chained to it, or the last lines.

        At most 100 lines of a traceback, and 1,000 characters of a line.

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
        found = errors[first:]
        if len(found) <= _FIRST_LINES + _LAST_LINES:
            return found
        left_out = f"  [{len(found) - _FIRST_LINES - _LAST_LINES} lines left out]"
        return [*found[:_FIRST_LINES], left_out, *found[-_LAST_LINES:]]
