"""Processes that check an export end soon after the one that started them, even if it is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import keras_efficient as ke

ROOT = Path(ke.__file__).parents[1]
PARENT = """
import sys, pathlib
from keras_efficient.runtime._run_script import run_script
run_script(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
"""
CHILD = """
import os, pathlib, sys, time
sys.path.append({root!r})
from keras_efficient.runtime._bare_process import end_with_parent
folder = pathlib.Path(sys.argv[1])
time.sleep({late})
end_with_parent(folder, 0.05)
(folder / "pid.partial").write_text(str(os.getpid()))
(folder / "pid.partial").rename(folder / "pid")
time.sleep(300)
"""


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return value


def child_of(process):
    return next(iter(psutil.Process(process.pid).children()), None)


@pytest.mark.parametrize("late", [False, True])
def test_the_checker_of_a_killed_export_ends_and_removes_its_files(late, tmp_path):
    """Also if the export is killed before its checker has begun to watch it."""
    (tmp_path / "child.py").write_text(CHILD.format(root=str(ROOT), late=int(late)))
    folder = tmp_path / "exchange"
    folder.mkdir()
    command = [sys.executable, "-c", PARENT, str(tmp_path / "child.py"), str(folder)]
    parent = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    if late:
        child = wait_for(lambda: child_of(parent))
    else:
        assert wait_for((folder / "pid").exists)
        child = psutil.Process(int((folder / "pid").read_text()))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    gone = lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE  # noqa: E731
    assert wait_for(gone)
    # Landlock lets the process remove what is in its folder, but not the folder, from another.
    assert not folder.exists() or not any(folder.iterdir())


@pytest.mark.parametrize("script", ["exporters/_verify", "runtime/_runner", "serving/_predict"])
def test_every_script_that_runs_models_watches_its_parent(script):
    text = (ROOT / f"keras_efficient/{script}_script.py").read_text()
    assert "\n    end_with_parent(" in text
