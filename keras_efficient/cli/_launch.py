"""`launch`: start a job on the backend that the options select."""

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from keras_efficient._errors import InputError
from keras_efficient.distribute.launcher.addresses import free_addresses, parse_hosts
from keras_efficient.distribute.launcher.job import Job
from keras_efficient.distribute.launcher.ssh import check_ssh, ssh_command
from keras_efficient.distribute.launcher.supervisor import run
from keras_efficient.distribute.launcher.worker import Worker, plan

#: The backends that take an option; options that are not listed are for all of them.
_OPTION_BACKENDS = {
    "workers": {"local", "ray", "kubernetes"},
    "port": {"local"},
    "python": {"local", "hosts", "slurm", "kubernetes"},
    "log_dir": {"local", "hosts"},
    "join_timeout": {"local", "hosts"},
    "grace": {"local", "hosts", "ray", "kubernetes"},
    "nodes": {"slurm"},
    "tasks_per_node": {"slurm"},
    "time": {"slurm"},
    "partition": {"slurm"},
    "name": {"kubernetes"},
    "namespace": {"kubernetes"},
    "volume_claim": {"kubernetes"},
    "no_istio": {"kubernetes"},
    "write": {"slurm", "kubernetes"},
}
#: The option that selects each backend.
_BACKENDS = {
    "local": "--workers",
    "hosts": "--hosts",
    "slurm": "--slurm",
    "ray": "--ray",
    "kubernetes": "--kubernetes",
}


@dataclass(frozen=True)
class Settings:
    """The options of `launch`, None where an option was not given."""

    program: tuple[str, ...]
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
    join_timeout: float | None
    nodes: int | None
    tasks_per_node: int | None
    time: str | None
    partition: str | None
    name: str | None
    namespace: str | None
    volume_claim: str | None
    no_istio: bool | None
    write: Path | None
    dry_run: bool

    @classmethod
    def names(cls) -> set[str]:
        return {field.name for field in fields(cls)}

    @property
    def backend(self) -> str:
        """The backend that the options select: a key of `_BACKENDS`.

        Raises:
            InputError: they select none or several, or the backend does not take an option.
        """
        selected = {"hosts": self.hosts, "slurm": self.slurm, "ray": self.ray}
        selected["kubernetes"] = self.kubernetes
        backends = [name for name, value in selected.items() if value not in (None, False)]
        if len(backends) > 1 or (not backends and self.workers is None):
            received = " and ".join(_BACKENDS[name] for name in backends) or "none"
            raise InputError(
                "One of --workers, --hosts, --slurm, --ray and --kubernetes says where to start. "
                f"Received: {received}. Give one; --ray and --kubernetes also take --workers."
            )
        backend = backends[0] if backends else "local"
        for option, takers in _OPTION_BACKENDS.items():
            if getattr(self, option) is not None and backend not in takers:
                others = ", ".join(_BACKENDS[taker] for taker in _BACKENDS if taker in takers)
                raise InputError(
                    f"--{option.replace('_', '-')} is an option of {others}. Received: it with "
                    f"{_BACKENDS[backend]}. Remove it; options of the script come after the script."
                )
        if self.workers is None and backend in ("ray", "kubernetes"):
            raise InputError(
                f"{_BACKENDS[backend]} needs the number of workers. Received: no --workers. "
                "Add for example --workers 2."
            )
        if self.nodes is None and backend == "slurm":
            raise InputError(
                "--slurm needs the number of machines to request. Received: no --nodes. Add for "
                "example --nodes 2."
            )
        return backend

    def job(self, backend: str) -> Job:
        """Return the `Job` that these options describe."""
        python = {"kubernetes": "python"}.get(backend, sys.executable)
        restarts = self.max_restarts
        return Job(
            program=self.program,
            python=self.python or python,
            # By default Slurm queues a job again without a limit.
            max_restarts=0 if restarts is None and backend != "slurm" else restarts,
            grace=30.0 if self.grace is None else self.grace,
            gpus_per_worker=self.gpus_per_worker,
            threads_per_worker=self.threads_per_worker,
            log_dir=self.log_dir,
            join_timeout=self.join_timeout,
        )


def launch(settings: Settings) -> int:
    """Start the job that the options describe, and return the exit code.

    Raises:
        InputError: options contradict each other, or refer to something that does not exist.
    """
    backend = settings.backend
    job = settings.job(backend)
    if backend == "slurm":
        from keras_efficient.distribute.launcher.slurm import sbatch_script

        tasks = 1 if settings.tasks_per_node is None else settings.tasks_per_node
        text = sbatch_script(job, settings.nodes, tasks, settings.time, settings.partition)
        return _write(text, settings.write)
    if backend == "kubernetes":
        from keras_efficient.distribute.launcher.kubernetes import tfjob

        names = settings.name, settings.namespace, settings.volume_claim
        istio = not settings.no_istio
        text = tfjob(job, str(settings.kubernetes), settings.workers or 0, *names, istio=istio)
        return _write(text, settings.write)
    if backend == "ray":
        return _submit_to_ray(job, settings)
    return _run_processes(job, settings, backend)


def _run_processes(job, settings, backend):
    addresses: list[str] = []
    hosts: Sequence[str | None] | None = None
    if backend == "hosts":
        addresses, hosts = parse_hosts(settings.hosts)
        check_ssh(hosts)
    if hosts is None or None in hosts:
        _check_program(job)

    def plan_workers(restart: int) -> list[Worker]:
        return plan(
            job, addresses or free_addresses(settings.workers, settings.port), hosts, restart
        )

    if settings.dry_run:
        for worker in plan_workers(0):
            _print_worker(worker, job.grace)
        return 0
    return run(job, plan_workers)


def _submit_to_ray(job, settings):
    from keras_efficient.distribute.launcher.ray_job import submit

    _check_script(job)
    if settings.dry_run:
        print(f"{settings.workers} workers of Ray: {shlex.join(job.command)}")
        return 0
    return submit(job, settings.workers)


def _print_worker(worker, grace):
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
            "path of an interpreter, or omit it to use this one."
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
