"""`sbatch_script`, the batch script that runs a job under Slurm."""

import re
import shlex
from pathlib import PurePosixPath

from keras_efficient._errors import InputError
from keras_efficient.distribute.launcher.job import Job, check_at_least

#: Seconds between the warning and the time limit, enough to finish a step and save.
_WARNING_SECONDS = 120
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

# ke.strategy("auto") reads the workers from Slurm's variables, and expects the block order.
srun --label --kill-on-bad-exit=1 --distribution=block {step}{program}
code=$?

# 143: the workers were warned, and have saved. They continue in the next run of this job.
if [ "$code" -eq 143 ] && [ -z "$cancelled" ]; then
  if [ "$SECONDS" -lt {shortest} ]; then
    echo "Not queued again: the job ended within {shortest} s, and would do so again." >&2
{limit}  else
    scontrol requeue "$SLURM_JOB_ID"
  fi
fi
exit "$code"
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
        "gpus-per-task": job.gpus_per_worker or None,
        "time": time,
        "partition": partition,
        "signal": f"TERM@{_WARNING_SECONDS}",
        "open-mode": "append",
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in options.items() if value is not None]
    variables = [f"export {name}={value}" for name, value in job.thread_variables.items()]
    # Since Slurm 22.05 a step does not inherit this option from its job.
    step = f"--cpus-per-task={job.threads_per_worker} " if job.threads_per_worker else ""
    restarts = job.max_restarts
    return _TEXT.format(
        options="\n".join([*lines, "#SBATCH --requeue"]),
        variables="\n".join([*variables, ""]),
        step=step,
        program=shlex.join(job.command),
        shortest=_SHORTEST_SECONDS,
        limit="" if restarts is None else _LIMIT.format(restarts=restarts),
    )
