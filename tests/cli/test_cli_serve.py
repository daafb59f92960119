"""`keras-efficient serve`, with a server and a docker that only record how they were started."""

import csv
import itertools
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import text_models
from command_line import keras_efficient

from keras_efficient._errors import InputError
from keras_efficient.exporters.inference_ops import matmul
from keras_efficient.serving._tf_serving import server_command

#: Program that records its arguments, and the files in folders they name, in notes.json beside it.
RECORDER = """\
#!{python}
import json, os, sys
files = {{}}
for word in sys.argv[1:]:
    for part in word.split(","):
        path = part.split("=", 1)[-1]
        folder = path if os.path.isdir(path) else os.path.dirname(path)
        if "keras_efficient-serve-" in folder:
            for name in os.listdir(folder):
                files[name] = open(os.path.join(folder, name)).read()
with open(os.path.join(os.path.dirname(__file__), "notes.json"), "w") as out:
    json.dump({{"pid": os.getpid(), "arguments": sys.argv[1:], "files": files}}, out)
sys.exit(7)
"""


@pytest.fixture
def base(tmp_path):
    """Return the folder of a model with versions 1 and 3."""
    folder = tmp_path / "my models, all" / "reviews"
    for name in ("1", "3"):
        (folder / name).mkdir(parents=True)
        (folder / name / "saved_model.pb").write_bytes(b"graph")
        text_models.sign(folder / name)
    return folder


@pytest.fixture
def path(tmp_path, monkeypatch):
    """Return a function that puts recorders with these names, and nothing else, on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    def put(*names):
        for name in names:
            (folder / name).write_text(RECORDER.format(python=sys.executable))
            (folder / name).chmod(0o755)
        return folder

    return put


def serve(*words):
    """Run `serve` in a process, because it replaces its process by the server."""
    code = "from keras_efficient.cli import main; main()"
    child = subprocess.Popen(
        [sys.executable, "-c", code, "serve", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    out, err = child.communicate(timeout=120)
    assert child.returncode == 7, err
    return child.pid, out, err


def notes(folder):
    return json.loads((folder / "notes.json").read_text())


def flags(arguments):
    return dict(word.removeprefix("--").split("=", 1) for word in arguments)


def test_installed_server_with_the_newest_version(base, path):
    folder = path("tensorflow_model_server", "docker")
    pid, out, err = serve(base)
    noted = notes(folder)
    # The same process: signals reach the server, and the exit code is the server's.
    assert noted["pid"] == pid
    given = flags(noted["arguments"])
    config = Path(given.pop("monitoring_config_file"))
    assert given == {
        "port": "8500",
        "rest_api_port": "8501",
        "model_name": "reviews",
        "model_base_path": str(base),
    }
    assert config.is_absolute() and config.stat().st_mode & 0o004
    assert set(noted["files"]) == {"monitoring.config"}
    assert 'path: "/monitoring/prometheus/metrics"' in noted["files"]["monitoring.config"]
    assert not out and shlex.split(err)[1:] == noted["arguments"]


def test_installed_server_with_all_options(base, path, tmp_path, monkeypatch):
    folder = path("tensorflow_model_server")
    (tmp_path / "batching.txt").write_text("max_batch_size { value: 8 }")
    monkeypatch.chdir(tmp_path)
    serve(
        os.path.relpath(base / "1"),
        *("--name", "r.2-b", "--rest-port", 9001, "--grpc-port", 9000),
        *("--batching", "batching.txt", "--threads", 1),
    )
    noted = notes(folder)
    given = flags(noted["arguments"])
    config = Path(given["monitoring_config_file"]).parent
    assert given == {
        "port": "9000",
        "rest_api_port": "9001",
        "model_config_file": f"{config}/models.config",
        "monitoring_config_file": f"{config}/monitoring.config",
        "enable_batching": "true",
        "batching_parameters_file": str(tmp_path / "batching.txt"),
        "tensorflow_intra_op_parallelism": "1",
    }
    read_config(noted["files"]["models.config"], "r.2-b", base, 1)


def read_config(text, name, base, version):
    """Parse the configuration as the server does, and check it."""
    proto = pytest.importorskip("tensorflow_serving.config.model_server_config_pb2")
    from google.protobuf import text_format

    [config] = text_format.Parse(text, proto.ModelServerConfig()).model_config_list.config
    assert (config.name, config.base_path, config.model_platform) == (name, str(base), "tensorflow")
    assert list(config.model_version_policy.specific.versions) == [version]


def mounts(arguments):
    """Return `{target: source}` of a container's mounts, which must be read-only."""
    found = {}
    for word, value in itertools.pairwise(arguments):
        if word == "--mount":
            [fields] = csv.reader([value])
            assert fields[0] == "type=bind" and fields[-1] == "readonly"
            options = dict(field.split("=", 1) for field in fields[:-1])
            found[options["target"]] = options["source"]
    return found


