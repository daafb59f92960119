"""How a job ends: a worker fails, the launcher is told to stop, or all workers are restarted."""

import re
import signal
import time

import psutil
import pytest
from launching import PATIENCE, alive, finish, launch, pids, script, start, until

from keras_efficient.distribute.launcher import supervisor, worker_group
from keras_efficient.distribute.launcher.addresses import free_addresses
from keras_efficient.distribute.launcher.console import Output
from keras_efficient.distribute.launcher.job import Job
from keras_efficient.distribute.launcher.process import Process
from keras_efficient.distribute.launcher.signals import Signals
from keras_efficient.distribute.launcher.worker import plan

SLEEP = "ready(); time.sleep(600)"
STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN); ready(); time.sleep(600)"
SAVING = """
def save(*_):
    print("saved")
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
ready()
time.sleep(600)
"""


def test_the_first_failure_ends_the_job_and_is_shown_last(tmp_path):
    body = """
meet()
if task == 1:
    # Fail only once worker 0 handles SIGTERM.
    while not (here / "armed").exists():
        time.sleep(0.02)
    raise ValueError("no such column")
def fails_too(*_):
    raise RuntimeError("a worker is unavailable")
signal.signal(signal.SIGTERM, fails_too)
(here / "armed").write_text("")
time.sleep(600)
"""
    ended = launch("--workers", 2, script(tmp_path, body))
    assert ended.code == 1, ended
    assert "worker 1 failed first: it exited with 1 after" in ended.err
    assert "worker 0 exited with 1 when stopped" in ended.err
    last = ended.err[ended.err.rindex("the last output of worker 1:\n") :].splitlines()
    assert last[1] == "Traceback (most recent call last):"
    assert last[-1] == "ValueError: no such column"


def test_the_exit_code_is_that_of_the_first_failure(tmp_path):
    body = "meet()\nif task: sys.exit(7)\ntime.sleep(600)"
    ended = launch("--workers", 2, script(tmp_path, body))
    assert ended.code == 7
    assert ended.err.splitlines()[-1] == "[launch] worker 1 wrote nothing"
    assert not any(alive(pid) for pid in pids(tmp_path))


def test_a_worker_killed_by_a_signal(tmp_path):
    body = "print('line', task); meet()\nif task: os.kill(os.getpid(), 9)\ntime.sleep(600)"
    ended = launch("--workers", 2, script(tmp_path, body))
    assert ended.code == 128 + 9
    assert "worker 1 failed first: it was killed by SIGKILL" in ended.err
    assert ended.err.splitlines()[-1] == "line 1"


def test_a_worker_that_is_done_stops_nobody(tmp_path):
    body = "meet()\nif task:\n    time.sleep(0.5)\n    print('later')"
    ended = launch("--workers", 2, script(tmp_path, body))
    assert (ended.code, ended.lines(1)) == (0, ["later"])
    assert "stopping" not in ended.err


def test_a_worker_that_ignores_sigterm_is_killed_after_the_grace(tmp_path):
    body = STUBBORN.replace("time.sleep(600)", "meet()\nif task: sys.exit(5)\ntime.sleep(600)")
    ended = launch("--workers", 2, "--grace", 0.5, script(tmp_path, body))
    assert ended.code == 5
    assert "killing worker 0" in ended.err
    assert "worker 0 was killed by SIGKILL when stopped" in ended.err


def test_children_of_a_worker_end_with_it(tmp_path):
    body = """
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
(here / "child").write_text(str(child.pid))
meet()
sys.exit(3 if task else 0)
"""
    ended = launch("--workers", 2, script(tmp_path, body))
    assert ended.code == 3
    child = int((tmp_path / "child").read_text())
    until(lambda: not alive(child), "a worker's child stayed behind")


def test_a_failure_that_is_reported_late_is_not_missed(tmp_path, monkeypatch, capsys):
    """A worker may have ended before the launcher is told its exit code."""

    class Slow(worker_group.queue.SimpleQueue):
        def put(self, process):
            time.sleep(0.5)
            super().put(process)

    monkeypatch.setattr(worker_group.queue, "SimpleQueue", Slow)
    job = Job(program=(str(script(tmp_path, "sys.exit(3 * task)")),))
    assert supervisor.run(job, lambda n: plan(job, free_addresses(2), restart=n)) == 3


