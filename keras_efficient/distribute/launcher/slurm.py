"""`sbatch_script`, the batch script that runs a job under Slurm."""

import re
import shlex
from pathlib import PurePosixPath

from keras_efficient._errors import InputError
from keras_efficient.distribute.launcher.job import Job, check_at_least

#: Seconds between the warning and the time limit, enough to finish a step and save.
_WARNING_SECONDS = 120
#: A worker that has saved ends so many seconds later, because the first one to end with another
#: code than 0 ends all the others, which may still be writing.
_SAVING_SECONDS = 30
#: A job that ends within so many seconds is not queued again, since it might do so for ever.
_SHORTEST_SECONDS = 60

_TEXT = """#!/bin/bash
# Written by `keras-efficient launch --slurm`. Submit it with sbatch.
{options}

export PYTHONUNBUFFERED=1
export KERAS_EFFICIENT_RESTART="${{SLURM_RESTART_COUNT:-0}}"
{variables}
# Slurm signals this script itself only when it cancels the job, or takes it off its nodes, after
# which Slurm queues the job again.
cancelled=
trap 'cancelled=1' TERM

# Since Slurm 22.05 a step does not inherit the CPUs per task from its job.
cpus="${{SLURM_CPUS_PER_TASK:-$((${{SLURM_CPUS_ON_NODE:-{tasks}}} / {tasks}))}}"

# 143: the worker was warned, and has saved. The first worker to end this way would end the others,
# so it leaves them time to save.
worker='trap : TERM
{gpus}"$@"
code=$?
[ "$code" -ne 143 ] || sleep {saving}
exit "$code"'

# ke.strategy("auto") reads the workers from Slurm's variables, and expects the block order.
srun --label --kill-on-bad-exit=1 --distribution=block --cpus-per-task="$cpus" {bind}\\
  bash -c "$worker" worker {program}
code=$?

# Workers that have saved continue in the next run of this job.
if [ "$code" -eq 143 ] && [ -z "$cancelled" ]; then
  if [ "$SECONDS" -lt {shortest} ]; then
    echo "Not queued again: the job ended within {shortest} s, and would do so again." >&2
{limit}  else
    scontrol requeue "$SLURM_JOB_ID"
  fi
fi
exit "$code"
"""

#: Each of several workers on a machine takes its share of the machine's GPUs.
_GPUS = """IFS=, read -ra gpus <<< "${CUDA_VISIBLE_DEVICES:-$(seq -s, 0 %(last)d)}"
mine="${gpus[*]:SLURM_LOCALID*%(each)d:%(each)d}"
export CUDA_VISIBLE_DEVICES="${mine// /,}"
"""

_LIMIT = """  elif [ "${{SLURM_RESTART_COUNT:-0}}" -ge {restarts} ]; then
    echo "Not queued again: the limit of --max-restarts, {restarts}, is reached." >&2
"""


def sbatch_script(
    job: Job,
    nodes: int | None,
    tasks_per_node: int = 1,
    time: str | None = None,
    partition: str | None = None,
) -> str:
    """Return the text of a batch script with one task per worker.

    The workers get SIGTERM two minutes before the time limit, and the job is queued again after
    they have saved.

    GPUs are not bound to tasks, because a task that is bound to its GPUs cannot see those of the
    others, so NCCL would copy between them through the host's memory. Several workers on a machine
    choose theirs with CUDA_VISIBLE_DEVICES.

    Args:
        job: `Job`. Its `max_restarts` may be None for no limit.
        nodes: number of machines.
        tasks_per_node: number of workers on each machine. Default: 1.
        time: time limit in Slurm's notation, such as "2:00:00". Default: None, the partition's.
        partition: name of the partition. Default: None, the cluster's default.

    Raises:
        InputError: a number is below 1, or Slurm would not accept the time or the partition.
    """
    check_at_least("--nodes", nodes, 1)
    check_at_least("--tasks-per-node", tasks_per_node, 1)
    if time is not None and not re.fullmatch(r"(\d+-)?\d+(:\d\d){0,2}", time):
        raise InputError(
            "--time must be minutes, hours:minutes:seconds or days-hours:minutes:seconds. "
            f"Received: {time!r}. Use for example --time 2:00:00."
        )
    if partition is not None and not re.fullmatch(r"[\w.,-]+", partition):
        raise InputError(
            "--partition must be the name of a partition, or several with commas. Received: "
            f"{partition!r}. `sinfo` lists them."
        )
    name = job.program[1] if job.program[0] == "-m" else PurePosixPath(job.program[0]).name
    options = {
        "job-name": re.sub(r"[^\w.-]", "_", name),
        "nodes": nodes,
        "ntasks-per-node": tasks_per_node,
        "cpus-per-task": job.threads_per_worker,
        "gpus-per-node": (job.gpus_per_worker or 0) * tasks_per_node or None,
        "time": time,
        "partition": partition,
        "signal": f"TERM@{_WARNING_SECONDS}",
        "open-mode": "append",
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in options.items() if value is not None]
    variables = [f"export {name}={value}" for name, value in job.thread_variables.items()]
    gpus, bind = "", ""
    if job.gpus_per_worker:
        bind = "--gpu-bind=none "
        if tasks_per_node > 1:
            last = job.gpus_per_worker * tasks_per_node - 1
            gpus = _GPUS % {"last": last, "each": job.gpus_per_worker}
    restarts = job.max_restarts
    return _TEXT.format(
        options="\n".join([*lines, "#SBATCH --requeue"]),
        variables="\n".join([*variables, ""]),
        tasks=tasks_per_node,
        saving=_SAVING_SECONDS,
        gpus=gpus,
        bind=bind,
        program=shlex.join(job.command),
        shortest=_SHORTEST_SECONDS,
        limit="" if restarts is None else _LIMIT.format(restarts=restarts),
    )
