"""`Process`, a running worker: its output, its signals and its end."""

import codecs
import contextlib
import os
import queue
import signal
import subprocess
import threading
import time
from pathlib import Path

from keras_efficient.distribute.launcher.console import Output
from keras_efficient.distribute.launcher.log_tail import LogTail
from keras_efficient.distribute.launcher.parent_death import die_with_parent
from keras_efficient.distribute.launcher.ssh import ssh_command
from keras_efficient.distribute.launcher.worker import Worker

#: Longer lines are split, so that a line without an end cannot fill the memory.
_MAX_LINE_BYTES = 1 << 16
#: Waits for the end of its input, which comes when the launcher ends, and then kills the process
#: group given. A killed launcher cannot do it, and the kernel kills the worker alone.
_GUARD = 'read -r line; kill -s KILL -- "-$1" 2>/dev/null'
#: Seconds to wait for the remaining output of a worker that has ended. Only a process that left the
#: worker's process group can keep the output open.
_DRAIN_SECONDS = 5.0


class Process:
    """A running worker, in a session of its own so that its children are stopped with it.

    If the launcher is killed, so is the worker, by the kernel on Linux and by a guard process
    everywhere, which also kills the worker's children.

    Args:
        worker: `Worker`.
        grace: seconds from SIGTERM to SIGKILL, for a worker on another machine.
        log: path of a file for its output. Default: None.

    Attributes:
        code: exit code, 128 + n if signal n killed it, or None while it runs.
        by_signal: whether a signal killed it.
        signalled: the last signal that was sent to it, or None.
        seconds: how long it ran, in seconds; valid once it has ended.
        tail: `LogTail`, its last output.
    """

    def __init__(self, worker: Worker, grace: float, log: str | Path | None = None):
        self.worker = worker
        self.tail = LogTail()
        self.code: int | None = None
        self.signalled: int | None = None
        self.by_signal = False
        self.started = time.monotonic()
        self.seconds = 0.0
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
                preexec_fn=die_with_parent(worker.cores),
            )
        except BaseException:
            self._close_log()
            raise
        try:
            self._guard = _start_guard(self._process.pid)
        except BaseException:
            self._signal_group(signal.SIGKILL)
            self._close_log()
            raise
        self._threads = []

    @property
    def pid(self) -> int:
        """Process id of the worker, or of its ssh client."""
        return self._process.pid

    @property
    def running(self) -> bool:
        return self.code is None

    def watch(self, output: Output, ended: "queue.SimpleQueue[Process]") -> None:
        """Print its lines to `output`, and put this object into `ended` when it has ended."""
        for name in ("stdout", "stderr"):
            self._start_thread(self._pump, name, output)
        self._start_thread(self._wait, ended)

    def signal(self, number: int) -> None:
        """Send a signal to the worker and its children."""
        if not self.running:
            return
        self.signalled = number
        if self._remote:
            self._signal_remote(number)
        else:
            self._signal_group(number)

    def abandon(self) -> None:
        """Kill the local part, the ssh client, of a worker whose machine does not respond."""
        self._signal_group(signal.SIGKILL)

    def join(self) -> None:
        """Wait for the remaining output of a worker that has ended."""
        for thread in self._threads:
            thread.join(_DRAIN_SECONDS)
        self._close_log()

    def _start_thread(self, function, *arguments):
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _pump(self, name, output):
        pipe = getattr(self._process, name)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for raw in iter(lambda: pipe.readline(_MAX_LINE_BYTES), b""):
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
        # End its children too, so that they close the output.
        self._signal_group(signal.SIGKILL)
        self._guard.kill()
        self._guard.communicate()
        self.by_signal = code < 0
        self.code = 128 - code if code < 0 else code
        # Reported immediately: which worker failed first is a matter of milliseconds.
        ended.put(self)

    def _signal_group(self, number):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _signal_remote(self, number):
        stdin = self._process.stdin
        if stdin is None:
            return
        with contextlib.suppress(OSError, ValueError):
            name = signal.Signals(number).name.removeprefix("SIG")
            stdin.write(f"{name}\n".encode())
            stdin.flush()

    def _close_log(self):
        if self._log:
            self._log.close()


def _start_guard(group):
    # In a session of its own, so that Ctrl-C does not end it before the launcher.
    return subprocess.Popen(
        ["/bin/sh", "-c", _GUARD, "sh", str(group)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
