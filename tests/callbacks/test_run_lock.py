"""The lock of a run's folder: one process at a time, also after kills and on other machines."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from keras_efficient._errors import InputError
from keras_efficient.checkpoint import _run_lock as run_lock
from keras_efficient.checkpoint._run_lock import LOCK, RunLock

pytestmark = pytest.mark.filterwarnings("error::UserWarning")
ROOT = Path(run_lock.__file__).parents[2]
HOLDER = """
import sys, pathlib
from keras_efficient.checkpoint import _run_lock
_run_lock._WAIT_SECONDS = 0
lock = _run_lock.RunLock(pathlib.Path(sys.argv[1]), "first")
try:
    lock.acquire()
    print("got", flush=True)
except ValueError:
    print("refused", flush=True)
sys.stdin.read()
"""


def holder(folder):
    """Start a process that takes the lock, and gives it back when its input ends."""
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLDER, str(folder)]
    return subprocess.Popen(command, **streams, env=environment)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(run_lock, "_WAIT_SECONDS", 0.2)
    monkeypatch.setattr(run_lock, "_POLL_SECONDS", 0.05)


def is_taken(folder):
    """Take the lock as another run and give it back, or return False."""
    lock = RunLock(folder, "second")
    try:
        lock.acquire()
    except InputError:
        return False
    lock.release()
    return True


def foreign(folder, age=0.0, **owner):
    """Write the lock of a process on another machine, updated `age` seconds ago."""
    folder.mkdir(exist_ok=True)
    owner = {"machine": ["elsewhere", "boot", "pid"], "pid": os.getpid(), "run": "first"} | owner
    (folder / LOCK).write_text(json.dumps(owner))
    os.utime(folder / LOCK, (time.time() - age,) * 2)


def test_a_second_process_waits_for_the_first_and_is_then_refused(tmp_path, monkeypatch, capsys):
    first = holder(tmp_path / "a")
    assert first.stdout.readline() == "got\n"
    lock = RunLock(tmp_path / "a", "second")
    with pytest.raises(InputError, match=rf"one process at a time. .* process {first.pid} on"):
        lock.acquire()
    assert f"Waiting up to 0.2 s for process {first.pid}" in capsys.readouterr().out
    monkeypatch.setattr(run_lock, "_WAIT_SECONDS", 60)
    first.stdin.close()
    lock.acquire()
    lock.release()
    assert first.wait() == 0
    # A folder without saves does not stay.
    assert not list(tmp_path.iterdir())


def test_the_lock_of_a_killed_process_is_taken_over_at_once(tmp_path):
    first = holder(tmp_path / "a")
    assert first.stdout.readline() == "got\n"
    first.send_signal(signal.SIGKILL)
    # Also while nobody has waited for the killed process.
    os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)
    assert is_taken(tmp_path / "a")
    first.wait()


def test_another_machines_lock_is_stale_when_it_is_no_longer_updated(tmp_path):
    """With the same process number here, and whatever that machine's clock says."""
    foreign(tmp_path / "a", age=20)
    assert not is_taken(tmp_path / "a")
    foreign(tmp_path / "a", age=61)
    assert is_taken(tmp_path / "a")
    foreign(tmp_path / "a", age=-3600)
    assert not is_taken(tmp_path / "a")


def test_the_last_owner_removes_a_folder_that_was_created_for_a_lock(tmp_path):
    """The first owner cannot remove it when a waiting process has just taken the lock."""
    foreign(tmp_path / "a", age=61, created_folder=True)
    assert is_taken(tmp_path / "a")
    assert not list(tmp_path.iterdir())
    foreign(tmp_path / "a", age=61, created_folder=False)
    assert is_taken(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_number_of_a_process_that_is_used_again(tmp_path):
    own = run_lock._identity()
    foreign(tmp_path / "a", **{**own, "pid": os.getppid(), "started": own["started"] - 1e6})
    assert is_taken(tmp_path / "a")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"machine": null}', '{"machine": []}'])
def test_a_lock_that_cannot_be_read_counts_until_it_is_stale(text, tmp_path):
    """An owner that has created the file has not written it yet."""
    (tmp_path / LOCK).write_text(text)
    assert not is_taken(tmp_path)
    os.utime(tmp_path / LOCK, (time.time() - 61,) * 2)
    assert is_taken(tmp_path)


def test_an_owner_keeps_its_lock_fresh(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "_HEARTBEAT_SECONDS", 0.01)
    lock = RunLock(tmp_path, "first")
    lock.acquire()
    os.utime(tmp_path / LOCK, (0, 0))
    deadline = time.monotonic() + 60
    while (tmp_path / LOCK).stat().st_mtime == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert time.time() - (tmp_path / LOCK).stat().st_mtime < 60
    lock.release()
    assert not list(tmp_path.iterdir())


def test_an_owner_that_lost_its_lock_saves_nothing_more(tmp_path):
    lock = RunLock(tmp_path, "first")
    lock.acquire()
    lock.check()
    (tmp_path / LOCK).unlink()
    foreign(tmp_path)
    with pytest.raises(InputError, match=r"process \d+ on elsewhere .* took over because"):
        lock.check()
    lock.release()
    assert (tmp_path / LOCK).exists()


def test_only_one_of_many_takes_over_a_stale_lock(tmp_path):
    foreign(tmp_path, age=61)
    many = [holder(tmp_path) for _ in range(6)]
    assert sorted(p.stdout.readline() for p in many) == ["got\n"] + ["refused\n"] * 5
    for process in many:
        process.stdin.close()
        process.wait()
    assert not list(tmp_path.iterdir())


def test_a_forked_child_does_not_give_back_its_parents_lock(tmp_path):
    lock = RunLock(tmp_path, "first")
    lock.acquire()
    pid = os.fork()
    if pid == 0:
        lock.release()
        os._exit(0)
    os.waitpid(pid, 0)
    lock.check()
    lock.release()


def test_a_later_fit_of_the_process_takes_the_lock_of_one_that_failed(tmp_path):
    failed = RunLock(tmp_path, "first")
    failed.acquire()
    assert is_taken(tmp_path)
    # Closed, so that the disk can be unmounted.
    assert failed._descriptor is None


def test_a_file_system_without_locks_gives_a_warning(tmp_path, monkeypatch):
    real = os.open

    def refused(path, *args, **kwargs):
        if Path(path).name == LOCK:
            raise OSError(95, "Operation not supported")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refused)
    lock = RunLock(tmp_path, "first")
    with pytest.warns(UserWarning, match="could not be created: .* not supported"):
        lock.acquire()
    lock.check()
    lock.release()
