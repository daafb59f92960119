"""`Cluster`: the workers that train together, and this process's place among them."""

import itertools
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from keras_efficient._errors import InputError
from keras_efficient.flavor import Model

#: Slurm assigns no ports, so they are derived from the job's number, below the ephemeral range.
_FIRST_SLURM_PORT, _SLURM_PORTS = 10_000, 20_000


@dataclass(frozen=True)
class Cluster:
    """The workers that train together, and this process's place among them.

    Args:
        workers: tuple of addresses "host:port", in the same order on every worker; the first worker
            is the chief.
        index: int, position of this process among the workers, from 0.
        source: where the description was found, for messages. Default: "given".
        has_chief: bool, whether TF_CONFIG calls the first worker "chief" instead of "worker".
            Default: False.

    Raises:
        InputError: an address has no port or occurs twice, or the index is out of range.

    Examples:
        >>> cluster = ke.distribute.Cluster(("10.0.0.1:12345", "10.0.0.2:12345"), index=1)
        >>> len(cluster), cluster.address, cluster.task
        (2, '10.0.0.2:12345', ('worker', 1))

    Reference:
        TF_CONFIG, in TensorFlow's guide "Multi-worker training with Keras".
    """

    workers: tuple[str, ...]
    index: int
    source: str = "given"
    has_chief: bool = False

    def __post_init__(self):
        for address in self.workers:
            host, _, port = str(address).rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) < 65536:
                raise InputError(
                    "A worker's address must be host:port with a port from 1 to 65535. Received: "
                    f"{address!r} in {self.source}. Use for example 10.0.0.1:12345."
                )
        twice = sorted({a for a in self.workers if self.workers.count(a) > 1})
        if twice:
            raise InputError(
                "Every worker must have an address of its own. Received twice: "
                f"{', '.join(twice)} in {self.source}. Give workers on one machine different ports."
            )
        if isinstance(self.index, bool) or not isinstance(self.index, int):
            raise InputError(
                f"A task's index must be an integer. Received: {self.index!r} in {self.source}. "
                "Number the workers from 0."
            )
        if not 0 <= self.index < len(self.workers):
            raise InputError(
                f"A task's index must lie from 0 to {len(self.workers) - 1}, as there are "
                f"{len(self.workers)} workers. Received: {self.index} in {self.source}. Number the "
                "workers from 0."
            )

    def __len__(self) -> int:
        return len(self.workers)

    @property
    def address(self) -> str:
        """This worker's own "host:port"."""
        return self.workers[self.index]

    @property
    def task(self) -> tuple[str, int]:
        """TensorFlow's name for this worker, such as ("worker", 1)."""
        if not self.has_chief:
            return "worker", self.index
        return ("worker", self.index - 1) if self.index else ("chief", 0)

    @property
    def spec(self) -> dict[str, list[str]]:
        """The workers as TF_CONFIG lists them."""
        if not self.has_chief:
            return {"worker": list(self.workers)}
        spec = {"chief": [self.workers[0]], "worker": list(self.workers[1:])}
        return {job: addresses for job, addresses in spec.items() if addresses}

    @property
    def tf_config(self) -> str:
        """This worker's TF_CONFIG, as JSON text."""
        job, index = self.task
        return json.dumps({"cluster": self.spec, "task": {"type": job, "index": index}})

    @classmethod
    def from_environment(cls) -> "Cluster | None":
        """Read the cluster from TF_CONFIG or Slurm's variables; None if neither is set.

        Raises:
            InputError: the description is wrong.
        """
        if os.environ.get("TF_CONFIG"):
            return _from_tf_config(os.environ["TF_CONFIG"])
        if "SLURM_PROCID" in os.environ and "SLURM_STEP_NODELIST" in os.environ:
            return _from_slurm()
        return None


def is_chief() -> bool:
    """Return whether this process writes logs and files: the first worker, or the only one.

    Returns:
        True on the first worker, and outside of a cluster.

    Raises:
        InputError: TF_CONFIG or Slurm's variables describe no valid cluster.

    Examples:
        >>> ke.distribute.is_chief()
        True

    Reference:
        TensorFlow's guide "Multi-worker training with Keras", on saving.
    """
    cluster = Cluster.from_environment()
    return cluster is None or cluster.index == 0


def cluster_of(model: Model) -> Cluster | None:
    """Return the cluster whose workers train a model together, or None for a single process."""
    return getattr(getattr(model, "distribute_strategy", None), "cluster", None)


