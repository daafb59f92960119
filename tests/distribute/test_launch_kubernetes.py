"""The manifest for Kubeflow's operator, checked against the schema of a TFJob."""

import json
from pathlib import Path

import pytest
import yaml

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
    names = ("run-1", "research", "checkpoints") if options else ()
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
    (mount,), (volume,) = container["volumeMounts"], pod["volumes"]
    assert mount == {"name": volume["name"], "mountPath": "/checkpoints"}
    assert volume["persistentVolumeClaim"] == {"claimName": "claim"}
    assert pod["terminationGracePeriodSeconds"] == 30


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
