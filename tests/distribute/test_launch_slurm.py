"""The batch script for Slurm, run by bash with replacements for srun and scontrol."""

import re
import shlex
import subprocess
import time

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
        "gpus-per-node": "4",
        "time": "1-00:00:00",
        "partition": "gpu,big",
        "signal": "TERM@120",
        "open-mode": "append",
        "requeue": "",
    }
    (line,) = re.findall(r"^srun [^\n]*\\\n[^\n]*", text, re.M)
    words = shlex.split(line)
    assert "--kill-on-bad-exit=1" in words and "--label" in words
    assert words[-5:] == ["python", "-u", "train.py", "--name", "it's"]
    assert "export OMP_NUM_THREADS=8" in text


def test_what_is_not_asked_for_is_slurms_choice():
    found = options(slurm.sbatch_script(job(), 1))
    assert set(found) & {"time", "partition", "cpus-per-task", "gpus-per-node"} == set()


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


def run(folder, monkeypatch, srun, *, restarts=None, before=0, shortest=0, tasks=1, **options):
    """Run the script with a false srun; returns its exit code, what scontrol got, and stderr."""
    monkeypatch.setattr(slurm, "_SHORTEST_SECONDS", shortest)
    monkeypatch.setattr(slurm, "_SAVING_SECONDS", 1)
    in_path(folder, monkeypatch, srun=srun, scontrol=f'echo "$*" >> "{folder}/scontrol.log"')
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(before))
    text = slurm.sbatch_script(job(max_restarts=restarts, **options), 2, tasks)
    (folder / "job.sh").write_text(text)
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


def test_the_step_always_states_its_cpus(tmp_path, monkeypatch):
    """Since Slurm 22.05 it does not inherit them, and had one CPU."""
    srun = f'for word; do case "$word" in --cpus*) echo "$word" >> "{tmp_path}/cpus";; esac; done'
    for cpus_per_task, on_node, tasks, expected in [
        ("8", "16", 2, 8),  # given, here or to sbatch
        (None, "16", 2, 8),  # what the job has
        (None, "16", 1, 16),
        (None, None, 2, 1),
    ]:
        variables = {"SLURM_CPUS_PER_TASK": cpus_per_task, "SLURM_CPUS_ON_NODE": on_node}
        for name, value in variables.items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        (tmp_path / "cpus").unlink(missing_ok=True)
        assert run(tmp_path, monkeypatch, srun, tasks=tasks)[0] == 0
        assert (tmp_path / "cpus").read_text() == f"--cpus-per-task={expected}\n"


#: Starts two tasks of one machine; the first that fails ends the other, as --kill-on-bad-exit does.
TWO_TASKS = """
set -m
while [ "$1" != bash ]; do shift; done
SLURM_LOCALID=0 "$@" & first=$!
SLURM_LOCALID=1 "$@" & second=$!
wait -n; code=$?
[ "$code" -eq 0 ] || kill -KILL -- "-$first" "-$second" 2> /dev/null
wait
exit "$code"
"""


def run_two(folder, monkeypatch, body, **options):
    """Run the script with two tasks of a false python."""
    in_path(folder, monkeypatch, python=body)
    (folder / "two tasks").write_text(TWO_TASKS)
    srun = f'exec bash "{folder}/two tasks" "$@"'
    return run(folder, monkeypatch, srun, tasks=2, **options)


def test_the_others_have_time_to_save_after_the_first_exits_with_143(tmp_path, monkeypatch):
    """`--kill-on-bad-exit` ended the chief while it wrote."""
    body = f'[ "$SLURM_LOCALID" = 0 ] && sleep 0.5 && touch "{tmp_path}/saved"\nexit 143'
    assert run_two(tmp_path, monkeypatch, body)[:2] == (143, ["requeue 42"])
    assert (tmp_path / "saved").exists()


def test_a_failure_ends_the_others_at_once(tmp_path, monkeypatch):
    body = (
        f'[ "$SLURM_LOCALID" = 1 ] && exit 3\nsleep 0.5; touch "{tmp_path}/went on"; exec sleep 9'
    )
    begun = time.monotonic()
    assert run_two(tmp_path, monkeypatch, body)[:2] == (3, [])
    assert time.monotonic() - begun < 5


def test_a_worker_that_is_warned_saves(tmp_path, monkeypatch):
    """The signal reaches the shell around the worker too, which must not end before it."""
    body = f"""trap 'touch "{tmp_path}/saved $SLURM_LOCALID"; exit 143' TERM
kill -TERM $PPID; kill -TERM $$
sleep 5"""
    assert run_two(tmp_path, monkeypatch, body)[:2] == (143, ["requeue 42"])
    assert {path.name for path in tmp_path.glob("saved *")} == {"saved 0", "saved 1"}


def test_gpus_are_not_bound_to_tasks(tmp_path, monkeypatch):
    """Bound tasks cannot see each other's GPUs, which slows NCCL down."""
    text = slurm.sbatch_script(job(gpus_per_worker=2), 4, 2)
    assert "--gpu-bind=none" in text and "gpus-per-task" not in text
    assert "gpu" not in slurm.sbatch_script(job(), 4, 2)
    # One worker on a machine sees all of the job's GPUs.
    assert "CUDA_VISIBLE_DEVICES" not in slurm.sbatch_script(job(gpus_per_worker=2), 4, 1)
    body = f'echo "$CUDA_VISIBLE_DEVICES" > "{tmp_path}/$SLURM_LOCALID"'
    for visible, expected in [
        ("0,1,2,3", ["0,1", "2,3"]),
        ("4,5,6,7", ["4,5", "6,7"]),
        ("GPU-a,GPU-b,GPU-c,GPU-d", ["GPU-a,GPU-b", "GPU-c,GPU-d"]),
        (None, ["0,1", "2,3"]),
    ]:
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert run_two(tmp_path, monkeypatch, body, gpus_per_worker=2)[0] == 0
        found = [(tmp_path / str(index)).read_text().strip() for index in range(2)]
        assert found == expected