# Signals to the launcher.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_lets_the_workers_save_and_ends_the_launcher(tmp_path, number):
    with start("--workers", 2, "--max-restarts", 3, script(tmp_path, SAVING)) as process:
        pids(tmp_path)
        process.send_signal(number)
        ended = finish(process)
    assert ended.code == 128 + number, ended
    assert ended.lines(0) == ended.lines(1) == ["saved"]
    assert "workers 0, 1 may save and stop" in ended.err
    assert "restart" not in ended.err
    assert not any(alive(pid) for pid in pids(tmp_path))


def test_a_signal_names_those_that_still_run(tmp_path):
    body = f"if task:\n    {SLEEP}\nready()"
    with start("--workers", 2, script(tmp_path, body)) as process:
        first, _ = pids(tmp_path)
        until(lambda: not psutil.pid_exists(first), "the launcher does not see that it ended")
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        ended = finish(process)
    assert ended.code == 130
    assert "worker 1 may save and stop" in ended.err
    assert "worker 0 finished" in ended.err
    assert "worker 1 was killed by SIGTERM when stopped" in ended.err


def test_a_second_signal_kills_at_once(tmp_path):
    with start("--workers", 2, "--grace", 600, script(tmp_path, STUBBORN)) as process:
        pids(tmp_path)
        process.send_signal(signal.SIGTERM)
        assert "received SIGTERM" in process.stderr.readline()
        # Signals within a second of the first are not counted.
        time.sleep(1.2)
        process.send_signal(signal.SIGINT)
        ended = finish(process)
    assert ended.code == 143
    assert "worker 0 was killed by SIGKILL when stopped" in ended.err


def test_a_signal_that_comes_twice_at_once_is_one(tmp_path):
    with start("--workers", 2, script(tmp_path, SAVING)) as process:
        pids(tmp_path)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        ended = finish(process)
    assert ended.code in (130, 143)
    assert ended.lines(0) == ended.lines(1) == ["saved"]
    assert "killing" not in ended.err


def test_a_signal_after_a_failure_does_not_hide_it(tmp_path):
    body = f"meet()\nif task: raise ValueError('mine')\n{STUBBORN}"
    options = ("--grace", 600, "--max-restarts", 1)
    with start("--workers", 2, *options, script(tmp_path, body)) as process:
        while "stopping worker 0" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGINT)
        ended = finish(process)
    assert ended.code == 1
    assert "not restarted: received SIGINT" in ended.err
    assert ended.err.splitlines()[-1] == "ValueError: mine"


def test_nohup_is_respected(tmp_path):
    body = "ready()\nwhile not (here / 'go').exists(): time.sleep(0.05)"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = start("--workers", 1, script(tmp_path, body), fresh=True)
    finally:
        signal.signal(signal.SIGHUP, before)
    with process:
        pids(tmp_path, 1)
        process.send_signal(signal.SIGHUP)
        (tmp_path / "go").write_text("")
        assert finish(process).code == 0


def test_a_launcher_that_is_killed_leaves_nobody_behind(tmp_path):
    """Neither the workers nor what they started or forked, as multiprocessing does."""
    body = """
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
forked = os.fork() or time.sleep(600)
(here / f"children{task}").write_text(f"{child.pid} {forked}")
"""
    with start("--workers", 2, script(tmp_path, body + STUBBORN)) as process:
        running = pids(tmp_path)
        for worker in range(2):
            running += map(int, (tmp_path / f"children{worker}").read_text().split())
        process.kill()
        process.wait()
        until(lambda: not any(map(alive, running)), "a process stayed behind")


def test_a_worker_that_ends_takes_its_guard_with_it(tmp_path):
    """The guard kills a process group whose number may be used again later."""
    output = Output(1)
    (worker,) = plan(Job(program=("-c", "")), ["127.0.0.1:1"])
    process = Process(worker, 1.0)
    process.watch(output, worker_group.queue.SimpleQueue())
    process.join()
    assert process.code == 0
    assert process._guard.returncode == -signal.SIGKILL