def test_container_with_the_newest_version(base, path):
    folder = path("docker")
    pid, _, _ = serve(base)
    noted = notes(folder)
    arguments = noted["arguments"]
    assert noted["pid"] == pid
    assert arguments[:3] == ["run", "--rm", "--init"]
    where = mounts(arguments)
    config = Path(where.pop("/config"))
    # The folder's name contains a comma and a space.
    assert where == {"/models/reviews": str(base)}
    assert config.stat().st_mode & 0o005 == 0o005
    assert "8501:8501" in arguments and "8500:8500" in arguments
    image = arguments.index("tensorflow/serving")
    assert arguments[image - 2 : image] == ["-e", "MODEL_NAME=reviews"]
    # The image's entry point adds the name, the base path and the ports.
    assert arguments[image + 1 :] == ["--monitoring_config_file=/config/monitoring.config"]
    assert set(noted["files"]) == {"monitoring.config"}


def test_container_with_all_options(base, path, tmp_path):
    folder = path("docker")
    (tmp_path / "batching.txt").write_text("max_batch_size { value: 8 }")
    serve(
        base / "3",
        *("--name", "other", "--rest-port", 9001, "--grpc-port", 9000),
        *("--batching", tmp_path / "batching.txt", "--threads", 2),
    )
    noted = notes(folder)
    arguments = noted["arguments"]
    where = mounts(arguments)
    assert set(where) == {"/models/other", "/config", "/batching.config"}
    assert where["/models/other"] == str(base)
    assert where["/batching.config"] == str(tmp_path / "batching.txt")
    assert "9001:8501" in arguments and "9000:8500" in arguments
    assert arguments[arguments.index("tensorflow/serving") + 1 :] == [
        "--model_config_file=/config/models.config",
        "--monitoring_config_file=/config/monitoring.config",
        "--enable_batching=true",
        "--batching_parameters_file=/batching.config",
        "--tensorflow_intra_op_parallelism=2",
    ]
    read_config(noted["files"]["models.config"], "other", "/models/other", 3)


def test_neither_server_nor_docker(base, path):
    path()
    outcome = keras_efficient("serve", base)
    assert outcome.code == 1, outcome
    for part in (
        "https://www.tensorflow.org/tfx/serving/setup",
        "docker pull tensorflow/serving",
        f"--model_base_path={base}",
        "docker run --rm",
    ):
        assert part in outcome.out
    assert keras_efficient("serve", base, "--dry-run").code == 0


