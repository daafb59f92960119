"""int8 exports for CPUs with and without VNNI."""

import warnings

import numpy as np
import pytest
import tensorflow as tf
from covering import sampled
from in_process_export import in_process as in_process
from zoo import ZOO

import keras_efficient as ke
from keras_efficient.compression._fake_quant import FakeQuant
from keras_efficient.parametrize._parametrized_layer import transforms

BOTH = [ZOO[3], ZOO[4]]


def logits(model, x):
    return np.asarray(ke.flavor.of(model).call(model, x, training=False))


def saved_kernels(directory):
    variables = tf.saved_model.load(str(directory)).weights
    return [w.numpy() for w in variables if w.dtype == tf.int8 and "embed" not in w.name]


@pytest.mark.parametrize("specimen", BOTH, ids=str)
def test_a_reduced_range_is_exported_as_it_is(specimen, tmp_path, in_process):
    """Nothing is rounded once more: the file holds the integers of the model in memory."""
    model, x = specimen.make(), specimen.batch(8)[0]
    ke.quantize_aware(model, calibration=x, reduce_range=True)
    seen = logits(model, x)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="target=")
        report = ke.export(
            model, tmp_path / "m", sample=x, quantize="int8", target="avx2", latency=False
        )
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
    for method in (
        lambda model: ke.quantize_aware(model, calibration=x),
        lambda model: ke.calibrate(model, x, method="mse"),
    ):
        model = specimen.make()
        method(model)
        for check in (ke.exporters.check_export, ke.export):
            with pytest.warns(UserWarning, match="to 7 bits. Received: .* 8 bits .*reduce_range=T"):
                check(model, tmp_path / "m", **options)
        # The model's own kernels keep their 8 bits.
        assert not any(t.reduce_range for t in transforms(model, FakeQuant))
    model = specimen.make()
    ke.calibrate(model, x)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="target=")
        ke.export(model, tmp_path / "m", latency=False, **options)
