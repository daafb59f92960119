"""Exports of every kind of model, and models that must not be exported."""

import contextlib
import importlib.util
import json
import math
import os
import subprocess
import sys
import warnings

import forked_python
import numpy as np
import pytest
import tensorflow as tf
from covering import covering, sampled
from in_process_export import in_process as in_process

import keras_efficient as ke
from keras_efficient import flavor
from keras_efficient._errors import InputError, VerificationError
from keras_efficient.exporters import _export as export
from keras_efficient.versions._check_manifest import check_manifest
from tests.zoo import CLASSES, LENGTH, ZOO, model_garden

SPECIMENS = {specimen.name: specimen for specimen in ZOO}
IDS = np.ones((4, LENGTH), "int32")


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def variables_bytes(directory):
    return sum(file.stat().st_size for file in (directory / "variables").iterdir())


@pytest.fixture
def model():
    return SPECIMENS["keras-sequential"].make()


# --- verified in a separate process, as for users ----------------------------------------------


@pytest.fixture(
    scope="module", params=["kerashub-bert", "hugging-face-bert"], ids=lambda name: name
)
def exported(request, tmp_path_factory):
    specimen = SPECIMENS[request.param]
    model = specimen.make()
    folder = tmp_path_factory.mktemp("models") / "reviews"
    facts = {"accuracy": np.float32(0.75), "examples_per_second": 10, "seed": 7, "epochs": 2}
    report = ke.export(model, folder, sample=specimen.batch(4), facts=facts)
    return specimen, model, report


@sampled()
def test_export_is_whole(exported):
    specimen, _, report = exported
    assert report.directory.name == "1"
    assert names(report.directory.parent) == ["1"]
    assert report.max_abs_difference <= 1e-5 == report.tolerance
    written = json.loads((report.directory / "report.json").read_text())
    assert written == json.loads(report.to_json())
    assert list(written)[:2] == ["accuracy", "examples_per_second"]
    assert (written["accuracy"], written["seed"], written["facts"]) == (0.75, 7, {"epochs": 2})
    assert written["data_fingerprint"] is None
    for times in (written["latency_ms"]["batch_1"], written["latency_ms"]["batch_8"]):
        assert 0 < times["median"] <= times["p95"]
    assert written["max_rss_bytes"] > 1e8
    size = sum(file.stat().st_size for file in report.directory.rglob("*") if file.is_file())
    later = sum((report.directory / f).stat().st_size for f in ("report.json", "manifest.json"))
    assert written["bytes"] == size - later
    assert check_manifest(report.directory)["recipe"]["signatures"] == ["tokens"]
    assert set(written["versions"]) >= {"python", "tensorflow", specimen.library, "keras_efficient"}
    any_ids = {"dtype": "int32", "shape": [None, None]}
    assert written["signature"] == {
        "inputs": dict.fromkeys(sorted(specimen.batch(1)[0]), any_ids),
        "outputs": {"logits": {"dtype": "float32", "shape": [None, CLASSES]}},
    }


@sampled()
def test_export_answers_for_any_batch_and_length(exported):
    specimen, model, report = exported
    function = tf.saved_model.load(str(report.directory)).signatures["serving_default"]
    rng = np.random.default_rng(1)
    for shape in ((1, 2), (3, 11)):
        features = specimen.features(rng.integers(1, 50, shape).astype("int32"))
        answer = function(**{name: tf.constant(value) for name, value in features.items()})
        expected = flavor.of(model).call(model, features, training=False)
        expected = expected["logits"] if specimen.name == "hugging-face-bert" else expected
        np.testing.assert_allclose(answer["logits"], expected, atol=1e-6)


def test_export_holds_variables_only(exported):
    _, model, report = exported
    listed = tf.train.list_variables(str(report.directory / "variables" / "variables"))
    shapes = [shape for name, shape in listed if "/.ATTRIBUTES/VARIABLE_VALUE" in name]
    # Kernels that are read together are stored as one variable.
    assert sum(map(math.prod, shapes)) == model.count_params()
    assert b"_tf_keras" not in (report.directory / "saved_model.pb").read_bytes()
    assert not (report.directory / "keras_metadata.pb").exists()


