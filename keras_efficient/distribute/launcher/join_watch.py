"""`JoinWatch`, which notices workers that train alone instead of in the cluster."""

import time
from collections.abc import Sequence

import psutil

from keras_efficient.distribute.launcher.process import Process

#: Seconds after which the workers that have not joined are named. Importing TensorFlow takes some.
NOTICE_SECONDS = 30.0
_LOOK_SECONDS = 0.5


class JoinWatch:
    """Knows which workers on this machine have joined the cluster.

    A worker that joins it, through `ke.strategy` or TensorFlow's own strategies, listens on its
    port of `TF_CONFIG`. Only sockets of the worker and its children are looked at: a connection
    would disturb the workers' meeting.

    Args:
        processes: each worker's `Process`. A single worker has nobody to join, and those on other
            machines are not watched.
        notice: seconds after which `overdue` names the workers. Default: 30.

    Attributes:
        seconds: float, as `notice`.
    """

    def __init__(self, processes: Sequence[Process], notice: float = NOTICE_SECONDS):
        several = len(processes) > 1
        self._alone = [p for p in processes if several and p.worker.host is None]
        self._start = self._looked = time.monotonic()
        self.seconds = notice
        self._told = False

    def look(self) -> None:
        """Look at the workers that have not joined, first every half second, then less often."""
        now = time.monotonic()
        if now - self._looked >= max(_LOOK_SECONDS, (now - self._start) / 20):
            self._looked = now
            self._alone = [p for p in self._alone if not _listens(p.pid, p.worker.port)]

    def overdue(self) -> list[int]:
        """Return the workers that have not joined in time, once."""
        if self._told or time.monotonic() - self._start < self.seconds:
            return []
        self._told = True
        return self.alone

    @property
    def alone(self) -> list[int]:
        """Indices of the workers that were never seen to join."""
        return [process.worker.index for process in self._alone]


def _listens(pid, port):
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.Error:
        return False
    for member in family:
        try:
            connections = member.net_connections("tcp")
        except psutil.Error:
            continue
        listening = (c for c in connections if c.status == psutil.CONN_LISTEN)
        if any(c.laddr and c.laddr.port == port for c in listening):
            return True
    return False
