"""Compressed models in every format: exported, loaded without Keras, and equal."""

import os
import shutil
import signal
import subprocess
import time

import forked_python
import numpy as np
import pytest
import tensorflow as tf
from covering import covering, sampled
from in_process_export import in_process as in_process
from zoo import ZOO

import keras_efficient as ke
from keras_efficient._errors import InputError, VerificationError
from keras_efficient.compression._fake_quant import FakeQuant
from keras_efficient.exporters import _arguments, _export as export_module
from keras_efficient.exporters.inference_ops import matmul
from keras_efficient.parametrize._parametrized_layer import transforms
from keras_efficient.versions._check_manifest import check_manifest

TRANSFORMS = {
    "none": lambda m, x: None,
    "prune": lambda m, x: ke.prune(m, 0.5),
    "quantize": lambda m, x: ke.quantize_aware(m, calibration=x),
    "lora": lambda m, x: ke.lora(m, rank=2),
    "cluster": lambda m, x: ke.cluster(m, clusters=4),
}
#: By format, the allowed difference from the model in memory, whose outputs are below 1.
TOLERANCES = {None: 1e-5, "bfloat16": 1e-2, "int8-weights": 1e-2, "int8": 1e-2}
#: A model of either library.
BOTH = [ZOO[3], ZOO[4]]
FORMATS = list(TOLERANCES)


def logits(model, x):
    return np.asarray(ke.flavor.of(model).call(model, x, training=False))


@sampled()
@pytest.mark.parametrize(
    "specimen, transform, quantize", covering(BOTH, TRANSFORMS, FORMATS, strength=1)
)
def test_every_transform_in_every_format(specimen, transform, quantize, tmp_path, in_process):
    model, x = specimen.make(), specimen.batch(8)[0]
    TRANSFORMS[transform](model, x)
    seen, weights = logits(model, x), model.get_weights()
    report = ke.export(model, tmp_path / "m", sample=x, quantize=quantize, latency=False)
    (answer,) = in_process[-1].values()
    np.testing.assert_allclose(answer, seen, rtol=0, atol=TOLERANCES[quantize])
    assert check_manifest(report.directory)["recipe"]["quantize"] == quantize
    assert report.quantize == quantize
    np.testing.assert_array_equal(logits(model, x), seen)
    for a, b in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@sampled()
@pytest.mark.parametrize(
    "specimen, transform",
    [
        pytest.param(
            specimen,
            transform,
            id=f"{specimen}-{transform}",
            # test_litert.py has all of them, without the other parts of an export.
            marks=[] if transform == once else pytest.mark.full,
        )
        for specimen, once in zip(BOTH, ("prune", "quantize"), strict=True)
        for transform in TRANSFORMS
    ],
)
def test_every_transform_in_litert(specimen, transform, tmp_path):
    pytest.importorskip("ai_edge_litert", reason="LiteRT files are verified with ai-edge-litert")
    model, x = specimen.make(), specimen.batch(8)[0]
    TRANSFORMS[transform](model, x)
    report = ke.export(model, tmp_path / "m", sample=x, format="litert")
    assert report.max_abs_difference <= 1e-2
    assert sorted(p.name for p in report.directory.iterdir()) == [
        "manifest.json",
        "model.tflite",
        "report.json",
    ]
    assert check_manifest(report.directory)["recipe"]["format"] == "litert"


@sampled()
@pytest.mark.parametrize(
    "specimen, quantize", covering(BOTH, ["bfloat16", "int8-weights", "int8"], strength=1)
)
def test_a_separate_process_runs_every_format(specimen, quantize, tmp_path):
    model, (x, y) = specimen.make(), specimen.batch(8)
    y = logits(model, x).argmax(-1)
    report = ke.export(
        model, tmp_path / "m", sample=x, quantize=quantize, evaluate=(x, y), latency=False
    )
    # The labels are the predictions of the model.
    assert report.evaluation["in_memory"] == 1.0 and report.evaluation["examples"] == 8
    assert report.accuracy == report.evaluation["served"] >= 0.995
    share = report.weight_bytes / sum(w.nbytes for w in model.get_weights())
    assert share < {"bfloat16": 0.8, "int8-weights": 0.8, "int8": 0.9}[quantize]


def test_an_export_that_loses_accuracy_is_refused(tmp_path, in_process, monkeypatch):
    model, (x, _) = ZOO[0].make(), ZOO[0].batch(8)
    y = logits(model, x).argmax(-1)
    run = export_module.run_without_keras

    def wrong(*args, **kwargs):
        served, measured = run(*args, **kwargs)
        worst = [{name: -x for name, x in batch.items()} for batch in served["batches"]]
        return {**served, "batches": worst}, measured

    monkeypatch.setattr(export_module, "run_without_keras", wrong)
    with pytest.raises(
        VerificationError, match=r"lower accuracy.* 0\.0000 instead of 1\.0000 on 8 .*see"
    ):
        ke.export(model, tmp_path / "m", sample=x, evaluate=(x, y), latency=False)
    allowed = ke.exporters.Evaluation([(x, y)], max_drop=1.0)
    ke.export(model, tmp_path / "m", sample=x, evaluate=allowed, latency=False)


