"""The manifest for Kubeflow's operator, checked against the schema of a TFJob."""

import json
from pathlib import Path

import pytest
import yaml
from launching import launch

from keras_efficient.distribute.launcher.job import Job
from keras_efficient.distribute.launcher.kubernetes import tfjob

SCHEMA = json.loads((Path(__file__).parent / "tfjob_schema.json").read_text())


def manifest(workers=2, image="registry.example/train:1", names=(), **options):
    job = Job(program=("jobs/my_train.py", "--epochs", "3"), python="python", **options)
    return yaml.safe_load(tfjob(job, image, workers, *names))


def validate(found):
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(found, SCHEMA)


EVERYTHING = {"max_restarts": 3, "gpus_per_worker": 2, "threads_per_worker": 4}


@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["least", "most"])
def test_it_is_a_tfjob(options):
    names = ("run-1", "research", "checkpoints", False) if options else ()
    validate(manifest(names=names, **options))


def test_the_schema_can_refuse():
    jsonschema = pytest.importorskip("jsonschema")
    for path, value in [
        (("kind",), "Job"),
        (("spec", "replicas"), 2),
        (("spec", "runPolicy", "backofLimit"), 2),
        (("spec", "tfReplicaSpecs", "Worker", "replicas"), "2"),
    ]:
        found = manifest()
        place = found
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        with pytest.raises(jsonschema.ValidationError):
            validate(found)


def test_what_the_workers_run():
    found = manifest(3, names=("run-1", "research", "claim"), **EVERYTHING)
    assert found["metadata"] == {"name": "run-1", "namespace": "research"}
    replicas = found["spec"]["tfReplicaSpecs"]
    assert list(replicas) == ["Worker"] and replicas["Worker"]["replicas"] == 3
    pod = replicas["Worker"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["name"] == "tensorflow"
    assert container["image"] == "registry.example/train:1"
    assert container["command"] == ["python", "-u", "jobs/my_train.py", "--epochs", "3"]
    assert container["resources"] == {"limits": {"nvidia.com/gpu": "2", "cpu": "4"}}
    assert {"name": "OMP_NUM_THREADS", "value": "4"} in container["env"]
    mounts, volumes = container["volumeMounts"], pod["volumes"]
    assert [mount["name"] for mount in mounts] == [volume["name"] for volume in volumes]
    assert [mount["mountPath"] for mount in mounts] == ["/checkpoints", "/dev/shm"]
    assert volumes[0]["persistentVolumeClaim"] == {"claimName": "claim"}
    assert pod["terminationGracePeriodSeconds"] == 30


def pod_of(found):
    return found["spec"]["tfReplicaSpecs"]["Worker"]["template"]


def test_a_job_that_failed_gives_up_its_running_pods():
    """With "None" they kept their GPUs; with "All" the logs would be lost."""
    assert manifest()["spec"]["runPolicy"]["cleanPodPolicy"] == "Running"
    assert manifest(max_restarts=2)["spec"]["runPolicy"]["cleanPodPolicy"] == "Running"


def test_nccl_has_shared_memory():
    """A pod's /dev/shm has 64 MB, in which NCCL fails with a bus error."""
    pod = pod_of(manifest(gpus_per_worker=2))["spec"]
    assert pod["volumes"] == [{"name": "shared-memory", "emptyDir": {"medium": "Memory"}}]
    mount = {"name": "shared-memory", "mountPath": "/dev/shm"}
    assert pod["containers"][0]["volumeMounts"] == [mount]
    for options in ({}, {"gpus_per_worker": 0}):
        assert "volumes" not in pod_of(manifest(**options))["spec"]


def test_without_istios_sidecar_where_asked():
    assert "metadata" not in pod_of(manifest())
    found = manifest(names=(None, None, None, False))
    annotations = {"sidecar.istio.io/inject": "false"}
    assert pod_of(found)["metadata"] == {"annotations": annotations}
    validate(found)
    option = launch("--kubernetes", "image", "--workers", 2, "--no-istio", "train.py")
    assert pod_of(json.loads(option.out))["metadata"] == {"annotations": annotations}
    launch("--workers", 2, "--no-istio", "train.py").refused(
        "--no-istio is an option of --kubernetes. Received: it with --workers"
    )


def test_restarts_are_those_of_all_containers():
    spec = manifest(4, max_restarts=2)["spec"]
    assert spec["tfReplicaSpecs"]["Worker"]["restartPolicy"] == "OnFailure"
    # The operator fails the job when it has counted as many: 8 may pass, the next may not.
    assert spec["runPolicy"]["backoffLimit"] == 9
    spec = manifest(4)["spec"]
    assert spec["tfReplicaSpecs"]["Worker"]["restartPolicy"] == "Never"
    assert "backoffLimit" not in spec["runPolicy"]


@pytest.mark.parametrize(
    ("program", "name"),
    [
        (("jobs/My_Train.v2.py",), "my-train-v2"),
        (("-m", "pkg.train"), "pkg-train"),
        (("é.py",), "train"),
        (("x" * 80 + ".py",), "x" * 53),
    ],
)
def test_the_name_follows_from_the_program(program, name):
    assert yaml.safe_load(tfjob(Job(program=program), "image", 1))["metadata"]["name"] == name
