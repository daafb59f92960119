"""The command `launch`: check the options, and hand over to the right engine."""

import os
import shlex
import shutil
import sys
from dataclasses import dataclass, fields
from pathlib import Path

from keras_efficient._errors import InputError
from keras_efficient.distribute.launcher.addresses import free_addresses, parse_hosts
from keras_efficient.distribute.launcher.job import Job
from keras_efficient.distribute.launcher.ssh import check_ssh, ssh_command
from keras_efficient.distribute.launcher.supervisor import run
from keras_efficient.distribute.launcher.worker import plan

#: The options that only some ways of starting take.
_TAKEN = {
    "workers": {"local", "ray", "kubernetes"},
    "port": {"local"},
    "python": {"local", "hosts", "slurm", "kubernetes"},
    "log_dir": {"local", "hosts"},
    "grace": {"local", "hosts", "ray", "kubernetes"},
    "nodes": {"slurm"},
    "tasks_per_node": {"slurm"},
    "time": {"slurm"},
    "partition": {"slurm"},
    "name": {"kubernetes"},
    "namespace": {"kubernetes"},
    "volume_claim": {"kubernetes"},
    "write": {"slurm", "kubernetes"},
}
_WAYS = {
    "local": "--workers",
    "hosts": "--hosts",
    "slurm": "--slurm",
    "ray": "--ray",
    "kubernetes": "--kubernetes",
}


@dataclass(frozen=True)
class Settings:
    """The options of `launch`; None where one was not given."""

    program: tuple
    workers: int | None
    hosts: str | None
    slurm: bool
    ray: bool
    kubernetes: str | None
    port: int | None
    python: str | None
    max_restarts: int | None
    grace: float | None
    gpus_per_worker: int | None
    threads_per_worker: int | None
    log_dir: Path | None
    nodes: int | None
    tasks_per_node: int | None
    time: str | None
    partition: str | None
    name: str | None
    namespace: str | None
    volume_claim: str | None
    write: Path | None
    dry_run: bool

    @classmethod
    def names(cls):
        return {field.name for field in fields(cls)}

    @property
    def way(self):
        """Which of the five ways of starting was asked for.

        Raises:
            InputError: none or several, or an option that this way does not take.
        """
        named = {"hosts": self.hosts, "slurm": self.slurm, "ray": self.ray}
        named["kubernetes"] = self.kubernetes
        ways = [way for way, value in named.items() if value not in (None, False)]
        if len(ways) > 1 or (not ways and self.workers is None):
            received = " and ".join(_WAYS[way] for way in ways) or "none"
            raise InputError(
                "One of --workers, --hosts, --slurm, --ray and --kubernetes says where to start. "
                f"Received: {received}. Give one; --ray and --kubernetes take --workers besides."
            )
        way = ways[0] if ways else "local"
        for option, takers in _TAKEN.items():
            if getattr(self, option) is not None and way not in takers:
                others = ", ".join(_WAYS[taker] for taker in _WAYS if taker in takers)
                raise InputError(
                    f"--{option.replace('_', '-')} is an option of {others}. Received: it with "
                    f"{_WAYS[way]}. Leave it out; options of the script come after the script."
                )
        if self.workers is None and way in ("ray", "kubernetes"):
            raise InputError(
                f"{_WAYS[way]} must be told how many workers to start. Received: no --workers. Add "
                "for example --workers 2."
            )
        if self.nodes is None and way == "slurm":
            raise InputError(
                "--slurm must be told how many machines to ask for. Received: no --nodes. Add for "
                "example --nodes 2."
            )
        return way

    def job(self, way):
        """The `Job` these options describe."""
        python = {"kubernetes": "python"}.get(way, sys.executable)
        restarts = self.max_restarts
        return Job(
            program=self.program,
            python=self.python or python,
            # Slurm's own default is to queue a job again whenever it must.
            max_restarts=0 if restarts is None and way != "slurm" else restarts,
            grace=30.0 if self.grace is None else self.grace,
            gpus_per_worker=self.gpus_per_worker,
            threads_per_worker=self.threads_per_worker,
            log_dir=self.log_dir,
        )


def launch(settings):
    """Start what the options ask for; returns the exit code.

    Raises:
        InputError: options that contradict each other, or name what does not exist.
    """
    way = settings.way
    job = settings.job(way)
    if way == "slurm":
        from keras_efficient.distribute.launcher.slurm import sbatch_script

        tasks = 1 if settings.tasks_per_node is None else settings.tasks_per_node
        text = sbatch_script(job, settings.nodes, tasks, settings.time, settings.partition)
        return _write(text, settings.write)
    if way == "kubernetes":
        from keras_efficient.distribute.launcher.kubernetes import tfjob

        names = settings.name, settings.namespace, settings.volume_claim
        text = tfjob(job, settings.kubernetes, settings.workers, *names)
        return _write(text, settings.write)
    if way == "ray":
        return _ray(job, settings)
    return _processes(job, settings, way)


def _processes(job, settings, way):
    hosts = None
    addresses = None
    if way == "hosts":
        addresses, hosts = parse_hosts(settings.hosts)
        check_ssh(hosts)
    if hosts is None or None in hosts:
        _check_program(job)

    def plan_workers(restart):
        return plan(
            job, addresses or free_addresses(settings.workers, settings.port), hosts, restart
        )

    if settings.dry_run:
        for worker in plan_workers(0):
            _show(worker, job.grace)
        return 0
    return run(job, plan_workers)


def _ray(job, settings):
    from keras_efficient.distribute.launcher.ray_job import submit

    _check_script(job)
    if settings.dry_run:
        print(f"{settings.workers} workers of Ray: {shlex.join(job.command)}")
        return 0
    return submit(job, settings.workers)


def _show(worker, grace):
    print(f"worker {worker.index} on {worker.host or 'this machine'}")
    for name, value in worker.variables.items():
        print(f"  {name}={value}")
    command = ssh_command(worker, grace) if worker.host else worker.command
    print(f"  {shlex.join(command)}")


def _check_program(job):
    _check_script(job)
    if shutil.which(job.python) is None:
        raise InputError(
            f"--python must be a program that can be run here. Received: {job.python!r}. Give the "
            "path of an interpreter, or leave it out for this one."
        )


def _check_script(job):
    script = job.program[0]
    if script != "-m" and not os.path.exists(script):
        raise InputError(
            f"The script must exist. Received: {script!r}, looked for from {os.getcwd()}. Correct "
            "the path; options of the launcher come before the script."
        )


def _write(text, path):
    if path is None:
        sys.stdout.write(text)
        return 0
    try:
        path.write_text(text)
    except OSError as error:
        raise InputError(
            f"--write must name a file that can be written. Received: {str(path)!r} "
            f"({error.strerror}). Name another."
        ) from error
    return 0
