"""`keras-efficient bench`."""

import json

import numpy as np
import pytest
from command_line import keras_efficient
from covering import sampled

from tests.bench.bench_models import (
    VOCABULARY,
    Classifier,
    write_onnx,
    write_saved_model,
    write_tflite,
)

QUICK = ("--batch", 2, "--length", 4, "--seconds", 0.05, "--vocabulary", VOCABULARY)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "reviews"
    write_saved_model(folder / "1")
    return folder


def test_bench(saved, tmp_path):
    onnx = write_onnx(tmp_path / "m.onnx")
    litert = write_tflite(tmp_path / "m.tflite")
    np.savez(tmp_path / "data.npz", **Classifier().labelled())
    files = {"--data": tmp_path / "data.npz", "--json": tmp_path / "b.json"}
    files["--plot"] = tmp_path / "b.png"
    options = [part for pair in files.items() for part in pair]
    done = keras_efficient("bench", saved, "--onnx", onnx, "--litert", litert, *QUICK, *options)
    assert done.code == 0, done
    assert "batch 2, length 4" in done.out and "75.00%" in done.out
    written = json.loads((tmp_path / "b.json").read_text())
    assert list(written["targets"]) == [str(saved), str(onnx), str(litert)]
    for target in written["targets"].values():
        assert list(target["cases"]) == ["batch 2, length 4"] and target["accuracy"] == 0.75
    assert (tmp_path / "b.png").read_bytes()[:4] == b"\x89PNG"


def test_nothing_to_bench():
    keras_efficient("bench").refused("must be given a model. Received: none")


@pytest.mark.parametrize("option", ["--onnx", "--litert", "--openvino"])
def test_files_with_another_suffix(option, tmp_path):
    suffix = {"--onnx": ".onnx", "--litert": ".tflite", "--openvino": ".xml"}[option]
    keras_efficient("bench", option, tmp_path / "m.pb").refused(f"must name a {suffix} file")


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_output_files_in_missing_folders(option, saved, tmp_path):
    for path in (tmp_path, tmp_path / "nowhere" / "file.png"):
        keras_efficient("bench", saved, option, path).refused(option, "existing folder", path)


def test_numbers_out_of_range(saved):
    keras_efficient("bench", saved, "--threads", 0).refused("--threads must be")
    keras_efficient("bench", saved, "--batch", -1).refused("--batch must be")


DAMAGED = {
    "missing": None,
    "empty": lambda folder: (folder / "saved_model.pb").unlink(),
    "truncated graph": lambda folder: _cut(folder / "saved_model.pb"),
    "garbage": lambda folder: (folder / "saved_model.pb").write_bytes(b"\xff" * 1000),
    "no weights": lambda folder: (folder / "variables" / "variables.index").unlink(),
    "truncated weights": lambda folder: _cut(
        folder / "variables" / "variables.data-00000-of-00001"
    ),
    "bad manifest": lambda folder: (folder / "manifest.json").write_text("{"),
}


def _cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


#: Starts a process with TensorFlow and fails in it, as does "truncated weights".
SLOW = pytest.param("no weights", marks=pytest.mark.full)


@sampled(2)
@pytest.mark.parametrize("damage", [SLOW if name == "no weights" else name for name in DAMAGED])
def test_a_damaged_folder(damage, tmp_path):
    folder = tmp_path / "reviews" / "1"
    if DAMAGED[damage]:
        DAMAGED[damage](write_saved_model(folder))
    done = keras_efficient("bench", tmp_path / "reviews", *QUICK)
    in_process = damage in ("no weights", "truncated weights")
    done.refused("reviews", "run in a process without Keras" if in_process else "")
    assert len(done.err.strip().splitlines()) == 1


def test_a_graph_that_writes_files_is_not_run(tmp_path):
    import tensorflow as tf

    class Bad(Classifier):
        def serve(self, ids, mask):
            tf.io.write_file(str(tmp_path / "taken"), "over")
            return super().serve(ids, mask)

    write_saved_model(tmp_path / "bad" / "1", Bad())
    (tmp_path / "taken").unlink(missing_ok=True)
    keras_efficient("bench", tmp_path / "bad", *QUICK).refused("WriteFile")
    assert not (tmp_path / "taken").exists()
