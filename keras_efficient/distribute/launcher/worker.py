"""One worker: what it runs, where, and what it knows of the others."""

import json
import os
from dataclasses import dataclass

from keras_efficient._errors import InputError


@dataclass(frozen=True)
class Worker:
    """A worker to start.

    Args:
        index: its place among the workers.
        command: the words to start it with.
        variables: what its environment has besides ours.
        host: the machine to reach by ssh; None: this one.
        cores: the CPU cores it may use; None: all.
    """

    index: int
    command: tuple
    variables: dict
    host: str | None = None
    cores: tuple | None = None


def plan(job, addresses, hosts=None, restart=0):
    """The workers of a job.

    Args:
        job: `Job`.
        addresses: list of "host:port", one for each worker.
        hosts: list of where to reach each worker by ssh, None for this machine; default: all here.
        restart: how often the job was started before.

    Returns:
        List of `Worker`.

    Raises:
        InputError: CUDA_VISIBLE_DEVICES names fewer GPUs than the workers here are to have.
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
        workers.append(Worker(index, job.command, variables, host, cores and cores[index]))
    return workers


def pinning(job, workers):
    """What became of --threads-per-worker, in words; None when it was not given."""
    if not job.threads_per_worker:
        return None
    if workers[0].cores:
        lists = "; ".join(
            f"worker {w.index} on {','.join(map(str, w.cores))}" for w in workers if w.cores
        )
        return f"{job.threads_per_worker} threads a worker, pinned to cores: {lists}"
    needed = job.threads_per_worker * len(workers)
    why = (
        "the workers are on several machines"
        if any(w.host for w in workers)
        else f"{needed} cores are needed and {len(_usable()) or os.cpu_count()} can be had"
        if _usable()
        else "this system cannot pin"
    )
    return f"{job.threads_per_worker} threads a worker, not pinned to cores: {why}"


def _places(hosts):
    """Each worker's number among those of its machine."""
    return [hosts[:index].count(host) for index, host in enumerate(hosts)]


def _usable():
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def _cores(job, hosts):
    """A slice of this machine's cores for each worker, or None."""
    count, usable = job.threads_per_worker, _usable()
    if not count or any(hosts) or count * len(hosts) > len(usable):
        return None
    return [tuple(usable[i * count : (i + 1) * count]) for i in range(len(hosts))]


def _gpus(count, place, host):
    """The value of CUDA_VISIBLE_DEVICES: -1 hides all."""
    if not count:
        return "-1"
    first, last = place * count, (place + 1) * count
    named = os.environ.get("CUDA_VISIBLE_DEVICES") if host is None else None
    if named is None:
        return ",".join(map(str, range(first, last)))
    names = [name.strip() for name in named.split(",") if name.strip()]
    if len(names) < last:
        raise InputError(
            f"CUDA_VISIBLE_DEVICES must name {last} GPUs or more, {count} for each worker. "
            f"Received: {named!r}. Lower --workers or --gpus-per-worker, or name more GPUs."
        )
    return ",".join(names[first:last])