@pytest.mark.full
@sampled()
@pytest.mark.slow
def test_saved_model_cli(exported, tmp_path):
    script = importlib.util.find_spec("tensorflow.python.tools.saved_model_cli").origin

    def cli(*arguments):
        command = [*forked_python.command("tensorflow"), script, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    specimen, model, report = exported
    where = ["--dir", str(report.directory)]
    shown = cli("show", *where, "--all")
    assert "signature_def['serving_default']" in shown
    assert "outputs['logits'] tensor_info" in shown
    features = specimen.batch(2)[0]
    assert all(f"inputs['{name}'] tensor_info" in shown for name in features)
    np.savez(tmp_path / "in.npz", **features)
    inputs = ";".join(f"{name}={tmp_path}/in.npz[{name}]" for name in features)
    signature = ["--tag_set", "serve", "--signature_def", "serving_default"]
    cli("run", *where, *signature, "--inputs", inputs, "--outdir", str(tmp_path))
    expected = flavor.of(model).call(model, features, training=False)
    expected = expected["logits"] if specimen.name == "hugging-face-bert" else expected
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, atol=1e-6)


def test_report_prints(exported):
    _, _, report = exported
    text = str(report)
    assert str(report.directory) in text.replace("\n", "")
    for part in ("0.7500", "10.0 examples/s", "Latency, batch 8", "logits: float32 [any, 3]"):
        assert part in text


# --- every kind of model, served in this process -----------------------------------------------


@sampled(2)
@pytest.mark.parametrize("specimen", ZOO, ids=repr)
def test_zoo(specimen, tmp_path, in_process):
    model = specimen.make()
    report = ke.export(model, tmp_path / "m", sample=specimen.batch(3))
    assert names(tmp_path / "m") == ["1"]
    expected = flavor.of(model).call(model, specimen.batch(3)[0], training=False)
    expected = expected["logits"] if specimen.name == "hugging-face-bert" else expected
    (answer,) = in_process[0].values()
    np.testing.assert_allclose(answer, expected, atol=1e-6)
    assert answer.shape == (3, CLASSES)
    assert report.weight_bytes == sum(w.numpy().nbytes for w in flavor.of(model).weights(model))


def test_model_garden_encoder_with_many_outputs(tmp_path, in_process):
    encoder = model_garden().networks.BertEncoder(
        vocab_size=50,
        hidden_size=8,
        num_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_sequence_length=16,
        dict_outputs=True,
    )
    names = ("input_word_ids", "input_mask", "input_type_ids")
    report = ke.export(encoder, tmp_path / "m", sample=dict.fromkeys(names, IDS))
    outputs = report.signature["outputs"]
    assert set(outputs) >= {"sequence_output", "pooled_output", "encoder_outputs_1"}
    assert outputs["sequence_output"]["shape"] == [None, None, 8]


def test_each_variable_is_written_once_and_upstream_still_writes_it_twice(tmp_path, in_process):
    """Keras 3's `model.export` doubles the weights, as measured with 3.15."""
    import keras

    model = keras.Sequential([keras.Input((100,)), keras.layers.Dense(1000)])
    report = ke.export(model, tmp_path / "ours", sample=np.ones((1, 100)))
    model.export(tmp_path / "upstream", verbose=False)
    assert report.weight_bytes == 4 * 101_000
    assert variables_bytes(report.directory) < 1.05 * report.weight_bytes
    assert variables_bytes(tmp_path / "upstream") > 1.95 * report.weight_bytes


def test_inference_mode_and_no_optimizer(tmp_path, in_process):
    import keras

    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.9),
        ]
    )
    model.compile("adam", "mse")
    model.fit(np.random.default_rng(0).normal(size=(8, 3)), np.ones((8, 4)), verbose=0)
    report = ke.export(model, tmp_path / "m", sample=np.ones((2, 3)))
    expected = model.predict(np.ones((2, 3)), verbose=0)
    np.testing.assert_allclose(in_process[0]["outputs"], expected, atol=1e-6)
    listed = tf.train.list_variables(str(report.directory / "variables" / "variables"))
    assert len([name for name, _ in listed if "VARIABLE_VALUE" in name]) == 6


def test_variables_that_are_not_weights_are_written_too(tmp_path, in_process):
    import keras

    class Scaled(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2)
            self.scale = tf.Variable(3.0)

        def call(self, inputs):
            return self.dense(inputs) * self.scale

    model = Scaled()
    expected = model(np.ones((1, 2)))
    assert not any(weight is model.scale for weight in flavor.of(model).weights(model))
    ke.export(model, tmp_path / "m", sample=np.ones((1, 2)))
    np.testing.assert_allclose(in_process[0]["outputs"], expected, atol=1e-6)


