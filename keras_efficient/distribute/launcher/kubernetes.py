"""The manifest of a job for Kubeflow's training operator."""

import json
import re
from pathlib import PurePosixPath

from keras_efficient._errors import InputError
from keras_efficient.distribute.launcher.job import at_least

#: A label of DNS: the operator makes host names from it.
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,51}[a-z0-9])?")


def tfjob(job, image, workers, name=None, namespace=None, volume_claim=None):
    """A TFJob (kubeflow.org/v1), which YAML tools read: JSON is YAML.

    The operator gives each worker its TF_CONFIG. When one fails the others do too, with an error of
    their collectives, so every container is started again in its place: the policy ExitCode would
    take the others' exit code 1 for the end of the job, and count no restarts.

    Args:
        job: `Job`. `grace` becomes the pods' time to stop.
        image: the container image, with Python, this package and the program.
        workers: how many.
        name: of the job; default: that of the program.
        namespace: default: that of `kubectl`'s context.
        volume_claim: name of a claim that all workers can write to, mounted at /checkpoints.

    Returns:
        The manifest's text.

    Raises:
        InputError: no image, fewer than one worker, or a name that Kubernetes refuses.
    """
    at_least("--workers", workers, 1)
    if not image.strip() or image != image.strip() or image.startswith("-"):
        raise InputError(
            f"--kubernetes must be the name of an image. Received: {image!r}. Write for example "
            "--kubernetes registry.example/train:1."
        )
    named = {"--name": name or _name(job.program), "--namespace": namespace}
    named["--volume-claim"] = volume_claim
    for option, value in named.items():
        if value is not None and not _NAME.fullmatch(value):
            raise InputError(
                f"{option} must be small letters, digits and hyphens, at most 53, with a letter or "
                f"digit at both ends. Received: {value!r}. Choose another with {option}."
            )
    variables = {"PYTHONUNBUFFERED": "1", **job.thread_variables}
    container = {
        # The operator sets TF_CONFIG in the container of this name only.
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
    pod = {
        "terminationGracePeriodSeconds": max(1, round(job.grace)),
        "containers": [container],
    }
    if volume_claim:
        container["volumeMounts"] = [{"name": "checkpoints", "mountPath": "/checkpoints"}]
        pod["volumes"] = [
            {"name": "checkpoints", "persistentVolumeClaim": {"claimName": volume_claim}}
        ]
    # The operator counts the restarts of containers, and gives up when it has counted so many.
    policy = {"restartPolicy": "Never"}
    run_policy = {"cleanPodPolicy": "None"}
    if job.max_restarts:
        policy = {"restartPolicy": "OnFailure"}
        run_policy["backoffLimit"] = job.max_restarts * workers + 1
    manifest = {
        "apiVersion": "kubeflow.org/v1",
        "kind": "TFJob",
        "metadata": {"name": named["--name"]} | ({"namespace": namespace} if namespace else {}),
        "spec": {
            "runPolicy": run_policy,
            # Without it the job counts as done when the first worker is.
            "successPolicy": "AllWorkers",
            "tfReplicaSpecs": {
                "Worker": {"replicas": workers, **policy, "template": {"spec": pod}}
            },
        },
    }
    return json.dumps(manifest, indent=2) + "\n"


def _name(program):
    """A name from the program's."""
    stem = program[1] if program[0] == "-m" else PurePosixPath(program[0]).stem
    return re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:53].strip("-") or "train"
