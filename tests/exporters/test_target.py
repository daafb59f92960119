"""int8 exports for CPUs with and without VNNI."""

import json
import os
import subprocess
import warnings

import forked_python
import numpy as np
import pytest
import tensorflow as tf
from covering import sampled
from in_process_export import in_process as in_process
from zoo import ZOO

import keras_efficient as ke
from keras_efficient.compression._fake_quant import FakeQuant
from keras_efficient.exporters.inference_ops import cpu_check
from keras_efficient.exporters.inference_ops.matmul import saturates
from keras_efficient.parametrize._parametrized_layer import transforms
from keras_efficient.versions._check_manifest import check_manifest

BOTH = [ZOO[3], ZOO[4]]


def logits(model, x):
    return np.asarray(ke.flavor.of(model).call(model, x, training=False))


def saved_kernels(directory):
    variables = tf.saved_model.load(str(directory)).weights
    return [w.numpy() for w in variables if w.dtype == tf.int8 and "embed" not in w.name]


@pytest.mark.parametrize(("specimen", "target"), zip(BOTH, (None, "avx2"), strict=True), ids=str)
def test_a_reduced_range_is_exported_as_it_is(specimen, target, tmp_path, in_process):
    """Nothing is rounded once more: the file holds the integers of the model in memory."""
    model, x = specimen.make(), specimen.batch(8)[0]
    ke.quantize_aware(model, calibration=x, reduce_range=True)
    seen = logits(model, x)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="target=")
        report = ke.export(
            model, tmp_path / "m", sample=x, quantize="int8", target=target, latency=False
        )
    # It needs nothing, whatever this machine has.
    assert check_manifest(report.directory)["recipe"]["target"] == "avx2"
    assert not hasattr(tf.saved_model.load(str(report.directory)), "cpu_check")
    (answer,) = in_process[-1].values()
    np.testing.assert_allclose(answer, seen, rtol=0, atol=2e-3)
    # Queries, keys and values are joined in the file.
    saved = np.concatenate([k.ravel() for k in saved_kernels(report.directory)])
    kept = [t.integers()[0].ravel() for t in transforms(model, FakeQuant) if t.reduce_range]
    np.testing.assert_array_equal(np.sort(saved), np.sort(np.concatenate(kept)))
    assert abs(int(saved.min())) <= 63


@sampled()
@pytest.mark.parametrize("specimen", BOTH, ids=str)
def test_kernels_that_were_made_for_8_bits_are_reduced_with_a_warning(
    specimen, tmp_path, in_process
):
    x = specimen.batch(8)[0]
    options = {"sample": x, "quantize": "int8", "target": "avx2"}
    for method, check in (
        (lambda model: ke.quantize_aware(model, calibration=x), ke.exporters.check_export),
        (lambda model: ke.calibrate(model, x, method="mse"), ke.export),
    ):
        model = specimen.make()
        method(model)
        with pytest.warns(UserWarning, match="to 7 bits. Received: .* 8 bits .*reduce_range=True"):
            check(model, tmp_path / "m", **options)
        # The model's own kernels keep their 8 bits.
        assert not any(t.reduce_range for t in transforms(model, FakeQuant))
    model = specimen.make()
    ke.calibrate(model, x)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="target=")
        ke.export(model, tmp_path / "m", latency=False, **options)


def load_in_session(path):
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        tf.compat.v1.saved_model.load(session, ["serve"], path)


@pytest.mark.parametrize("load", [tf.saved_model.load, load_in_session])
def test_a_cpu_that_saturates_does_not_load_the_model(load, tmp_path, monkeypatch):
    """Simulated on any machine: the saved check expects another number than it gets."""
    module = tf.Module()
    module.cpu_check = cpu_check.CpuCheck()
    monkeypatch.setattr(cpu_check, "PROBE", 9.0)
    tf.saved_model.save(module, str(tmp_path))
    message = r"for CPUs that add .* exactly .*Received: a CPU.*again with target avx2.*\] \[[48]"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        load(str(tmp_path))


_SATURATED = """
import json, sys
import numpy as np
import tensorflow as tf
from keras_efficient.exporters.inference_ops.matmul import saturates
from keras_efficient.serving._predict_script import predict

exact, portable, inputs = sys.argv[1:]
found = predict(exact, "text", [["a"]], ["label"])
outcome = {"saturates": saturates(), "predict": found["error"]}
try:
    tf.saved_model.load(exact)
except tf.errors.InvalidArgumentError as error:
    outcome["loaded"] = str(error)
served = tf.saved_model.load(portable).signatures["tokens"]
x = {name: tf.constant(value) for name, value in np.load(inputs).items()}
(y,) = served(**x).values()
print(json.dumps(outcome | {"served": y.numpy().tolist()}))
"""


def test_products_of_a_cpu_without_vnni(tmp_path, in_process):
    """`ONEDNN_MAX_CPU_ISA` makes oneDNN compute as on an older CPU, where sums saturate."""
    if saturates():
        pytest.skip("an export for CPUs with VNNI is written on one")
    model, x = ZOO[3].make(), ZOO[3].batch(8)[0]
    ke.calibrate(model, x)
    options = {"sample": x, "quantize": "int8", "latency": False}
    exact = ke.export(model, tmp_path / "exact", **options).directory
    portable = ke.export(model, tmp_path / "portable", target="avx2", **options).directory
    (expected,) = in_process[-1].values()
    np.savez(tmp_path / "inputs.npz", **x)
    done = subprocess.run(
        [
            *forked_python.command("tensorflow"),
            "-c",
            _SATURATED,
            *map(str, (exact, portable, tmp_path / "inputs.npz")),
        ],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        check=True,
    )
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["saturates"]
    for message in (outcome["loaded"], outcome["predict"]):
        assert "Export the model again with target avx2" in message
    assert outcome["predict"].startswith("This SavedModel was exported for CPUs that add")
    np.testing.assert_allclose(outcome["served"], expected, rtol=0, atol=1e-5)
