"""Rounding by reconstruction (GPTQ): the solver against its definition, and over the zoo."""

import numpy as np
import pytest
import tensorflow as tf
from covering import covering, sampled
from zoo import FEW, ZOO

import keras_efficient as ke
from keras_efficient.compression import _reconstruction as reconstruction
from keras_efficient.compression._fake_quant import FakeQuant
from keras_efficient.compression._integers import from_integers, to_integers
from keras_efficient.compression._observers import batches_of, input_grams
from keras_efficient.compression._reconstruction import quantize_gptq
from keras_efficient.parametrize._parametrized_layer import transforms


def missed(gram, w, other):
    """‖XW - XV‖², of XᵀX."""
    return float(np.trace((w - other).T @ gram @ (w - other)))


def correlated(rng, n, inputs):
    """Inputs of different sizes that partly replace each other."""
    mixed = rng.normal(size=(n, inputs)) @ rng.normal(size=(inputs, inputs))
    return (mixed * rng.uniform(0.1, 3, inputs)).astype("float32")


def test_the_solver_is_the_definition():
    """Inputs in turn; each inverse is computed anew from the inputs that are left."""
    rng = np.random.default_rng(0)
    x, w = correlated(rng, 200, 20), rng.normal(size=(20, 6)).astype("float32")
    integers, scales = quantize_gptq(w, x.T @ x, 4)
    h = (x.T @ x).astype("float64")
    h += 0.01 * np.mean(np.diag(h)) * np.eye(20)
    left = w.astype("float64")
    for i in range(20):
        inverse = np.linalg.inv(h[i:, i:])[0]
        expected = np.clip(np.rint(left[i] / scales[0]), -7, 7)
        np.testing.assert_array_equal(integers[i], expected)
        left[i:] -= inverse[:, None] * (left[i] - expected * scales[0]) / inverse[0]


@sampled(2)
@pytest.mark.parametrize("bits, group_size", [(4, None), (4, 8), (4, 20), (8, None)])
def test_blocks_miss_less_than_rounding(bits, group_size, monkeypatch):
    monkeypatch.setattr(reconstruction, "BLOCK", 12)
    rng = np.random.default_rng(1)
    x, w = correlated(rng, 300, 40), rng.normal(size=(40, 9)).astype("float32")
    integers, scales = quantize_gptq(w, x.T @ x, bits, group_size)
    assert integers.dtype == np.int8
    assert scales.shape == (40 // (group_size or 40), 9)
    plain = from_integers(*to_integers(w, bits, group_size))
    assert missed(x.T @ x, w, from_integers(integers, scales)) < 0.6 * missed(x.T @ x, w, plain)


def test_zeros_stay_zero():
    rng = np.random.default_rng(2)
    x, w = correlated(rng, 300, 40), rng.normal(size=(40, 9)).astype("float32")
    w[rng.uniform(size=w.shape) < 0.6] = 0
    assert not quantize_gptq(w, x.T @ x, 4, 20)[0][w == 0].any()


def test_a_generator_of_batches_suffices():
    x, _ = ZOO[0].batch(6)
    report = ke.calibrate(ZOO[0].make(), (b for b in [x, x]), method="reconstruction")
    assert report.batches == 2


@sampled(2)
@pytest.mark.parametrize("specimen, activation_bits", covering(FEW, [8, None], strength=1))
def test_layers_of_the_zoo_have_a_smaller_error_than_by_rounding(specimen, activation_bits):
    x, y = specimen.batch(24)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    model = specimen.make()
    weights = ke.parametrize.select(model, caller="")
    grams = input_grams(model, weights, batches_of(data, ""))
    before = {weight.path: weight.matrix(weight.value).numpy() for weight in weights}
    options = {"weight_bits": 4, "activation_bits": activation_bits, "method": "reconstruction"}
    report = ke.calibrate(model, data, **options)
    assert bool(report.ranges) == bool(activation_bits)
    rounding = {t.weight.path: t for t in transforms(model, FakeQuant)}
    errors = np.zeros(2)
    for weight in weights:
        w, transform = before[weight.path], rounding[weight.path]
        # The rounded values are those of the chosen integers, bit for bit.
        integers, scales, _ = transform.integers()
        chosen, expected = quantize_gptq(w, grams[weight], 4)
        np.testing.assert_array_equal(integers, chosen)
        np.testing.assert_allclose(scales, expected, rtol=1e-6)
        rounded = from_integers(integers, scales)
        np.testing.assert_array_equal(weight.matrix(transform(weight.value)).numpy(), rounded)
        plain = from_integers(*to_integers(w, 4))
        errors += [missed(grams[weight], w, other) for other in (rounded, plain)]
    assert errors[0] < errors[1]


def test_weights_with_transforms_are_refused():
    model = ZOO[0].make()
    ke.lora(model, rank=2)
    with pytest.raises(ValueError, match=r"'reconstruction' changes the numbers of a weight\. Rec"):
        ke.calibrate(model, ZOO[0].batch(4), method="reconstruction")


def test_it_needs_data_even_where_inputs_stay_floats():
    with pytest.raises(ValueError, match=r"measures the inputs of layers\. Received: no `data`"):
        ke.calibrate(ZOO[0].make(), activation_bits=None, method="reconstruction")
