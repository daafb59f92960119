"""What the user sees: the workers' lines with a name before each, and the launcher's own notes."""

import sys
import threading

from rich.console import Console

_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "bright_red", "bright_cyan", "white")


class Output:
    """Writes whole lines, however many workers write at once.

    Args:
        workers: how many there are; each has its colour where the output is a terminal.
    """

    def __init__(self, workers):
        # Looked up now: what they are may change while tests run.
        self._streams = {"stdout": sys.stdout, "stderr": sys.stderr}
        self._lock = threading.Lock()
        self._prefixes = {
            (name, index): _styled(stream, f"[worker {index}] ", _COLOURS[index % len(_COLOURS)])
            for name, stream in self._streams.items()
            for index in range(workers)
        }
        self._own = _styled(self._streams["stderr"], "[launch] ", "bold")

    def line(self, worker, name, text):
        """A worker's line, to the stream "stdout" or "stderr"."""
        # A progress bar writes itself over: a terminal would show the last state.
        self._write(name, self._prefixes[name, worker] + text.rstrip("\r").rpartition("\r")[2])

    def note(self, text):
        """The launcher's own line, to stderr."""
        self._write("stderr", self._own + text)

    def plain(self, text):
        """Lines without a name, to stderr."""
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
                # Whoever read it has gone (`| head`); the training need not stop for that.
                pass


def _styled(stream, text, style):
    """`text` in colour if the stream is a terminal."""
    console = Console(file=stream)
    with console.capture() as captured:
        console.print(text, style=style, end="", markup=False, highlight=False)
    return captured.get()
