"""Processes that are killed at any moment, and started again."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "resumed_script.py"
STEPS = 4 * 23

long = pytest.mark.skipif(
    "KERAS_EFFICIENT_LONG" not in os.environ,
    reason="takes minutes: set KERAS_EFFICIENT_LONG=1",
)


def start(library, folder, log):
    command = [sys.executable, str(SCRIPT), library, str(folder), str(log)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def lines(log):
    return log.read_text().splitlines() if log.exists() else []


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What uninterrupted runs print and log."""
    found = {}

    def of(library):
        if library not in found:
            folder = tmp_path_factory.mktemp(library)
            run = start(library, folder / "a", folder / "log")
            out, err = run.communicate(timeout=300)
            assert run.returncode == 0, err[-2000:]
            found[library] = out.splitlines()[-1], lines(folder / "log")
            assert len(found[library][1]) == STEPS
        return found[library]

    return of


def check(library, how, times, seed, whole, tmp_path):
    """Kill a run so many times, each after some more steps, and let it end."""
    result, expected = whole(library)
    chance, folder, log = random.Random(seed), tmp_path / "a", tmp_path / "log"
    for _ in range(times):
        run = start(library, folder, log)
        goal = len(lines(log)) + chance.randint(1, STEPS // times)
        while len(lines(log)) < goal and run.poll() is None:
            time.sleep(0.001)
        # Between two steps, or within one, or within a save.
        time.sleep(chance.random() * 0.02)
        run.send_signal(how)
        _, err = run.communicate(timeout=300)
        assert run.returncode in ((0, 143) if how == signal.SIGTERM else (0, -how)), err[-2000:]
        assert set(lines(log)) <= set(expected)
    done = len(lines(log))
    run = start(library, folder, log)
    out, err = run.communicate(timeout=300)
    assert run.returncode == 0, err[-2000:]
    assert out.splitlines()[-1] == result
    # Every step is that of the uninterrupted run.
    assert set(lines(log)) == set(expected)
    if how == signal.SIGTERM:
        # And none is done twice.
        assert lines(log) == expected
    else:
        # (It goes back by `every_steps` at most, and the one that was killed.)
        assert len(lines(log)) <= STEPS + 4 * times, done


def test_killed(whole, tmp_path):
    check("keras", signal.SIGKILL, 2, 1, whole, tmp_path)


def test_terminated(whole, tmp_path):
    check("keras", signal.SIGTERM, 2, 2, whole, tmp_path)


@long
@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_killed_many_times(library, whole, tmp_path):
    check(library, signal.SIGKILL, 20, 3, whole, tmp_path)


@long
@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_terminated_many_times(library, whole, tmp_path):
    check(library, signal.SIGTERM, 10, 4, whole, tmp_path)
