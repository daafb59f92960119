"""Workers that train alone, because their script never joins the cluster."""

import json

import pytest
from launching import launch, script

from keras_efficient.distribute.launcher import join_watch, supervisor, worker_group
from keras_efficient.distribute.launcher.addresses import free_addresses
from keras_efficient.distribute.launcher.job import Job
from keras_efficient.distribute.launcher.worker import plan

ALONE = "meet(); time.sleep(1.2)"
#: As TensorFlow's server does, for all workers or some.
JOIN = """
import socket
def join(child=False):
    address = json.loads(os.environ["TF_CONFIG"])["cluster"]["worker"][task]
    if child and os.fork():
        return os.wait()
    server = socket.create_server(("127.0.0.1", int(address.rpartition(":")[2])))
    time.sleep(1.5)
"""


def run(path, workers=2, **options):
    job = Job(program=(str(path),), **options)
    return supervisor.run(job, lambda n: plan(job, free_addresses(workers), restart=n))


def test_workers_that_never_join_are_named_early_and_at_the_end(tmp_path, monkeypatch, capsys):
    """Two lonely trainings wrote one path, and the exit code was 0."""
    monkeypatch.setattr(worker_group, "NOTICE_SECONDS", 0.5)
    assert run(script(tmp_path, ALONE + "\nprint('end')")) == 0
    printed = capsys.readouterr()
    early = "[launch] workers 0, 1 have not joined the cluster for 0.5 s. If the script never does"
    assert printed.err.count(early) == 1
    assert "workers 0, 1 of 2 never joined the cluster: each trained by itself" in printed.err
    assert "ke.strategy('auto'), and see --join-timeout" in printed.err


@pytest.mark.parametrize("body", ["join()", "join(child=True)"])
def test_workers_that_join_are_not_mentioned(body, tmp_path, monkeypatch, capsys):
    """Also if the script starts the training in another process."""
    monkeypatch.setattr(join_watch, "_LOOK_SECONDS", 0.1)
    assert run(script(tmp_path, f"{JOIN}\n{body}")) == 0
    assert capsys.readouterr().err == ""


def test_the_one_that_does_not_join_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(join_watch, "_LOOK_SECONDS", 0.1)
    assert run(script(tmp_path, f"{JOIN}\nif task == 0: join()")) == 0
    assert "worker 1 of 2 never joined the cluster" in capsys.readouterr().err


def test_a_single_worker_has_nobody_to_join(tmp_path, capsys):
    assert run(script(tmp_path, ""), workers=1) == 0
    assert capsys.readouterr().err == ""


def test_an_option_makes_it_an_error(tmp_path):
    path = script(tmp_path, "meet(); time.sleep(600)")
    ended = launch("--workers", 2, "--join-timeout", 1, path)
    assert ended.code == 2, ended
    assert "1 s, the limit of --join-timeout; stopping all workers" in ended.err
    # Also if the workers end before.
    ended = launch("--workers", 2, "--join-timeout", 60, script(tmp_path, ""))
    assert ended.code == 2 and "workers 0, 1 of 2 never joined" in ended.err


def test_a_failure_is_reported_as_before(tmp_path):
    path = script(tmp_path, "meet(); sys.exit(7 * task)")
    ended = launch("--workers", 2, "--join-timeout", 60, path)
    assert ended.code == 7 and "never joined" not in ended.err


def test_a_timeout_must_be_positive_and_is_for_processes_only(tmp_path):
    path = script(tmp_path, "")
    launch("--workers", 2, "--join-timeout", 0, path).refused("--join-timeout must be at least 1")
    launch("--slurm", "--nodes", 2, "--join-timeout", 9, path).refused(
        "--join-timeout is an option of --workers, --hosts"
    )


def test_the_port_of_a_worker():
    variables = {"TF_CONFIG": json.dumps({"cluster": {"worker": ["a:1", "[::1]:23"]}})}
    from keras_efficient.distribute.launcher.worker import Worker

    assert Worker(1, (), variables).port == 23