def test_bad_evaluations(tmp_path):
    model, (x, y) = ZOO[0].make(), ZOO[0].batch(4)
    for evaluate, message in [
        (lambda x, y: ke.exporters.Evaluation((x, y), max_drop=2), "`max_drop` must be a share"),
        (lambda x, y: [x], "must be batches"),
        (lambda x, y: [], "must hold examples"),
        (lambda x, y: (x, np.zeros((len(y), 3, 2))), "compares classes"),
        (lambda x, y: (x, np.ones((len(y), 3))), "one class per example"),
        (lambda x, y: (x, y, np.ones((len(y), 2))), "one weight per example"),
        (lambda x, y: tf.data.Dataset.from_tensors((x, y)).repeat(), "must end"),
    ]:
        with pytest.raises(InputError, match=message):
            ke.export(model, tmp_path / "m", sample=x, evaluate=evaluate(x, y))
        assert not (tmp_path / "m").exists()


def test_a_model_that_does_not_classify_is_not_evaluated(tmp_path):
    keras = pytest.importorskip("keras")
    model = keras.Sequential([keras.Input((3, 2)), keras.layers.Dense(2)])
    x = np.ones((4, 3, 2), "float32")
    with pytest.raises(InputError, match="Accuracy needs one float output"):
        ke.export(model, tmp_path / "m", sample=x, evaluate=(x, np.zeros(4)))


def test_weights_and_probabilities(tmp_path, in_process):
    keras = pytest.importorskip("keras")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, activation="sigmoid")])
    x = np.random.default_rng(0).normal(size=(40, 3)).astype("float32")
    right = np.asarray(model(x))[:, 0] > 0.5
    assert 5 < right.sum() < 35
    report = ke.export(model, tmp_path / "m", sample=x, evaluate=(x, right), latency=False)
    assert report.evaluation["in_memory"] == report.evaluation["served"] == 1.0
    half = np.where(np.arange(40) < 20, right, ~right)
    kept = (np.arange(40) < 20).astype("float32")
    report = ke.export(model, tmp_path / "m", sample=x, evaluate=(x, half, kept), latency=False)
    assert report.evaluation["in_memory"] == 1.0
    report = ke.export(
        model, tmp_path / "m", sample=x, evaluate=(x, keras.ops.one_hot(half * 1, 1)), latency=False
    )
    assert report.evaluation["examples"] == 40


def test_layers_that_keras_quantized_are_refused(tmp_path):
    keras = pytest.importorskip("keras")
    for change in (lambda d: d.enable_lora(2), lambda d: d.quantize("int8")):
        model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8)])
        change(model.layers[-1])
        for quantize in ("int8", "int8-weights", "bfloat16"):
            with pytest.raises(InputError, match="without Keras' own LoRA or quantization"):
                ke.export(model, tmp_path / "m", sample=np.ones((2, 8)), quantize=quantize)


def test_a_model_that_is_not_quantized_yet_is_refused(tmp_path):
    model, x = ZOO[0].make(), ZOO[0].batch(4)[0]
    ke.quantize_aware(model, calibration=x, begin_step=5)
    with pytest.raises(InputError, match="begins at update 5, which it has not reached"):
        ke.export(model, tmp_path / "m", sample=x, quantize="int8-weights")


def test_bad_options(tmp_path):
    model, x = ZOO[0].make(), ZOO[0].batch(2)[0]
    for options, message in [
        ({"quantize": "int3"}, r"`quantize` must be one of \(None, 'int8'"),
        ({"format": "pmml"}, "`format` must be one of"),
        ({"format": "onnx", "signatures": "text"}, "with a text signature"),
        ({"format": "litert", "quantize": "bfloat16"}, "with quantize='bfloat16'"),
        ({"format": "litert", "signatures": ("text",)}, "with a text signature"),
        ({"signatures": ("text",)}, "need `tokenizer`"),
        ({"signatures": ("texts",)}, "`signatures` must be some of"),
        ({"signatures": ()}, "`signatures` must be some of"),
    ]:
        with pytest.raises(InputError, match=message):
            ke.export(model, tmp_path / "m", sample=x, **options)
        assert not (tmp_path / "m").exists()


