"""Workers that are killed: the job restarts, and ends as if it had not been interrupted."""

import itertools
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import forked_python
import numpy as np
import pytest
from launching import LAUNCHER, MAIN

SCRIPT = Path(__file__).with_name("resumable.py")
#: Steps of an epoch, epochs.
STEPS, EPOCHS = 12, 3
#: (signal, worker): how often it is sent in the long form.
KILLS = {
    (signal.SIGKILL, 1): 20,
    (signal.SIGKILL, 0): 20,
    (signal.SIGTERM, 1): 5,
    (signal.SIGTERM, 0): 5,
}


def launch(library, folder, pause=0.0, restarts=0):
    command = [*forked_python.command(*LAUNCHER), *MAIN]
    command += [
        "--python",
        forked_python.program(*forked_python.TRAINING),
        "--workers",
        "2",
        "--threads-per-worker",
        "1",
        "--max-restarts",
        str(restarts),
    ]
    return subprocess.Popen(
        [*command, str(SCRIPT), library, str(folder), str(pause)],
        stdout=open(folder / "out", "w"),
        stderr=subprocess.STDOUT,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
    )


def losses_of(folder, worker):
    path = folder / f"losses-{worker}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def finish(job, folder, timeout=600):
    try:
        code = job.wait(timeout)
    except subprocess.TimeoutExpired:
        job.send_signal(signal.SIGTERM)
        raise
    assert code == 0, (folder / "out").read_text()[-5000:]


def kill(job, folder, how, whom, rng):
    """Wait for a random moment of the current attempt, and send a signal to a worker."""
    seen, aim = len(losses_of(folder, whom)), rng.randint(1, STEPS - 2)
    deadline = time.monotonic() + 600
    while len(losses_of(folder, whom)) < seen + aim:
        if job.poll() is not None or time.monotonic() > deadline:
            pytest.fail((folder / "out").read_text()[-5000:])
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.1))
    os.kill(int((folder / f"pid-{whom}").read_text()), how)


@pytest.fixture(scope="module", params=["keras", pytest.param("tf_keras", marks=pytest.mark.full)])
def undisturbed(request, tmp_path_factory):
    """An uninterrupted run: (library, loss of each update, weights, history)."""
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(launch(request.param, folder), folder)
    losses = {line["updates"]: line["loss"] for line in losses_of(folder, 0)}
    assert sorted(losses) == list(range(1, STEPS * EPOCHS + 1))
    weights = list(np.load(folder / "end.npz").values())
    return request.param, losses, weights, json.loads((folder / "history.json").read_text())


def check(undisturbed, folder):
    _, losses, weights, history = undisturbed
    for worker in (0, 1):
        for line in losses_of(folder, worker):
            assert line["loss"] == pytest.approx(losses[line["updates"]], abs=1e-6), line
    # All attempts together made every update. Only updates after the last save were repeated.
    done = [line["updates"] for line in losses_of(folder, 0)]
    assert set(done) == set(losses)
    again = [last - following for last, following in itertools.pairwise(done)]
    assert all(step == -1 or step < 5 for step in again)
    for weight, expected in zip(np.load(folder / "end.npz").values(), weights, strict=True):
        np.testing.assert_allclose(weight, expected, rtol=0, atol=1e-6)
    ends = json.loads((folder / "history.json").read_text())
    assert ends.keys() == history.keys()
    for name, values in history.items():
        np.testing.assert_allclose(ends[name], values, rtol=0, atol=1e-6, err_msg=name)


def survive(undisturbed, folder, kills, rng):
    """Run a job, kill workers, and check that it ends as the uninterrupted run did."""
    folder.mkdir()
    job = launch(undisturbed[0], folder, pause=0.1, restarts=len(kills))
    for how, whom in kills:
        kill(job, folder, how, whom, rng)
        wait_for_restart(job, folder)
    finish(job, folder)
    check(undisturbed, folder)
    if signal.SIGTERM in dict(kills):
        # All workers saved at the same step and exited with 143.
        assert "143" in (folder / "out").read_text()


@pytest.mark.slow
@pytest.mark.full
def test_a_job_whose_workers_are_killed_ends_as_if_nothing_had_been(undisturbed, tmp_path):
    # test_workers_processes.py sends SIGTERM; the long form sends both, to both workers.
    kills = [(signal.SIGKILL, 0)]
    survive(undisturbed, tmp_path / "job", kills, random.Random(0))


@pytest.mark.full
@pytest.mark.parametrize(("how", "whom"), KILLS, ids=lambda value: str(int(value)))
def test_the_long_form(undisturbed, tmp_path, how, whom):
    rng = random.Random(int(how) + whom)
    # Four kills fit into a job of 36 steps.
    for number in range(0, KILLS[how, whom], 4):
        kills = [(how, whom)] * min(4, KILLS[how, whom] - number)
        survive(undisturbed, tmp_path / str(number), kills, rng)


def wait_for_restart(job, folder):
    """Wait until the launcher reports a restart."""
    said = (folder / "out").read_text().count("restart ")
    deadline = time.monotonic() + 600
    while (folder / "out").read_text().count("restart ") <= said:
        if job.poll() is not None or time.monotonic() > deadline:
            pytest.fail((folder / "out").read_text()[-5000:])
        time.sleep(0.1)