@pytest.mark.parametrize("program", ["tensorflow_model_server", "docker"])
def test_the_script_of_a_dry_run_works(program, base, path, tmp_path, monkeypatch):
    folder = path(program)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    outcome = keras_efficient("serve", base / "1", "--dry-run")
    assert outcome.code == 0, outcome
    assert sorted(tmp_path.rglob("*")) == before
    # Installation hints are printed only if there is no server.
    assert "https://" not in outcome.out
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    done = subprocess.run(["sh"], input=outcome.out, text=True, capture_output=True)
    assert done.returncode == 7, done.stderr
    name = "reviews"
    root = base if program != "docker" else f"/models/{name}"
    config = tmp_path / "reviews_serving"
    read_config((config / "models.config").read_text(), name, root, 1)
    assert "prometheus" in (config / "monitoring.config").read_text()
    arguments = notes(folder)["arguments"]
    if program == "docker":
        assert mounts(arguments)["/config"] == str(config)
    else:
        assert flags(arguments)["model_config_file"] == f"{config}/models.config"


def test_a_folder_with_quotes_in_its_name(tmp_path):
    base = tmp_path / 'a "b" \\c\nd' / "m"
    (base / "1").mkdir(parents=True)
    (base / "1" / "saved_model.pb").write_bytes(b"graph")
    text_models.sign(base / "1")
    read_config(server_command(base / "1").files()["models.config"], "m", base, 1)


# --- bad input -----------------------------------------------------------------------------------


@pytest.fixture
def nothing_starts(monkeypatch):
    def start(*args):
        raise AssertionError("a server was started")

    monkeypatch.setattr(os, "execv", start)


def test_a_damaged_version(base, nothing_starts):
    text_models.flip_a_byte(base / "3" / "saved_model.pb")
    keras_efficient("serve", base).refused("must match its manifest.json", "SHA-256")
    assert keras_efficient("serve", base / "1", "--dry-run").code == 0


def test_no_saved_model(base, nothing_starts):
    (base / "3" / "saved_model.pb").rename(base / "3" / "model.tflite")
    text_models.sign(base / "3")
    keras_efficient("serve", base).refused("serves SavedModels", "format='saved_model'")


def test_no_version(tmp_path, base, nothing_starts):
    keras_efficient("serve", tmp_path / "none").refused("folder must exist")
    keras_efficient("serve", tmp_path).refused("must hold versions")
    (base / "3").rename(base / "three")
    keras_efficient("serve", base / "three").refused("folders named by numbers")


def test_names_that_do_not_fit_into_a_url(base, nothing_starts):
    for name in ("", "a/b", "a:b", "-a", "größe", "a b"):
        with pytest.raises(InputError, match="becomes part of a URL"):
            server_command(base, name=name)


def test_ports_out_of_range(base, nothing_starts):
    for option in ("--rest-port", "--grpc-port"):
        for port in (0, 65536, -1):
            outcome = keras_efficient("serve", base, option, port)
            outcome.refused(f"{option} must be from 1 to 65535")


def test_one_port_for_both(base, nothing_starts):
    keras_efficient("serve", base, "--rest-port", 8500).refused("must differ")


def test_threads_out_of_range(base, nothing_starts):
    for threads in (0, -1):
        outcome = keras_efficient("serve", base, "--threads", threads)
        outcome.refused("--threads must be an integer of 1 or more")


def test_missing_batching_parameters(base, nothing_starts, tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        keras_efficient("serve", base, "--batching", path).refused("must name a file of batching")


def test_no_server_is_started_on_a_cpu_that_cannot_load_the_model(base, path, monkeypatch):
    """An int8 model of kernels of 8 bits; what a dry run prints may be for another machine."""
    started = []
    monkeypatch.setattr(os, "execv", lambda *command: started.append(command))
    path("tensorflow_model_server")
    answers = iter([True, False])
    monkeypatch.setattr(matmul, "saturates", lambda: next(answers))
    text_models.sign(base / "3", target="vnni")
    message = ("reviews/3, with target 'vnni' in its manifest.json", "again with target avx2")
    keras_efficient("serve", base).refused(*message)
    assert not started
    assert keras_efficient("serve", base, "--dry-run").code == 0
    for version in ("3", "1"):
        keras_efficient("serve", base / version)
    assert len(started) == 2
