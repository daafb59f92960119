"""A lock file by which one process at a time owns the folder of a run."""

import atexit
import json
import os
import secrets
import socket
import tempfile
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from keras_efficient._errors import InputError

#: Name of the lock file in the folder.
LOCK = ".lock"
#: Seconds between two updates of the lock's modification time by its owner.
_HEARTBEAT_SECONDS = 10.0
#: A lock that was not updated for so long belongs to a process that has ended.
_STALE_SECONDS = 60.0
#: Seconds to wait for a lock: longer than it takes a dead owner's to become stale.
_WAIT_SECONDS = 90.0
_POLL_SECONDS = 1.0
#: Locks that this process holds, by path. An exception ends `fit` without a call of its callbacks.
_held: dict[Path, "RunLock"] = {}


class RunLock:
    """The right to save in a folder, on local and on shared file systems.

    The lock is a file that is created exclusively, which is atomic on NFS too, unlike `flock`
    there. Its owner updates the modification time every 10 seconds. It is stale, and taken over,
    if its process on this machine has ended, or if it was not updated for a minute by the clock of
    the file system, so that machines need not agree about the time.

    An owner that was suspended for longer than that may lose its lock. `check` says so before it
    writes.

    Args:
        directory: path of the folder, created by `acquire`.
        run: id of the run, for messages.
    """

    def __init__(self, directory: Path, run: str):
        self.path, self.run = directory / LOCK, run
        self._descriptor: int | None = None
        self._ended = threading.Event()
        self._created_folder = False

    def acquire(self):
        """Take the lock, and wait for an owner that is ending.

        Raises:
            InputError: another process keeps it.
        """
        deadline, told = time.monotonic() + _WAIT_SECONDS, False
        self._created_folder = False
        if earlier := _held.get(self.path.resolve()):
            earlier.release()
        try:
            while not self._create():
                owner = self._take_if_stale()
                if owner is None:
                    continue
                if time.monotonic() >= deadline:
                    raise InputError(
                        "A run's folder is used by one process at a time. Received: "
                        f"{str(self.path.parent)!r}, which {owner} is using. Stop that process, "
                        "or give this run a folder of its own."
                    )
                if not told:
                    text = f"Waiting up to {_WAIT_SECONDS:g} s for {owner}, which is using"
                    print(f"{text} {self.path.parent}.", flush=True)
                    told = True
                time.sleep(_POLL_SECONDS)
        except OSError as error:
            warnings.warn(
                f"{str(self.path)!r} could not be created: {error}. The run continues without a "
                "lock, so make sure that no other process uses its folder.",
                stacklevel=3,
            )
            return
        self._process = os.getpid()
        _held[self.path.resolve()] = self
        atexit.register(self.release)
        threading.Thread(target=self._beat, daemon=True, name="ke-run-lock").start()

    def check(self):
        """Refuse to write into a folder that another process has taken over.

        Raises:
            InputError: the lock is no longer this object's.
        """
        if self._descriptor is not None and not self._is_mine():
            raise InputError(
                "A run's folder is used by one process at a time. Received: "
                f"{str(self.path.parent)!r}, which {_read_owner(self.path) or 'another process'} "
                "took over because this one did not respond for a minute or more. Nothing more "
                "was saved: stop one of the two."
            )

    def release(self):
        """Give the lock back, if it is still held."""
        # A forked child runs its parent's exit handlers.
        if self._descriptor is None or os.getpid() != self._process:
            return
        atexit.unregister(self.release)
        _held.pop(self.path.resolve(), None)
        self._ended.set()
        with suppress(OSError):
            if self._is_mine():
                self.path.unlink()
                if self._created_folder:
                    # Only if nothing was saved.
                    self.path.parent.rmdir()
        os.close(self._descriptor)
        self._descriptor = None

    def _create(self):
        """Create the file and return True, or return False if it exists."""
        try:
            with suppress(FileExistsError):
                self.path.parent.mkdir(parents=True)
                self._created_folder = True
            self._descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
        except (FileExistsError, FileNotFoundError):
            # Or its owner gives it back, and removes the folder in which nothing was saved.
            return False
        # On a full disk the lock counts without its text.
        with suppress(OSError):
            owner = {"run": self.run, "created_folder": self._created_folder, **_identity()}
            os.write(self._descriptor, json.dumps(owner).encode())
            os.fsync(self._descriptor)
        return True

    def _take_if_stale(self):
        """Remove a stale lock. Returns a description of its owner if it is not stale."""
        try:
            with open(self.path, "rb") as file:
                # Opening a file asks an NFS server for its present times.
                status, owner = os.fstat(file.fileno()), _parse(file.read())
                # Whoever comes last removes a folder that was created for a lock.
                self._created_folder |= owner.get("created_folder") is True
                if not self._is_stale(owner, status):
                    return _describe(owner)
                aside = self.path.with_name(f"{LOCK}.stale-{secrets.token_hex(4)}")
                os.rename(self.path, aside)
                if not os.path.samestat(os.stat(aside), status):
                    # Another process took the stale lock first, and this is its new one.
                    with suppress(OSError):
                        os.link(aside, self.path)
                aside.unlink()
        except FileNotFoundError:
            # Its owner gave it back.
            pass
        return None

    def _is_stale(self, owner, status):
        own = _identity()
        if owner and owner.get("machine") == own["machine"]:
            if owner.get("pid") == own["pid"]:
                # This process before it replaced its program, with os.execv.
                return True
            return not _is_alive(owner)
        return self._now() - status.st_mtime > _STALE_SECONDS

    def _now(self):
        """Return the present time by the clock of the file system."""
        with suppress(OSError), tempfile.TemporaryFile(dir=self.path.parent) as file:
            return os.fstat(file.fileno()).st_mtime
        return time.time()

    def _is_mine(self):
        assert self._descriptor is not None
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self.path))
        except OSError:
            return False

    def _beat(self):
        while not self._ended.wait(_HEARTBEAT_SECONDS):
            # A descriptor, so that the lock of a process that took over is not touched.
            with suppress(OSError, TypeError):
                os.utime(self._descriptor)  # pyright: ignore[reportArgumentType]


def _identity() -> dict[str, Any]:
    """Return what identifies this process, also in containers that share host names and ids."""
    machine = [socket.gethostname()]
    with suppress(OSError):
        machine.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        machine.append(os.readlink("/proc/self/ns/pid"))
    process = psutil.Process()
    return {"machine": machine, "pid": process.pid, "started": process.create_time()}


def _is_alive(owner: dict[str, Any]) -> bool:
    try:
        process = psutil.Process(owner["pid"])
        started = process.create_time()
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
    except psutil.NoSuchProcess:
        return False
    except (psutil.Error, KeyError, TypeError, ValueError):
        return True
    # Process ids are reused. The clock may have been set meanwhile.
    return abs(started - owner.get("started", started)) < 5


def _read_owner(path: Path) -> str | None:
    try:
        return _describe(_parse(path.read_bytes()))
    except OSError:
        return None


def _parse(text: bytes) -> dict[str, Any]:
    try:
        owner = json.loads(text)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _describe(owner: dict[str, Any]) -> str:
    if not owner:
        return "another process"
    host = (owner.get("machine") or ["an unknown machine"])[0]
    return f"process {owner.get('pid')} on {host} (run {owner.get('run')})"
