"""`Output`, which prints the workers' lines with a prefix, and the launcher's own messages."""

import sys
import threading
from typing import TextIO

from rich.console import Console

_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "bright_red", "bright_cyan", "white")


class Output:
    """Prints whole lines, also when several workers write at the same time.

    Args:
        workers: number of workers. On a terminal each has a colour.
    """

    def __init__(self, workers: int):
        # Looked up here and not at import, since tests replace these streams.
        self._streams = {"stdout": sys.stdout, "stderr": sys.stderr}
        self._lock = threading.Lock()
        self._prefixes = {
            (name, index): styled(stream, f"[worker {index}] ", _COLOURS[index % len(_COLOURS)])
            for name, stream in self._streams.items()
            for index in range(workers)
        }
        self._own = styled(self._streams["stderr"], "[launch] ", "bold")

    def line(self, worker: int, name: str, text: str) -> None:
        """Print a worker's line to the stream "stdout" or "stderr"."""
        # A progress bar overwrites itself with \r. Print its last state, as a terminal would show.
        self._write(name, self._prefixes[name, worker] + text.rstrip("\r").rpartition("\r")[2])

    def note(self, text: str) -> None:
        """Print a message of the launcher to stderr."""
        self._write("stderr", self._own + text)

    def plain(self, text: str) -> None:
        """Print lines without a prefix to stderr."""
        self._write("stderr", text)

    def _write(self, name, text):
        stream = self._streams[name]
        encoding = getattr(stream, "encoding", None) or "utf-8"
        text = text.encode(encoding, "replace").decode(encoding)
        with self._lock:
            try:
                stream.write(text + "\n")
                stream.flush()
            except (OSError, ValueError):
                # The reader has gone, as with `| head`. The training continues.
                pass


def styled(stream: TextIO, text: str, style: str) -> str:
    """Return `text` in a Rich style if the stream is a terminal, else unchanged."""
    console = Console(file=stream)
    with console.capture() as captured:
        console.print(text, style=style, end="", markup=False, highlight=False)
    return captured.get()
