"""Jobs on Ray: a fake Ray records the requests, and the real one runs if it is installed."""

import importlib.util
import json
import os
import sys
import types
from pathlib import Path

import pytest
from launching import launch

from keras_efficient.distribute.launcher import ray_job
from keras_efficient.distribute.launcher.job import Job

HEAD = "import json, os, sys\nfrom pathlib import Path\nhere = Path(__file__).parent\n"


def program(folder, body):
    """Write a script that does not use the launcher's variables, which Ray does not set."""
    (folder / "script.py").write_text(HEAD + body)
    return folder / "script.py"


class Settings(types.SimpleNamespace):
    """A fake of Ray's ScalingConfig, RunConfig and FailureConfig."""


class TensorflowTrainer:
    """Runs the loop for each worker, one after the other, as often as Ray would."""

    made = None

    def __init__(self, loop, *, train_loop_config, scaling_config, run_config):
        self.loop, self.config = loop, json.loads(json.dumps(train_loop_config))
        self.scaling, self.run = scaling_config, run_config
        TensorflowTrainer.made = self

    def fit(self):
        for attempt in range(self.run.failure_config.max_failures + 1):
            try:
                self.attempt()
                return
            except RuntimeError:
                if attempt == self.run.failure_config.max_failures:
                    raise

    def attempt(self):
        for index in range(self.scaling.num_workers):
            cluster = {"worker": [f"10.0.0.{n}:1" for n in range(self.scaling.num_workers)]}
            task = {"type": "worker", "index": index}
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": task}))
                patch.setenv("TF_USE_LEGACY_KERAS", "1")
                self.loop(self.config)


@pytest.fixture
def ray(monkeypatch):
    modules = {name: types.ModuleType(name) for name in ("ray", "ray.train")}
    modules["ray.train.tensorflow"] = types.ModuleType("ray.train.tensorflow")
    modules["ray.train.tensorflow"].TensorflowTrainer = TensorflowTrainer
    for name in ("ScalingConfig", "RunConfig", "FailureConfig"):
        setattr(modules["ray.train"], name, Settings)
    modules["ray"].train = modules["ray.train"]
    modules["ray"].is_initialized = lambda: False
    modules["ray"].shutdown = lambda: None
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return modules["ray"]


def submit(path, *words, workers=2, **options):
    return ray_job.submit(Job(program=(str(path), *words), **options), workers)


@pytest.mark.parametrize("legacy", [None, "1", "0", ""])
def test_every_worker_runs_the_program(ray, tmp_path, legacy, monkeypatch):
    """With the user's TF_USE_LEGACY_KERAS and not with Ray's."""
    if legacy is None:
        monkeypatch.delenv("TF_USE_LEGACY_KERAS", raising=False)
    else:
        monkeypatch.setenv("TF_USE_LEGACY_KERAS", legacy)
    body = """
index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
(here / f"{index}").write_text(json.dumps(
    [sys.argv[1:], os.getcwd(), os.environ.get("TF_USE_LEGACY_KERAS"),
     os.environ.get("OMP_NUM_THREADS")]))
"""
    assert submit(program(tmp_path, body), "--a", "b c", threads_per_worker=3) == 0
    for index in range(2):
        found = json.loads((tmp_path / str(index)).read_text())
        assert found == [["--a", "b c"], os.getcwd(), legacy, "3"]


def test_what_ray_is_asked_for(ray, tmp_path):
    path = program(tmp_path, "")
    submit(path, workers=3, gpus_per_worker=2, threads_per_worker=4, max_restarts=5)
    made = TensorflowTrainer.made
    assert made.scaling.num_workers == 3 and made.scaling.use_gpu is True
    assert made.scaling.resources_per_worker == {"CPU": 4, "GPU": 2}
    assert made.run.failure_config.max_failures == 5
    submit(path)
    assert TensorflowTrainer.made.scaling.resources_per_worker == {"CPU": 1}
    assert TensorflowTrainer.made.scaling.use_gpu is False


def test_a_failure_is_said_and_counted(ray, tmp_path, capfd):
    path = program(tmp_path, "open(here / 'tries', 'a').write('x'); sys.exit(3)")
    assert submit(path, max_restarts=2) == 1
    assert (tmp_path / "tries").read_text() == "xxx"
    assert "script.py ended with exit code 3." in capfd.readouterr().err


def test_a_worker_killed_by_a_signal_has_the_usual_code(tmp_path):
    path = program(tmp_path, "os.kill(os.getpid(), 9)")
    config = {"program": [str(path)], "folder": str(tmp_path), "variables": {}, "grace": 1}
    config["legacy_keras"] = None
    with pytest.raises(RuntimeError, match=r"script\.py ended with exit code 137\."):
        ray_job.run_program(config)


def test_without_ray_it_is_said_how_to_get_it(tmp_path):
    if importlib.util.find_spec("ray"):
        pytest.skip("Ray is installed")
    ended = launch("--ray", "--workers", 2, program(tmp_path, ""))
    ended.refused("--ray needs Ray", "pip install 'keras_efficient[ray]'")


def test_dry_run_starts_nothing(tmp_path):
    ended = launch("--ray", "--workers", 2, "--dry-run", program(tmp_path, "1 / 0"), "x")
    assert ended.code == 0 and "2 workers of Ray" in ended.out


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="Ray is not installed")
def test_the_real_ray(tmp_path):
    body = """
config = json.loads(os.environ["TF_CONFIG"])
(here / str(config["task"]["index"])).write_text(json.dumps(config))
"""
    ended = launch("--ray", "--workers", 2, program(tmp_path, body))
    assert ended.code == 0, ended
    first, second = (json.loads(Path(tmp_path / str(i)).read_text()) for i in range(2))
    assert first["cluster"] == second["cluster"] and len(set(first["cluster"]["worker"])) == 2
