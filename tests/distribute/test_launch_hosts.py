"""Workers on several machines, with a fake ssh that runs the commands on this machine."""

import json
import os
import signal
import socket

import pytest
from launching import alive, finish, in_path, launch, pids, script, start, until

from keras_efficient.distribute.launcher.addresses import is_this_machine, parse_hosts

#: Records the destination, and runs the command here with sh.
SSH = """for last; do host=$command; command=$last; done
echo "$host" >> "{folder}/reached"
cd /
exec sh -c "$command"
"""
HERE = socket.gethostname()
SHOW = """
print(json.dumps([os.environ["TF_CONFIG"], sys.argv[1:], os.getcwd(), restart]))
print("error", file=sys.stderr)
"""


@pytest.fixture
def ssh(tmp_path, monkeypatch):
    in_path(tmp_path, monkeypatch, ssh=SSH.format(folder=tmp_path))
    return tmp_path


def test_other_machines_are_reached_by_ssh_and_this_one_is_not(ssh):
    words = ("it's", "--hosts", "$HOME", "a b", "*")
    addresses = [f"{HERE}:4001", "me@other-machine:4002"]
    ended = launch("--hosts", ",".join(addresses), script(ssh, SHOW), *words)
    assert ended.code == 0, ended
    assert (ssh / "reached").read_text() == "me@other-machine\n"
    for index in range(2):
        config, arguments, folder, restart = json.loads(ended.lines(index)[0])
        assert json.loads(config) == {
            "cluster": {"worker": [f"{HERE}:4001", "other-machine:4002"]},
            "task": {"type": "worker", "index": index},
        }
        assert arguments == list(words)
        assert (folder, restart) == (os.getcwd(), 0)
        assert ended.lines(index, "err") == ["error"]


def test_gpus_are_shared_out_on_each_machine(ssh):
    hosts = "a-machine:1,b-machine:1,a-machine:2"
    path = script(ssh, "print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['OMP_NUM_THREADS'])")
    options = ("--gpus-per-worker", 1, "--threads-per-worker", 2)
    ended = launch("--hosts", hosts, *options, path)
    assert [ended.lines(index) for index in range(3)] == [["0 2"], ["0 2"], ["1 2"]]
    assert "not pinned to cores: the workers are on several machines" in ended.err


def test_a_failure_there_has_its_exit_code_and_its_words(ssh):
    body = "meet()\nif task: raise ValueError('over there')\ntime.sleep(600)"
    ended = launch("--hosts", f"{HERE}:1,other-machine:1", script(ssh, body))
    assert ended.code == 1
    assert ended.err.splitlines()[-1] == "ValueError: over there"
    assert not any(alive(pid) for pid in pids(ssh))


def test_a_machine_that_cannot_be_reached(tmp_path, monkeypatch):
    in_path(tmp_path, monkeypatch, ssh="echo 'ssh: connect to host x: refused' >&2; exit 255")
    path = script(tmp_path, "time.sleep(600)")
    ended = launch("--hosts", f"{HERE}:1,other-machine:1", path)
    assert ended.code == 255
    assert "worker 1 failed first: it exited with 255" in ended.err
    assert ended.err.splitlines()[-1] == "ssh: connect to host x: refused"


def test_a_worker_there_saves_when_told_to_stop(ssh):
    body = """
def save(*_):
    print("saved")
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
ready()
time.sleep(600)
"""
    with start("--hosts", "a-machine:1,b-machine:1", script(ssh, body)) as process:
        running = pids(ssh)
        process.send_signal(signal.SIGTERM)
        ended = finish(process)
    assert ended.code == 143
    assert ended.lines(0) == ended.lines(1) == ["saved"]
    assert "worker 0 exited with 143 (SIGTERM) when stopped" in ended.err
    assert not any(map(alive, running))


STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nready()\ntime.sleep(600)"


def test_a_worker_there_that_ignores_sigterm_is_killed(ssh):
    options = ("--hosts", "a-machine:1", "--grace", 0.5)
    with start(*options, script(ssh, STUBBORN)) as process:
        (running,) = pids(ssh, 1)
        process.send_signal(signal.SIGTERM)
        ended = finish(process)
    assert ended.code == 143
    assert "worker 0 exited with 137 (SIGKILL) when stopped" in ended.err
    assert not alive(running)


def test_a_launcher_that_is_killed_leaves_nobody_behind_there(ssh):
    options = ("--hosts", "a-machine:1", "--grace", 1)
    with start(*options, script(ssh, STUBBORN)) as process:
        (running,) = pids(ssh, 1)
        process.kill()
        process.wait()
        until(lambda: not alive(running), "the worker over there stayed behind")


def test_a_dry_run_shows_what_ssh_would_do(ssh):
    ended = launch("--hosts", "other-machine:7", "--dry-run", "not-here.py")
    assert "worker 0 on other-machine" in ended.out and "ssh -T -o BatchMode=yes" in ended.out
    assert not (ssh / "reached").exists()


def test_another_interpreter(ssh):
    (ssh / "my python").write_text('#!/bin/sh\necho "mine: $2"\n')
    (ssh / "my python").chmod(0o755)
    ended = launch("--hosts", "other-machine:7", "--python", ssh / "my python", "not-here.py")
    assert ended.lines(0) == ["mine: not-here.py"]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.0.1.1", "::1", HERE])
def test_this_machine(host):
    assert is_this_machine(host)


def test_other_machines():
    # Addresses reserved for documentation, and a name that cannot exist.
    assert not is_this_machine("198.51.100.7")
    assert not is_this_machine("2001:db8::7")
    assert not is_this_machine("nowhere.invalid")


def test_addresses_are_read():
    addresses, hosts = parse_hosts("127.0.0.1:1, localhost:02,[::1]:3")
    assert addresses == ["127.0.0.1:1", "localhost:2", "[::1]:3"]
    assert hosts == [None, None, None]
    assert parse_hosts("me@[2001:db8::7]:5") == (["[2001:db8::7]:5"], ["me@2001:db8::7"])