@pytest.mark.parametrize(
    "name, inside",
    covering(["keras-sequential", "tf_keras-functional"], [True, False], strength=1),
)
def test_mirrored_variables_are_written_once(tmp_path, in_process, name, inside):
    specimen = SPECIMENS[name]
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        model = specimen.make()
    with strategy.scope() if inside else contextlib.nullcontext():
        report = ke.export(model, tmp_path / "m", sample=specimen.batch(2))
    weights = flavor.of(model).weights(model)
    assert all(hasattr(weight, "values") for weight in weights)
    listed = tf.train.list_variables(str(report.directory / "variables" / "variables"))
    assert len([name for name, _ in listed if "VARIABLE_VALUE" in name]) == len(weights)


def test_low_precision_has_a_looser_default(tmp_path, in_process):
    import keras

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, dtype="mixed_bfloat16")])
    report = ke.export(model, tmp_path / "m", sample=np.ones((1, 3)))
    assert report.tolerance == 2e-2
    assert report.signature["outputs"]["outputs"]["dtype"] == "float32"
    report = ke.export(model, tmp_path / "m", sample=np.ones((1, 3)), tolerance=0.5)
    assert (report.tolerance, report.directory.name) == (0.5, "2")


def test_exact_version(tmp_path, model, in_process):
    assert ke.export(model, tmp_path / "m/7", sample=IDS).directory == tmp_path / "m/7"
    before = (tmp_path / "m/7/saved_model.pb").read_bytes()
    with pytest.raises(InputError, match="never overwrites a version"):
        ke.export(model, tmp_path / "m/7", sample=IDS)
    assert (tmp_path / "m/7/saved_model.pb").read_bytes() == before
    assert ke.export(model, tmp_path / "m", sample=IDS).directory == tmp_path / "m/8"


def test_report_names_the_version_that_won_the_race(tmp_path, model, in_process, monkeypatch):
    serve = export.run_without_keras

    def slow(*args, **kwargs):
        (tmp_path / "m/1").mkdir()
        return serve(*args, **kwargs)

    monkeypatch.setattr(export, "run_without_keras", slow)
    report = ke.export(model, tmp_path / "m", sample=IDS)
    assert report.directory == tmp_path / "m/2"
    assert (tmp_path / "m/2/report.json").exists()


# --- models that must not be exported ----------------------------------------------------------


def test_differing_export_is_refused_and_kept_aside(tmp_path, model, in_process, monkeypatch):
    serve = export.run_without_keras

    def wrong(*args, **kwargs):
        served, measured = serve(*args, **kwargs)
        tokens = {name: value + 0.25 for name, value in served["tokens"].items()}
        return {**served, "tokens": tokens}, measured

    monkeypatch.setattr(export, "run_without_keras", wrong)
    with pytest.raises(
        VerificationError, match=r"differs by 0\.25.*Nothing was exported; see"
    ) as e:
        ke.export(model, tmp_path / "m", sample=IDS)
    (aside,) = names(tmp_path / "m")
    assert aside.startswith(".1.refused-") and aside in str(e.value)
    assert (tmp_path / "m" / aside / "saved_model.pb").exists()
    assert ke.export(model, tmp_path / "m", sample=IDS, tolerance=1.0).directory.name == "1"


def test_model_that_computes_at_random_is_refused(tmp_path, in_process):
    import keras

    class Noisy(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2)

        def call(self, inputs):
            return self.dense(inputs) + tf.random.uniform([], 1, 100)

    model = Noisy()
    model(np.ones((1, 3)))
    with pytest.raises(VerificationError, match=r"'outputs' .* differs by \d.*tolerance 1e-05"):
        ke.export(model, tmp_path / "m", sample=np.ones((1, 3)))
    assert not any(name.isdecimal() for name in names(tmp_path / "m"))


@pytest.mark.parametrize(
    "stage, error",
    covering(
        [
            "tf.saved_model.save",
            "run_without_keras",
            "compare",
            "ExportReport",
            "to_json",
            "rename",
        ],
        [RuntimeError, KeyboardInterrupt],
        strength=1,
    ),
)
def test_a_failed_export_leaves_nothing_behind(
    tmp_path, model, in_process, monkeypatch, stage, error
):
    def die(*args, **kwargs):
        raise error("killed")

    if stage == "tf.saved_model.save":
        save = tf.saved_model.save

        def half(*args, **kwargs):
            save(*args, **kwargs)
            die()

        monkeypatch.setattr(tf.saved_model, "save", half)
    elif stage == "to_json":
        monkeypatch.setattr(export.ExportReport, "to_json", die)
    elif stage == "rename":
        monkeypatch.setattr(os, "rename", die)
    else:
        monkeypatch.setattr(export, stage, die)
    with pytest.raises(error, match="killed"):
        ke.export(model, tmp_path / "m", sample=IDS)
    assert names(tmp_path) == []


