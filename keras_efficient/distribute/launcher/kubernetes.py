"""`tfjob`, the manifest of a job for Kubeflow's training operator."""

import json
import re
from pathlib import PurePosixPath
from typing import Any

from keras_efficient._errors import InputError
from keras_efficient.distribute.launcher.job import Job, check_at_least

#: A DNS label, because the operator builds host names from it.
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,51}[a-z0-9])?")


def tfjob(
    job: Job,
    image: str,
    workers: int,
    name: str | None = None,
    namespace: str | None = None,
    volume_claim: str | None = None,
    istio: bool = True,
) -> str:
    """Return the manifest of a TFJob (kubeflow.org/v1), as JSON, which is valid YAML.

    The operator sets each worker's TF_CONFIG. When one worker fails, the collectives of the others
    fail too, so every container is restarted in place. The restart policy ExitCode would treat the
    others' exit code 1 as permanent and would not count restarts.

    Args:
        job: `Job`. `grace` becomes the pods' termination grace period.
        image: container image with Python, this package and the program.
        workers: number of workers.
        name: name of the job. Default: None, derived from the program.
        namespace: Kubernetes namespace. Default: None, that of `kubectl`'s context.
        volume_claim: name of a persistent volume claim that all workers can write to, mounted at
            /checkpoints. Default: None, no volume.
        istio: whether Istio may add its sidecar where it does so by default. The sidecar never
            ends, so neither does the pod, and it stands between the workers. Default: True.

    Returns:
        The text of the manifest.

    Raises:
        InputError: there is no image or no worker, or Kubernetes does not allow a name.
    """
    check_at_least("--workers", workers, 1)
    if not image.strip() or image != image.strip() or image.startswith("-"):
        raise InputError(
            f"--kubernetes must be the name of an image. Received: {image!r}. Use for example "
            "--kubernetes registry.example/train:1."
        )
    name = name or _name(job.program)
    names = {"--name": name, "--namespace": namespace, "--volume-claim": volume_claim}
    for option, value in names.items():
        if value is not None and not _NAME.fullmatch(value):
            raise InputError(
                f"{option} must consist of at most 53 lowercase letters, digits and hyphens, with "
                f"a letter or digit at both ends. Received: {value!r}. Choose another with "
                f"{option}."
            )
    variables = {"PYTHONUNBUFFERED": "1", **job.thread_variables}
    container: dict[str, Any] = {
        # The operator sets TF_CONFIG only in a container of this name.
        "name": "tensorflow",
        "image": image,
        "command": list(job.command),
        "env": [{"name": key, "value": value} for key, value in variables.items()],
    }
    limits = {}
    if job.gpus_per_worker:
        limits["nvidia.com/gpu"] = str(job.gpus_per_worker)
    if job.threads_per_worker:
        limits["cpu"] = str(job.threads_per_worker)
    if limits:
        container["resources"] = {"limits": limits}
    pod: dict[str, Any] = {
        "terminationGracePeriodSeconds": max(1, round(job.grace)),
        "containers": [container],
    }
    volumes: dict[str, tuple[str, dict]] = {}
    if volume_claim:
        claim = {"persistentVolumeClaim": {"claimName": volume_claim}}
        volumes["checkpoints"] = "/checkpoints", claim
    if job.gpus_per_worker:
        # NCCL exchanges data of a pod's GPUs there; the default has 64 MB.
        volumes["shared-memory"] = "/dev/shm", {"emptyDir": {"medium": "Memory"}}
    if volumes:
        container["volumeMounts"] = [
            {"name": volume, "mountPath": path} for volume, (path, _) in volumes.items()
        ]
        pod["volumes"] = [{"name": volume, **source} for volume, (_, source) in volumes.items()]
    template: dict[str, Any] = {"spec": pod}
    if not istio:
        template["metadata"] = {"annotations": {"sidecar.istio.io/inject": "false"}}
    policy = {"restartPolicy": "Never"}
    # A job that has failed gives up the pods that still run, with their GPUs, and keeps the others
    # for their logs.
    run_policy: dict[str, Any] = {"cleanPodPolicy": "Running"}
    # The operator counts the restarts of all containers, and fails the job at this number.
    if job.max_restarts:
        policy = {"restartPolicy": "OnFailure"}
        run_policy["backoffLimit"] = job.max_restarts * workers + 1
    manifest = {
        "apiVersion": "kubeflow.org/v1",
        "kind": "TFJob",
        "metadata": {"name": name} | ({"namespace": namespace} if namespace else {}),
        "spec": {
            "runPolicy": run_policy,
            # The default is that the job has succeeded as soon as the first worker has.
            "successPolicy": "AllWorkers",
            "tfReplicaSpecs": {"Worker": {"replicas": workers, **policy, "template": template}},
        },
    }
    return json.dumps(manifest, indent=2) + "\n"


def _name(program):
    """Derive the job's name from the program."""
    stem = program[1] if program[0] == "-m" else PurePosixPath(program[0]).stem
    return re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:53].strip("-") or "train"