def _from_tf_config(text: str) -> Cluster | None:
    try:
        config = json.loads(text)
        jobs, task = config.get("cluster") or {}, config.get("task") or {}
        job, index = task.get("type"), task.get("index")
        if any(isinstance(addresses, str) for addresses in jobs.values()):
            raise TypeError("addresses must be a list")
        jobs = {name: list(addresses) for name, addresses in jobs.items() if addresses}
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(
            'TF_CONFIG must be JSON: {"cluster": {"worker": ["host:port", ...]}, "task": {"type": '
            f'"worker", "index": 0}}}}. Received: {text!r:.200} ({error}). Correct it or unset it.'
        ) from error
    if not jobs:
        return None
    others = sorted(set(jobs) - {"chief", "worker"})
    if others or job not in list(jobs):
        raise InputError(
            'TF_CONFIG may name a "chief" and "worker"s, and a task of one of them. Received: '
            f"cluster {sorted(jobs)}, task {job!r}. Parameter servers and evaluators take no part "
            "in synchronous training: leave them out."
        )
    chiefs, workers = jobs.get("chief", []), jobs.get("worker", [])
    if len(chiefs) > 1:
        raise InputError(
            f"TF_CONFIG may name one chief. Received: {', '.join(map(str, chiefs))}. Make the "
            'others "worker"s.'
        )
    tasks = jobs[job]
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(tasks):
        raise InputError(
            f'TF_CONFIG must give the task an index from 0 to {len(tasks) - 1} of its "{job}"s. '
            f"Received: {index!r}. Number them from 0."
        )
    if job == "worker":
        index += len(chiefs)
    return Cluster((*chiefs, *workers), index, "TF_CONFIG", has_chief=bool(chiefs))


def _expand_hosts(text: str, expand_hostlist: Callable) -> list[str]:
    """Return the hosts of a list such as "login,r[1-2]n[1-2]", in Slurm's order.

    Args:
        text: the list.
        expand_hostlist: TensorFlow's parser, which knows one bracket per name only.
    """
    names = re.findall(r"(?:[^,[\]]|\[[^][]+\])+", text)
    if ",".join(names) != text:
        raise ValueError(f"Invalid hostlist {text!r}")
    hosts = []
    for name in names:
        parts = [
            expand_hostlist(part) if part.startswith("[") else [part]
            for part in re.split(r"(\[[^]]+\])", name)
        ]
        hosts += map("".join, itertools.product(*parts))
    return hosts


def _from_slurm() -> Cluster:
    """Read the tasks of a Slurm step, in the order of their ranks.

    TensorFlow's own `SlurmClusterResolver` sorts hosts by name: n10 comes before n2, and rank 0
    gets the address of another node. It also fails without GPUs. Only its parsing is used here.
    """
    import tensorflow as tf

    resolver = tf.distribute.cluster_resolver.SlurmClusterResolver
    parsing: Any = sys.modules[resolver.__module__]
    try:
        hosts = _expand_hosts(os.environ["SLURM_STEP_NODELIST"], parsing.expand_hostlist)
        tasks = parsing.expand_tasks_per_node(os.environ["SLURM_STEP_TASKS_PER_NODE"])
        rank, count = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_STEP_NUM_TASKS"])
        job = int(os.environ["SLURM_JOB_ID"])
    except (KeyError, ValueError) as error:
        raise InputError(
            "A Slurm step must set SLURM_STEP_NODELIST, SLURM_STEP_TASKS_PER_NODE, SLURM_PROCID, "
            f"SLURM_STEP_NUM_TASKS and SLURM_JOB_ID. Received: {type(error).__name__} {error}. "
            "Start the script with srun."
        ) from error
    first = _FIRST_SLURM_PORT + job * 64 % _SLURM_PORTS
    workers = [
        f"{host}:{first + place}"
        for host, here in zip(hosts, tasks, strict=False)
        for place in range(here)
    ]
    if len(workers) != count:
        raise InputError(
            "A Slurm step must have the number of tasks that it states. Received: "
            f"{count} tasks, but {len(workers)} on the nodes {hosts} with {tasks}. Start the "
            "script with srun."
        )
    cluster = Cluster(tuple(workers), rank, f"Slurm job {job}")
    node = [node for node, here in enumerate(tasks) for _ in range(here)][rank]
    if os.environ.get("SLURM_NODEID", str(node)) != str(node):
        raise InputError(
            f"Slurm must fill one node after the other. Received: task {rank} on node "
            f"{os.environ['SLURM_NODEID']} instead of {node}. Start the script with srun "
            "--distribution=block."
        )
    return cluster
