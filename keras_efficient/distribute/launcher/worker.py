"""`Worker`, one process to start, and `plan`, which makes the workers of a job."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

from keras_efficient._errors import InputError
from keras_efficient.distribute.launcher.job import Job


@dataclass(frozen=True)
class Worker:
    """A worker to start.

    Args:
        index: position among the workers, from 0.
        command: command line.
        variables: environment variables in addition to the launcher's own.
        host: machine to reach by ssh. Default: None, this machine.
        cores: CPU cores to pin it to. Default: None, all cores.
    """

    index: int
    command: tuple[str, ...]
    variables: dict[str, str]
    host: str | None = None
    cores: tuple[int, ...] | None = None

    @property
    def port(self) -> int:
        """The port at which the others reach this worker."""
        cluster = json.loads(self.variables["TF_CONFIG"])["cluster"]
        return int(cluster["worker"][self.index].rpartition(":")[2])


def plan(
    job: Job, addresses: Sequence[str], hosts: Sequence[str | None] | None = None, restart: int = 0
) -> list[Worker]:
    """Return the workers of a job.

    Args:
        job: `Job`.
        addresses: "host:port" of each worker.
        hosts: machine to reach each worker on by ssh, or None for this machine. Default: all on
            this machine.
        restart: how often the job was started before. Default: 0.

    Raises:
        InputError: CUDA_VISIBLE_DEVICES names too few GPUs for the workers on this machine.
    """
    hosts = hosts or [None] * len(addresses)
    cores = _cores(job, hosts)
    workers = []
    for index, (host, place) in enumerate(zip(hosts, _places(hosts), strict=True)):
        task = {"type": "worker", "index": index}
        variables = {
            "TF_CONFIG": json.dumps({"cluster": {"worker": list(addresses)}, "task": task}),
            "KERAS_EFFICIENT_RESTART": str(restart),
            **job.thread_variables,
        }
        if job.gpus_per_worker is not None:
            variables["CUDA_VISIBLE_DEVICES"] = _gpus(job.gpus_per_worker, place, host)
        pinned = cores[index] if cores else None
        workers.append(Worker(index, job.command, variables, host, pinned))
    return workers


def pinning_note(job: Job, workers: Sequence[Worker]) -> str | None:
    """Describe how --threads-per-worker was applied; None if it was not given."""
    if not job.threads_per_worker:
        return None
    if workers[0].cores:
        lists = "; ".join(
            f"worker {w.index} on {','.join(map(str, w.cores))}" for w in workers if w.cores
        )
        return f"{job.threads_per_worker} threads per worker, pinned to cores: {lists}"
    needed = job.threads_per_worker * len(workers)
    if any(worker.host for worker in workers):
        reason = "the workers are on several machines"
    elif available := _available_cores():
        reason = f"{needed} cores are needed and {len(available)} are available"
    else:
        reason = "this system does not support it"
    return f"{job.threads_per_worker} threads per worker, not pinned to cores: {reason}"


def _places(hosts):
    """Return each worker's number among those on its machine."""
    return [hosts[:index].count(host) for index, host in enumerate(hosts)]


def _available_cores():
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def _cores(job, hosts):
    """Return a slice of this machine's cores for each worker, or None."""
    count, available = job.threads_per_worker, _available_cores()
    if not count or any(hosts) or count * len(hosts) > len(available):
        return None
    return [tuple(available[i * count : (i + 1) * count]) for i in range(len(hosts))]


def _gpus(count, place, host):
    """Return a worker's CUDA_VISIBLE_DEVICES; -1 hides all GPUs."""
    if not count:
        return "-1"
    first, last = place * count, (place + 1) * count
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") if host is None else None
    if visible is None:
        return ",".join(map(str, range(first, last)))
    names = [name.strip() for name in visible.split(",") if name.strip()]
    if len(names) < last:
        raise InputError(
            f"CUDA_VISIBLE_DEVICES must name {last} GPUs or more, {count} for each worker. "
            f"Received: {visible!r}. Lower --workers or --gpus-per-worker, or name more GPUs."
        )
    return ",".join(names[first:last])
