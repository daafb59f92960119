"""Bad input to `launch`: a clear message, exit code 2, and nothing started."""

import socket
import sys

import pytest
from launching import Ended, in_path, launch, script

from keras_efficient.cli import main


@pytest.fixture
def path(tmp_path):
    path = script(tmp_path, "ready()")
    yield path
    assert not list(tmp_path.glob("pid*"))


WAYS = "One of --workers, --hosts, --slurm, --ray and --kubernetes says where to start"
OPTIONS = {
    "no way": ((), [WAYS, "Received: none"]),
    "two ways": (("--slurm", "--hosts", "a:1"), [WAYS, "--hosts and --slurm"]),
    "no worker": (("--workers", "0"), ["--workers must be at least 1", "Received: 0"]),
    "negative restarts": (
        ("--workers", "1", "--max-restarts", "-1"),
        ["--max-restarts must be at least 0", "Received: -1"],
    ),
    "negative grace": (("--workers", "1", "--grace", "-1"), ["--grace must be at least 0"]),
    "grace that is no number": (("--workers", "1", "--grace", "nan"), ["--grace must be at least"]),
    "negative GPUs": (("--workers", "1", "--gpus-per-worker", "-1"), ["--gpus-per-worker must be"]),
    "no thread": (("--workers", "1", "--threads-per-worker", "0"), ["--threads-per-worker must"]),
    "a port too high": (("--workers", "2", "--port", "65535"), ["--port must be from 1 to 65534"]),
    "no such interpreter": (
        ("--workers", "1", "--python", "/no/python"),
        ["--python must be a program that can be run", "'/no/python'"],
    ),
    "hosts without a port": (("--hosts", "a:1,b"), ["must be host:port", "'b' in 'a:1,b'"]),
    "hosts with a bad port": (("--hosts", "a:65536"), ["must be host:port", "'a:65536'"]),
    "hosts that are empty": (("--hosts", ""), ["must be host:port", "''"]),
    "hosts like an option": (("--hosts=-oProxyCommand=x:1",), ["must be host:port"]),
    "a host twice": (("--hosts", "a:1,b:1,a:01"), ["an address of its own", "twice: a:1"]),
    "localhost and others": (
        ("--hosts", "localhost:1,b:1"),
        ["as the others can reach them", "Received: localhost:1"],
    ),
    "hosts and workers": (("--hosts", "a:1", "--workers", "2"), ["--workers is an option of"]),
    "a port for hosts": (("--hosts", "a:1", "--port", "2"), ["--port is an option of --workers"]),
    "nodes here": (("--workers", "1", "--nodes", "2"), ["--nodes is an option of --slurm"]),
    "slurm without nodes": (("--slurm",), ["--slurm needs the number of machines"]),
    "slurm without a node": (("--slurm", "--nodes", "0"), ["--nodes must be at least 1"]),
    "slurm without a task": (
        ("--slurm", "--nodes", "1", "--tasks-per-node", "0"),
        ["--tasks-per-node must be at least 1"],
    ),
    "slurm with a bad time": (
        ("--slurm", "--nodes", "1", "--time", "2h"),
        ["--time must be minutes", "'2h'"],
    ),
    "slurm with a bad partition": (
        ("--slurm", "--nodes", "1", "--partition", "a b"),
        ["--partition must be the name of a partition", "'a b'"],
    ),
    "ray without workers": (("--ray",), ["--ray needs the number of workers"]),
    "kubernetes without workers": (("--kubernetes", "i"), ["--kubernetes needs the number of"]),
    "kubernetes without an image": (
        ("--kubernetes", "", "--workers", "1"),
        ["--kubernetes must be the name of an image", "''"],
    ),
    "kubernetes with a bad name": (
        ("--kubernetes", "i", "--workers", "1", "--name", "Run_1"),
        ["--name must consist of at most 53 lowercase letters, digits and hyphens", "'Run_1'"],
    ),
    "kubernetes with a bad namespace": (
        ("--kubernetes", "i", "--workers", "1", "--namespace", "-"),
        ["--namespace must consist of at most 53 lowercase letters"],
    ),
    "a file in a folder that is not there": (
        ("--slurm", "--nodes", "1", "--write", "/no/such/file"),
        ["--write must name a file that can be written", "'/no/such/file'"],
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(path, name, capsys):
    """In this process; the tests below start the launcher."""
    options, parts = OPTIONS[name]
    with pytest.raises(SystemExit) as stop:
        main(["launch", *options, str(path)])
    Ended(stop.value.code, *capsys.readouterr()).refused(*parts)


def test_no_script():
    launch("--workers", "1", "nowhere.py").refused("The script must exist", "'nowhere.py'")
    assert launch("--workers", "1").code == 2
    launch("--workers", "1", "-m").refused("There must be a program to start")


def test_a_port_that_is_taken(path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        launch("--workers", 1, "--port", port, path).refused("must be free", f"Received: {port}")


def test_fewer_gpus_than_are_asked_for(path):
    ended = launch("--workers", 2, "--gpus-per-worker", 2, path, CUDA_VISIBLE_DEVICES="0,1,2")
    ended.refused("CUDA_VISIBLE_DEVICES must name 4 GPUs or more", "'0,1,2'")


def test_no_ssh(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    launch("--hosts", "b-machine:1", path).refused("ssh, which must be on the PATH", "b-machine")


def test_a_log_folder_that_is_a_file(path):
    ended = launch("--workers", 1, "--log-dir", path, path)
    ended.refused("--log-dir must be a folder that can be written to")


def test_a_log_file_that_is_a_folder(path, tmp_path):
    (tmp_path / "logs/worker-0.attempt-0.log").mkdir(parents=True)
    ended = launch("--workers", 1, "--log-dir", tmp_path / "logs", path)
    ended.refused("--log-dir must be a folder that can be written to", "Is a directory")


def test_a_file_is_written_once_all_is_well(tmp_path, monkeypatch):
    """With valid options the file is written, and nothing is printed."""
    in_path(tmp_path, monkeypatch)
    slurm = launch("--slurm", "--nodes", 2, "--write", tmp_path / "job.sh", "t.py", "--nodes")
    assert (slurm.code, slurm.out) == (0, "")
    assert f"{sys.executable} -u t.py --nodes" in (tmp_path / "job.sh").read_text()
    options = ("--kubernetes", "image", "--workers", 2, "--python", "python3.11")
    assert '"python3.11"' in launch(*options, "t.py").out