def test_not_a_keras_model(tmp_path):
    with pytest.raises(InputError, match="Expected a Keras object"):
        ke.export(tf.Module(), tmp_path / "m", sample=IDS)


@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_unbuilt_model(tmp_path, library):
    keras = flavor.get(library).keras
    with pytest.raises(InputError, match="must be built"):
        ke.export(keras.Sequential([keras.layers.Dense(2)]), tmp_path / "m", sample=IDS)


def test_bad_tolerance(tmp_path, model):
    for tolerance in (-1e-5, float("nan"), float("inf"), "1e-5", True):
        with pytest.raises(InputError, match="`tolerance` must be a finite number"):
            ke.export(model, tmp_path / "m", sample=IDS, tolerance=tolerance)


def test_bad_facts(tmp_path, model):
    for facts, message in [
        ({"a": object()}, "`facts` must be a dict"),
        ([1], "`facts` must be a dict"),
        ({"a": {1, 2}}, "`facts` must be a dict"),
        ({"accuracy": "83%"}, r"'accuracy' must be a number or None\. Received: '83%'"),
        ({"examples_per_second": [1]}, r"'examples_per_second' must be a number .*\[1\]"),
    ]:
        with pytest.raises(InputError, match=message):
            ke.export(model, tmp_path / "m", sample=IDS, facts=facts)


def test_sample_the_model_cannot_run_on(tmp_path):
    model = SPECIMENS["tf_keras-subclassed"].make()
    with pytest.raises(InputError, match=r"(?s)must run on the sample.*'wrong'.*KeyError"):
        ke.export(model, tmp_path / "m", sample={"wrong": IDS})


def test_model_that_computes_nan(tmp_path, model):
    model.set_weights([np.full(w.shape, np.nan) for w in model.get_weights()])
    with pytest.raises(InputError, match="NaN among the 12 values of output 'outputs'"):
        ke.export(model, tmp_path / "m", sample=IDS)


def test_model_that_only_runs_eagerly(tmp_path):
    import keras

    class Eager(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2)

        def call(self, inputs):
            return self.dense(inputs) * float(np.asarray(inputs).max())

    model = Eager()
    model(np.ones((1, 3)))
    with pytest.raises(InputError, match="must run as a TensorFlow graph"):
        ke.export(model, tmp_path / "m", sample=np.ones((1, 3)))


def test_facts_that_are_not_finite_are_null():
    from keras_efficient.exporters._export_report import check_facts

    assert check_facts({"accuracy": np.float32("nan"), "a": [float("inf"), np.int64(2)]}) == {
        "accuracy": None,
        "a": [None, 2],
    }


def test_look_up_table_is_refused(tmp_path):
    import keras

    class Lookup(keras.Model):
        def __init__(self):
            super().__init__()
            entries = tf.lookup.KeyValueTensorInitializer(tf.constant([1]), tf.constant([2]))
            self.table = tf.lookup.StaticHashTable(entries, 0)
            self.dense = keras.layers.Dense(2)

        def call(self, inputs):
            return self.dense(tf.cast(self.table.lookup(inputs), tf.float32))

    model = Lookup()
    model(IDS)
    with pytest.raises(InputError, match=r"nothing but variables and constants.*table_handle"):
        ke.export(model, tmp_path / "m", sample=IDS)


def test_a_full_disk_is_found_first_and_nothing_is_written(tmp_path, model, monkeypatch):
    monkeypatch.setattr(export, "_bytes", lambda variable: 10**15)
    with pytest.raises(InputError, match="free disk"):
        ke.export(model, tmp_path / "m", sample=None)
    assert names(tmp_path) == []


def test_packages_import_nothing_heavy():
    code = (
        "import sys, keras_efficient.exporters, keras_efficient.serving\n"
        "heavy = {'tensorflow', 'keras', 'tf_keras', 'transformers', 'matplotlib', 'jinja2'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match=r"No keras_efficient\.serving attribute nothing"):
        _ = ke.serving.nothing


def test_no_warning_for_plain_models(tmp_path, model, in_process):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        ke.export(model, tmp_path / "m", sample=IDS)
