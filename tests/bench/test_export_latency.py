"""`ExportLatency`: models are exported and timed once, and found in the cache afterwards."""

import dataclasses
import json

import numpy as np
import pytest
from zoo import CLASSES, keras_of

import keras_efficient as ke
from keras_efficient._errors import InputError
from keras_efficient.bench import _export_latency as module
from keras_efficient.bench._bench_report import BenchReport

both = pytest.mark.parametrize("library", ["keras", "tf_keras"])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_EFFICIENT_CACHE", str(tmp_path))
    return tmp_path / "latencies"


@pytest.fixture
def measured(monkeypatch):
    """The names of models in each measurement, in which nothing is exported."""
    calls = []

    def export(model, directory, **arguments):
        assert arguments["latency"] is False
        return type("Report", (), {"directory": directory})

    def bench(paths, **arguments):
        calls.append([*paths])
        # One thread is timed by the processor time.
        shown, other = ("processor_ms", "median_ms")[:: 1 if arguments["threads"] == 1 else -1]
        cases = [{"case": {shown: 10.0 * len(calls) + n, other: 1e3}} for n in range(len(paths))]
        return BenchReport(1, {n: {"cases": c} for n, c in zip(paths, cases, strict=True)})

    monkeypatch.setattr(module, "export", export)
    monkeypatch.setattr(module, "bench", bench)
    monkeypatch.setattr(module, "keras_export", lambda model, path, features: path)
    return calls


def classifier(library, units=4, dtype=None):
    layers = keras_of(library).layers
    inputs = layers.Input((None,), dtype="int32")
    x = layers.Embedding(20, units)(inputs)
    x = layers.GlobalAveragePooling1D()(x)
    return keras_of(library).Model(inputs, layers.Dense(CLASSES, dtype=dtype)(x))


SAMPLE = np.arange(12).reshape(3, 4).astype("int32")


@both
def test_models_of_the_same_sizes_are_measured_once(library, measured, cache):
    measure = ke.bench.ExportLatency(quantize="int8")
    model, small = classifier(library), classifier(library, 2)
    assert measure.compare(model, [model, small], SAMPLE) == (10.0, [10.0, 11.0])
    assert measured == [["0", "1"]]
    # Another process makes new models of the same sizes.
    again = [classifier(library), classifier(library, 2)]
    assert measure.compare(again[0], again, SAMPLE) == (10.0, [10.0, 11.0])
    assert len(measured) == 1 and len([*cache.iterdir()]) == 1
    measure.compare(model, [model, classifier(library, 3)], SAMPLE)
    assert len(measured) == 2


@both
def test_what_latency_depends_on_is_measured_anew(library, measured, monkeypatch):
    measure, model = ke.bench.ExportLatency(), classifier(library)
    measure(model, SAMPLE)
    others = [{"batch": 1}, {"length": 32}, {"threads": 2}, {"quantize": "int8"}]
    others += [{"format": "litert"}, {"baseline": "keras"}]
    for changed in others:
        count = len(measured)
        other = dataclasses.replace(measure, **changed)
        assert other(model, SAMPLE) == other(model, SAMPLE) < 1e3
        assert len(measured) == count + 1, changed
    assert measure(classifier(library, dtype="bfloat16"), SAMPLE)
    assert len(measured) == 8
    monkeypatch.setattr(module, "cpu_name", lambda: "another CPU")
    measure(model, SAMPLE)
    monkeypatch.setattr(module.keras_efficient, "__version__", "another version")
    measure(model, SAMPLE)
    assert len(measured) == 10
    dataclasses.replace(measure, cache=False)(model, SAMPLE)
    assert len(measured) == 11
    assert dataclasses.replace(measure, seconds=9)(model, SAMPLE)
    assert len(measured) == 11


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[1]",
        lambda text: json.dumps({**json.loads(text), "milliseconds": [-1.0]}),
        lambda text: json.dumps({**json.loads(text), "milliseconds": [1.0, 2.0]}),
        lambda text: json.dumps({**json.loads(text), "key": {}}),
        lambda text: text.replace("10.0", "NaN"),
    ],
)
def test_a_damaged_file_is_measured_anew(damage, measured, cache):
    measure, model = ke.bench.ExportLatency(), classifier("keras")
    assert measure(model, SAMPLE) == 10.0
    (file,) = cache.iterdir()
    file.write_text(damage(file.read_text()))
    assert measure(model, SAMPLE) == 20.0
    assert measure(model, SAMPLE) == 20.0
    assert len(measured) == 2


def test_without_a_cache_folder_it_is_measured_and_said(measured, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("KERAS_EFFICIENT_CACHE", str(tmp_path / "file"))
    measure, model = ke.bench.ExportLatency(), classifier("keras")
    with pytest.warns(UserWarning, match="so they will be measured again"):
        assert measure(model, SAMPLE) == 10.0


def test_the_baseline_is_measured_in_turns_with_the_models(measured):
    measure = ke.bench.ExportLatency(baseline="keras")
    model, small = classifier("keras"), classifier("keras", 2)
    assert measure.compare(model, [small], SAMPLE) == (10.0, [11.0])
    assert measure.compare(model, [small, model], SAMPLE) == (20.0, [22.0, 21.0])
    assert measured == [["baseline", "0"], ["baseline", "0", "1"]]
    assert str(measure) == "float32 SavedModel, 8 x 64 tokens against Keras' own float32 export"


def test_arguments_are_checked():
    for arguments, message in (
        ({"quantize": "int4"}, "`quantize` must be one of"),
        ({"format": "auto"}, "`format` must be one of"),
        ({"baseline": "float32"}, "`baseline` must be one of"),
        ({"batch": 0}, "`batch` must be a positive integer. Received: 0"),
        ({"length": 2.5}, "`length` must be a positive integer"),
        ({"threads": True}, "`threads` must be a positive integer"),
        ({"seconds": 0}, "`seconds` must be a positive number"),
    ):
        with pytest.raises(InputError, match=message):
            ke.bench.ExportLatency(**arguments)


@pytest.mark.full
@both
def test_a_model_is_exported_and_timed(library, cache):
    measure = ke.bench.ExportLatency(
        quantize="int8", batch=2, length=4, seconds=0.1, baseline="keras"
    )
    model = classifier(library)
    baseline, (ms,) = measure.compare(model, [model], SAMPLE)
    assert 0 < baseline < 1e3 and 0 < ms < 1e3
    (file,) = cache.iterdir()
    assert json.loads(file.read_text())["milliseconds"] == [baseline, ms]
