"""Training processes that are killed at any moment, and started again."""

import random
import signal
import subprocess
import time
from pathlib import Path

import forked_python
import pytest

SCRIPT = Path(__file__).parent / "resumed_script.py"
#: Epochs and batches of the script.
STEPS = 3 * 12


def start(library, *paths):
    python = forked_python.command(*forked_python.TRAINING)
    command = [*python, str(SCRIPT), library, *map(str, paths)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def lines(log):
    return log.read_text().splitlines() if log.exists() else []


def check(library, how, times, seed, tmp_path):
    """Kill a run `times` times, each after some more steps, and let it end."""
    chance, folder, log = random.Random(seed), tmp_path / "a", tmp_path / "log"
    codes = (0, 143) if how == signal.SIGTERM else (0, -how)
    for _ in range(times):
        run = start(library, folder, log)
        goal = len(lines(log)) + chance.randint(1, STEPS // times)
        while len(lines(log)) < goal and run.poll() is None:
            time.sleep(0.001)
        # Between two steps, or within one, or within a save.
        time.sleep(chance.random() * 0.02)
        run.send_signal(how)
        _, err = run.communicate(timeout=300)
        assert run.returncode in codes, err[-2000:]
    # The last start also trains the uninterrupted run, in the same process.
    run = start(library, folder, log, tmp_path / "whole")
    out, err = run.communicate(timeout=300)
    assert run.returncode == 0, err[-2000:]
    *_, result, expected_result = out.splitlines()
    assert result == expected_result
    expected = lines(tmp_path / "whole" / "log")
    assert len(expected) == STEPS
    # Every step is that of the uninterrupted run.
    assert set(lines(log)) == set(expected)
    if how == signal.SIGTERM:
        # And none is done twice.
        assert lines(log) == expected
    else:
        # A start goes back by `every_steps` at most, and the step that was killed.
        assert len(lines(log)) <= STEPS + 4 * times


@pytest.mark.parametrize(
    "library, how", [("keras", signal.SIGKILL), ("tf_keras", signal.SIGTERM)], ids=str
)
def test_killed(library, how, tmp_path):
    check(library, how, 1, 1, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_killed_many_times(library, tmp_path):
    check(library, signal.SIGKILL, 20, 3, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_terminated_many_times(library, tmp_path):
    check(library, signal.SIGTERM, 10, 4, tmp_path)
