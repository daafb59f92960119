"""The batch script for Slurm, run by bash with replacements for srun and scontrol."""

import shlex
import subprocess

import pytest
from launching import in_path

from keras_efficient.distribute.launcher import slurm
from keras_efficient.distribute.launcher.job import Job


def job(**options):
    return Job(program=("train.py", "--name", "it's"), python="python", **options)


def options(text):
    lines = [line.removeprefix("#SBATCH --") for line in text.splitlines() if "#SBATCH" in line]
    return dict(line.partition("=")[::2] for line in lines)


def test_the_options():
    text = slurm.sbatch_script(
        job(gpus_per_worker=2, threads_per_worker=8), 4, 2, "1-00:00:00", "gpu,big"
    )
    assert options(text) == {
        "job-name": "train.py",
        "nodes": "4",
        "ntasks-per-node": "2",
        "cpus-per-task": "8",
        "gpus-per-task": "2",
        "time": "1-00:00:00",
        "partition": "gpu,big",
        "signal": "TERM@120",
        "open-mode": "append",
        "requeue": "",
    }
    (line,) = [line for line in text.splitlines() if line.startswith("srun")]
    words = shlex.split(line)
    assert "--kill-on-bad-exit=1" in words and "--label" in words
    assert words[-5:] == ["python", "-u", "train.py", "--name", "it's"]
    assert "export OMP_NUM_THREADS=8" in text


def test_what_is_not_asked_for_is_slurms_choice():
    found = options(slurm.sbatch_script(job(), 1))
    assert set(found) & {"time", "partition", "cpus-per-task", "gpus-per-task"} == set()


def test_the_job_is_named_after_the_program():
    for program, name in [
        (("a/b/train it.py", "--x"), "train_it.py"),
        (("-m", "pkg.it", "--x"), "pkg.it"),
    ]:
        assert options(slurm.sbatch_script(Job(program=program), 1))["job-name"] == name


@pytest.mark.parametrize("restarts", [None, 0, 3])
def test_bash_reads_it(tmp_path, restarts):
    (tmp_path / "job.sh").write_text(slurm.sbatch_script(job(max_restarts=restarts), 2))
    subprocess.run(["bash", "-n", tmp_path / "job.sh"], check=True)


def run(folder, monkeypatch, srun, *, restarts=None, before=0, shortest=0):
    """Run the script with a false srun; returns its exit code, what scontrol got, and stderr."""
    monkeypatch.setattr(slurm, "_SHORTEST_SECONDS", shortest)
    in_path(folder, monkeypatch, srun=srun, scontrol=f'echo "$*" >> "{folder}/scontrol.log"')
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(before))
    (folder / "job.sh").write_text(slurm.sbatch_script(job(max_restarts=restarts), 2))
    done = subprocess.run(
        ["bash", folder / "job.sh"], capture_output=True, text=True, timeout=60, check=False
    )
    log = folder / "scontrol.log"
    return done.returncode, log.read_text().split("\n")[:-1] if log.exists() else [], done.stderr


def test_workers_that_saved_are_queued_again(tmp_path, monkeypatch):
    assert run(tmp_path, monkeypatch, "exit 143", before=99)[:2] == (143, ["requeue 42"])


@pytest.mark.parametrize("code", [0, 1, 2, 137])
def test_workers_that_did_not_are_not(tmp_path, monkeypatch, code):
    assert run(tmp_path, monkeypatch, f"exit {code}") == (code, [], "")


def test_no_more_often_than_allowed(tmp_path, monkeypatch):
    found = run(tmp_path, monkeypatch, "exit 143", restarts=2, before=1)
    assert found[:2] == (143, ["requeue 42"])
    (tmp_path / "scontrol.log").unlink()
    code, requeued, message = run(tmp_path, monkeypatch, "exit 143", restarts=2, before=2)
    assert (code, requeued) == (143, [])
    assert "Not queued again: the limit of --max-restarts, 2, is reached." in message
    assert run(tmp_path, monkeypatch, "exit 143", restarts=0)[1] == []


def test_a_job_that_ends_at_once_is_not_queued_again(tmp_path, monkeypatch):
    code, requeued, message = run(tmp_path, monkeypatch, "exit 143", shortest=600)
    assert (code, requeued) == (143, [])
    assert "the job ended within 600 s" in message


def test_a_cancelled_job_is_not_queued_again(tmp_path, monkeypatch):
    """`scancel` tells the script too; its parent is the batch shell."""
    assert run(tmp_path, monkeypatch, "kill -TERM $PPID; exit 143")[:2] == (143, [])


def test_the_workers_know_how_often_they_were_queued(tmp_path, monkeypatch):
    srun = f'echo "$KERAS_EFFICIENT_RESTART" > "{tmp_path}/restart"'
    assert run(tmp_path, monkeypatch, srun, before=3)[0] == 0
    assert (tmp_path / "restart").read_text() == "3\n"