# Restarts.


def test_all_start_again_after_a_failure(tmp_path):
    body = """
print("attempt", restart, os.environ["TF_CONFIG"])
meet()
if restart == 0:
    if task:
        os.kill(os.getpid(), 9)
    time.sleep(600)
"""
    ended = launch("--workers", 2, "--max-restarts", 2, script(tmp_path, body))
    assert ended.code == 0, ended
    assert "restart 1 of 2, worker 1 was killed by SIGKILL" in ended.err
    first, second = ended.lines(0)
    assert first.startswith("attempt 0") and second.startswith("attempt 1")
    ports = [re.findall(r"127.0.0.1:\d+", line) for line in (first, second)]
    assert ports[0] != ports[1]


def test_a_worker_that_saved_and_left_starts_again(tmp_path):
    path = script(tmp_path, "sys.exit(143 * (restart == 0))")
    ended = launch("--workers", 1, "--max-restarts", 1, path)
    assert ended.code == 0
    assert "restart 1 of 1, worker 0 exited with 143 (SIGTERM)" in ended.err


def test_restarts_come_to_an_end(tmp_path):
    body = "print('error', restart, file=sys.stderr); sys.exit(3)"
    ended = launch("--workers", 1, "--max-restarts", 2, script(tmp_path, body))
    assert ended.code == 3
    assert ended.lines(0, "err") == ["error 0", "error 1", "error 2"]
    assert "no restarts left of 2" in ended.err


def test_bad_input_is_not_tried_again(tmp_path):
    ended = launch("--workers", 1, "--max-restarts", 2, script(tmp_path, "sys.exit(2)"))
    assert ended.code == 2
    assert "not restarted: exit code 2 means bad input" in ended.err
    assert "restart 1" not in ended.err


@pytest.mark.parametrize(("quick", "started"), [(PATIENCE, 2), (0, 4)])
def test_a_crash_loop_is_left(tmp_path, monkeypatch, capsys, quick, started):
    """The same error twice soon after the start is a crash loop; later it may be a coincidence."""
    monkeypatch.setattr(supervisor, "_CRASH_LOOP_SECONDS", quick)
    job = Job(program=(str(script(tmp_path, "raise KeyError('always')")),), max_restarts=3)
    code = supervisor.run(job, lambda n: plan(job, free_addresses(1), restart=n))
    printed = capsys.readouterr().err
    assert code == 1
    assert printed.count("[worker 0] KeyError") == started
    assert ("not restarted: twice in a row the same error within" in printed) == bool(quick)


def test_a_crash_loop_whose_last_line_changes_is_left_too(tmp_path, monkeypatch, capsys):
    """It was started 20 times in a second. Later starts wait longer and longer."""
    waits = []
    monkeypatch.setattr(supervisor, "_wait", lambda seconds, signals: waits.append(seconds))
    monkeypatch.setattr(supervisor, "_CRASH_LOOP_SECONDS", PATIENCE)
    path = script(tmp_path, "raise KeyError(time.time())")
    job = Job(program=(str(path),), max_restarts=20)
    assert supervisor.run(job, lambda n: plan(job, free_addresses(1), restart=n)) == 1
    printed = capsys.readouterr().err
    assert waits == [0.0, 1.0, 2.0, 4.0]
    assert "restart 2 of 20, worker 0 exited with 1; waiting 1 s" in printed
    assert "not restarted: 5 times in a row a failure within" in printed
    # Failures after a while are not a loop, and nobody waits.
    assert [supervisor._seconds_to_wait(n) for n in (0, 1, 2, 7, 99)] == [0, 0, 1, 32, 60]


def test_a_signal_ends_the_wait_before_a_restart():
    signals = Signals()
    signals.received = signal.SIGTERM
    before = time.monotonic()
    supervisor._wait(60.0, signals)
    assert time.monotonic() - before < 30


def test_without_restarts_a_failure_says_no_more(tmp_path):
    ended = launch("--workers", 1, script(tmp_path, "sys.exit(1)"))
    assert "[launch] not restarted\n" in ended.err