def test_a_machine_without_int8_products_is_refused(tmp_path, monkeypatch):
    def multiply(*args, **kwargs):
        raise tf.errors.NotFoundError(None, None, "No registered '_QuantizedMatMul' OpKernel")

    monkeypatch.setattr(matmul, "multiply", multiply)
    matmul.saturates.cache_clear()
    model, x = ZOO[0].make(), ZOO[0].batch(2)[0]
    try:
        with pytest.raises(InputError, match=r"int8'.*fails.*int8-weights"):
            ke.export(model, tmp_path / "m", sample=x, quantize="int8")
    finally:
        matmul.saturates.cache_clear()
    # A server without the operation prints its name, which says what to do.
    assert "else_export_int8" in matmul._NODE


def test_the_target_of_an_export(tmp_path, monkeypatch, in_process):
    """On a CPU whose products saturate, kernels have 7 bits, and other targets are refused."""
    model, x = ZOO[0].make(), ZOO[0].batch(8)[0]
    ke.calibrate(model, x)
    monkeypatch.setattr(_arguments, "saturates", lambda: True)
    for target in ("vnni", "amx"):
        with pytest.raises(InputError, match=f"target='{target}' on a CPU without VNNI"):
            ke.export(model, tmp_path / "m", sample=x, quantize="int8", target=target)
    for options in ({"quantize": "int8", "target": "arm"}, {"target": "avx2"}):
        with pytest.raises(InputError, match="`target` is one of"):
            ke.export(model, tmp_path / "m", sample=x, **options)
    assert not (tmp_path / "m").exists()
    report = ke.export(model, tmp_path / "m", sample=x, quantize="int8", latency=False)
    assert check_manifest(report.directory)["recipe"]["target"] == "avx2"
    served = tf.saved_model.load(str(report.directory))
    kernels = [w.numpy() for w in served.weights if w.dtype == tf.int8 and "embed" not in w.name]
    assert kernels and max(abs(int(k.min())) for k in kernels) <= 63
    # The model's own kernels keep their 8 bits.
    assert not any(t.reduce_range for t in transforms(model, FakeQuant))


def test_an_archive_beside_the_version(tmp_path, in_process):
    model, x = ZOO[0].make(), ZOO[0].batch(4)[0]
    ke.prune(model, 0.8)
    report = ke.export(model, tmp_path / "m", sample=x, quantize="int8-weights", compress=True)
    (file,) = [p for p in (tmp_path / "m").iterdir() if p.is_file()]
    assert file.stat().st_size < report.bytes
    ke.versions.unpack(file, tmp_path / "again")
    # An archive counts as a version: it is not overwritten, and its number is not used again.
    shutil.rmtree(report.directory)
    with pytest.raises(InputError, match="An archive is never overwritten"):
        ke.export(model, tmp_path / "m/1", sample=x, compress=True)
    assert ke.export(model, tmp_path / "m", sample=x).directory.name == "2"


_EXPORT = """
import os, sys
sys.path[:0] = sys.argv[2:4]
import conftest
from zoo import ZOO
import keras_efficient as ke
from in_process_export import serve_here
import pytest
serve_here(pytest.MonkeyPatch())
model, x = ZOO[0].make(), ZOO[0].batch(4)[0]
print(os.getpid(), flush=True)
while True:
    ke.export(model, sys.argv[1], sample=x, quantize="int8-weights", latency=False)
    print("written", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "exports_before_each_kill",
    # The first export of a process takes longest: kill it in the first, second or third.
    [[1], pytest.param([kill % 3 for kill in range(20)], marks=pytest.mark.full)],
    ids=["once", "20 times"],
)
def test_a_version_is_complete_or_absent_after_a_kill(exports_before_each_kill, tmp_path):
    rng = np.random.default_rng(0)
    tests = os.path.dirname(os.path.dirname(__file__))
    python = forked_python.command(*forked_python.TRAINING)
    for exports in exports_before_each_kill:
        child = subprocess.Popen(
            [*python, "-c", _EXPORT, str(tmp_path / "m"), tests, os.path.dirname(tests)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        pid = int(child.stdout.readline())
        for _ in range(exports):
            assert child.stdout.readline() == "written\n"
        time.sleep(float(rng.uniform(0, 1.5)))
        os.kill(pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
        versions = [p for p in (tmp_path / "m").glob("*") if p.name.isdecimal()]
        for version in versions:
            check_manifest(version)
    assert len(versions) >= sum(exports_before_each_kill) >= 1
    # The next export removes the folders of killed ones.
    model, x = ZOO[0].make(), ZOO[0].batch(4)[0]
    report = ke.export(model, tmp_path / "m", sample=x, latency=False)
    assert not list((tmp_path / "m").glob(".*.partial-*"))
    loaded = tf.saved_model.load(str(report.directory)).signatures["serving_default"]
    assert loaded(inputs=tf.constant(x)) if not isinstance(x, dict) else True
