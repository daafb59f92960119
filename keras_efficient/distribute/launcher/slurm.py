"""The batch script that runs a job under Slurm."""

import re
import shlex
from pathlib import PurePosixPath

from keras_efficient._errors import InputError
from keras_efficient.distribute.launcher.job import at_least

#: Seconds between the warning and the time limit: enough to finish a step and save.
_WARNING = 120
#: A job that ends sooner is not queued again: it would do so for ever.
_SHORTEST = 60

_TEXT = """#!/bin/bash
# Written by `keras-efficient launch --slurm`. Submit it with sbatch.
{options}

export PYTHONUNBUFFERED=1
export KERAS_EFFICIENT_RESTART="${{SLURM_RESTART_COUNT:-0}}"
{variables}
# Slurm tells this script itself only when the job is cancelled, or taken off its nodes, after which
# Slurm queues it again.
told=
trap 'told=1' TERM

# ke.strategy("auto") reads the other workers from Slurm's variables; block is the order it expects.
srun --label --kill-on-bad-exit=1 --distribution=block {step}{program}
code=$?

# 143: the workers were warned, and saved. They go on from there in the next run of this job.
if [ "$code" -eq 143 ] && [ -z "$told" ]; then
  if [ "$SECONDS" -lt {shortest} ]; then
    echo "Not queued again: it ended within {shortest} s of its start, so the next would too." >&2
{limit}  else
    scontrol requeue "$SLURM_JOB_ID"
  fi
fi
exit "$code"
"""

_LIMIT = """  elif [ "${{SLURM_RESTART_COUNT:-0}}" -ge {restarts} ]; then
    echo "Not queued again: it was {restarts} times, the limit of --max-restarts." >&2
"""


def sbatch_script(job, nodes, tasks_per_node=1, time=None, partition=None):
    """The text of a batch script: one task for each worker, queued again after it had to stop.

    The workers get SIGTERM two minutes before the time limit.

    Args:
        job: `Job`; its `max_restarts` may be None, for no limit.
        nodes: how many machines.
        tasks_per_node: workers on each; default: 1.
        time: limit, as Slurm writes it ("2:00:00"); default: the partition's.
        partition: name; default: the cluster's.

    Raises:
        InputError: a number below 1, or a time or partition that Slurm could not mean.
    """
    at_least("--nodes", nodes, 1)
    at_least("--tasks-per-node", tasks_per_node, 1)
    if time is not None and not re.fullmatch(r"(\d+-)?\d+(:\d\d){0,2}", time):
        raise InputError(
            "--time must be minutes, hours:minutes:seconds or days-hours:minutes:seconds. "
            f"Received: {time!r}. Write for example --time 2:00:00."
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
        "signal": f"TERM@{_WARNING}",
        "open-mode": "append",
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in options.items() if value is not None]
    variables = [f"export {name}={value}" for name, value in job.thread_variables.items()]
    # Since Slurm 22.05 a step does not take this over from its job.
    step = f"--cpus-per-task={job.threads_per_worker} " if job.threads_per_worker else ""
    restarts = job.max_restarts
    return _TEXT.format(
        options="\n".join([*lines, "#SBATCH --requeue"]),
        variables="\n".join([*variables, ""]),
        step=step,
        program=shlex.join(job.command),
        shortest=_SHORTEST,
        limit="" if restarts is None else _LIMIT.format(restarts=restarts),
    )
