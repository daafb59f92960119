"""A worker's process: start it, pass on what it says, signal it, and hear that it ended."""

import codecs
import contextlib
import os
import signal
import subprocess
import threading
import time

from keras_efficient.distribute.launcher.log_tail import Tail
from keras_efficient.distribute.launcher.parent_death import before_start
from keras_efficient.distribute.launcher.ssh import ssh_command

#: A line without an end is cut, so that it cannot fill the memory.
_LONGEST_LINE = 1 << 16
#: How long to wait for the rest of the output of a worker that ended, in seconds. Only a process
#: that left the worker's group can hold it open.
_DRAIN = 5.0


class Process:
    """A worker that runs, in a session of its own: its children are stopped with it.

    On Linux the kernel kills it if the launcher is killed. Elsewhere it then stays behind.

    Args:
        worker: `Worker`.
        grace: seconds from SIGTERM to SIGKILL, for a worker on another machine.
        log: path of a file for its output, or None.
    """

    def __init__(self, worker, grace, log=None):
        self.worker = worker
        self.tail = Tail()
        self.code = None
        #: The last signal that we sent it, and whether a signal ended it.
        self.signalled = None
        self.by_signal = False
        self.started = time.monotonic()
        self.seconds = None
        self._remote = worker.host is not None
        self._log = open(log, "wb", 0) if log else None  # noqa: SIM115
        command = ssh_command(worker, grace) if self._remote else worker.command
        try:
            self._process = subprocess.Popen(
                command,
                env=os.environ | ({} if self._remote else worker.variables),
                stdin=subprocess.PIPE if self._remote else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                preexec_fn=before_start(worker.cores),
            )
        except BaseException:
            self._close_log()
            raise
        self._threads = []

    @property
    def running(self):
        return self.code is None

    def watch(self, output, ended):
        """Pass lines on to `output`, and put this process into the queue `ended` at its end."""
        for name in ("stdout", "stderr"):
            self._thread(self._pump, name, output)
        self._thread(self._wait, ended)

    def signal(self, number):
        """Send a signal to the worker and its children."""
        if not self.running:
            return
        self.signalled = number
        if self._remote:
            self._remote_control(number)
        else:
            self._signal_group(number)

    def abandon(self):
        """Kill what runs here of a worker on another machine that does not answer."""
        self._signal_group(signal.SIGKILL)

    def join(self):
        """Wait for the rest of the output of a worker that ended."""
        for thread in self._threads:
            thread.join(_DRAIN)
        self._close_log()

    def _thread(self, function, *arguments):
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _pump(self, name, output):
        pipe = getattr(self._process, name)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for raw in iter(lambda: pipe.readline(_LONGEST_LINE), b""):
            if self._log:
                # A full disk must not stop the training.
                with contextlib.suppress(OSError, ValueError):
                    self._log.write(raw)
            text = decoder.decode(raw, raw.endswith(b"\n")).rstrip("\n")
            self.tail.add(name, text)
            output.line(self.worker.index, name, text)

    def _wait(self, ended):
        code = self._process.wait()
        self.seconds = time.monotonic() - self.started
        # Its children end with it, and let go of the output.
        self._signal_group(signal.SIGKILL)
        self.by_signal = code < 0
        self.code = 128 - code if code < 0 else code
        # Told at once: who failed first is a matter of milliseconds.
        ended.put(self)

    def _signal_group(self, number):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _remote_control(self, number):
        with contextlib.suppress(OSError, ValueError):
            name = signal.Signals(number).name.removeprefix("SIG")
            self._process.stdin.write(f"{name}\n".encode())
            self._process.stdin.flush()

    def _close_log(self):
        if self._log:
            self._log.close()
