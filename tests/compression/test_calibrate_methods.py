"""`ke.calibrate`: the ranges that each method measures, and Keras' own methods."""

import numpy as np
import pytest
from compression_helpers import activation_quantizers, libraries, outputs, quick, small
from covering import covering, sampled
from fit_helpers import fit
from zoo import FEW, ZOO, keras_of

import keras_efficient as ke
from keras_efficient.architecture._weights import all_weights
from keras_efficient.compression._activation_quantization import (
    along_inputs,
    input_axes,
)
from keras_efficient.compression._calibrate import smoothing
from keras_efficient.compression._fake_quant import FakeQuant
from keras_efficient.compression._integers import from_integers, to_integers
from keras_efficient.compression._observers import ActivationStats
from keras_efficient.compression._range_estimation import (
    least_error_range,
    percentile_range,
    weight_clip,
)
from keras_efficient.parametrize._attach import updaters
from keras_efficient.parametrize._parametrized_layer import transforms

METHODS = ["minmax", "percentile", "mse", "reconstruction", "smoothquant"]


@sampled()
@pytest.mark.parametrize("specimen, method", covering(FEW, METHODS, strength=1))
def test_outputs_stay_close_and_are_saved(specimen, method, tmp_path):
    x, y = specimen.batch(12)
    model = specimen.make()
    before = outputs(model, x)
    report = ke.calibrate(model, (x, y), method=method)
    rounded = outputs(model, x)
    largest = np.abs(before).max()
    assert 0 < np.abs(rounded - before).max() < 0.02 * largest + 2e-3
    assert len(report.ranges) == len(activation_quantizers(model)) > 0
    assert report.unused == ()
    assert f"calibrate: {method}" in str(report)
    assert not updaters(model)
    model.save_weights(tmp_path / "m.weights.h5")
    again = specimen.make()
    ke.calibrate(again, specimen.batch(3, seed=5), method=method)
    assert np.abs(outputs(again, x) - rounded).max() > 0
    again.load_weights(tmp_path / "m.weights.h5")
    np.testing.assert_array_equal(outputs(again, x), rounded)
    ke.merge(again)
    np.testing.assert_allclose(outputs(again, x), before, atol=0.02 * largest + 2e-3)


@sampled()
@pytest.mark.parametrize("specimen", [ZOO[0], ZOO[3], ZOO[6]], ids=repr)
def test_smoothing_changes_no_product(specimen):
    """Before rounding, the input is divided by what the weight is multiplied with."""
    x, _ = specimen.batch(12)
    model = specimen.make()
    before = outputs(model, x)
    ke.calibrate(model, x, method="smoothquant")
    assert all(part.smooth is not None for part in activation_quantizers(model))
    for part in activation_quantizers(model):
        assert np.abs(part.smooth.numpy() - 1).max() > 1e-3
        part.range.assign([0, 0, 0])
    for transform in transforms(model, FakeQuant):
        # So many bits leave nothing to round.
        transform.bits = 22
    np.testing.assert_allclose(outputs(model, x), before, atol=1e-5)
    for transform in transforms(model, FakeQuant):
        if transform.smooth is not None:
            transform.bits = 8
            integers, scales, smooth = transform.integers()
            rounded = np.asarray(transform.weight.matrix(transform(transform.weight.value)))
            expected = from_integers(integers, scales) / smooth[:, None]
            np.testing.assert_array_equal(rounded, expected)


@libraries
def test_outliers_are_smoothed(library):
    """Without smoothing, an input 300 times larger than the others rounds these to zero."""
    keras = keras_of(library)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 16)).astype("float32")
    x[:, 3] *= 300
    errors = {}
    for method in ("minmax", "smoothquant"):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.layers.Input((16,)), keras.layers.Dense(8)])
        kernel = model.get_weights()[0]
        kernel[3] /= 300
        model.set_weights([kernel, np.zeros(8, "float32")])
        before = outputs(model, x)
        ke.calibrate(model, x, method=method)
        errors[method] = np.abs(outputs(model, x) - before).max()
    assert errors["smoothquant"] < errors["minmax"] / 10


def test_smoothing_is_the_papers():
    x, w = np.array([4.0, 1.0, 0.0]), np.array([[1.0, -0.5], [0.25, 0.1], [1, 1]])
    np.testing.assert_allclose(smoothing(x, w, 0.5), [2, 2, 1], rtol=1e-6)
    np.testing.assert_allclose(smoothing(x, w, 1.0), [4, 1, 1], rtol=1e-6)


@libraries
def test_axes_of_einsum_inputs(library):
    """An attention's output kernel sums over heads and their sizes."""
    model = next(s for s in ZOO if s.library == library).make()
    kernels = {w.path.split("/")[-2]: w for w in all_weights(model) if w.kind == "kernel"}
    weight = kernels["attention_output"]
    assert input_axes(weight.layer, weight, 4) == (2, 3)
    vector = np.arange(8, dtype="float32")
    shaped = along_inputs(vector, weight.layer, weight, 4).numpy()
    np.testing.assert_array_equal(shaped, vector.reshape(1, 1, 2, 4))
    assert input_axes(kernels["query"].layer, kernels["query"], 3) == (2,)


def test_percentile_and_least_error_leave_out_outliers():
    rng = np.random.default_rng(0)
    x = np.append(rng.normal(size=100_000), [40.0]).astype("float32")
    stats = ActivationStats()
    stats.update_range(x)
    stats.update_counts(x)
    low, high = percentile_range(stats, 99.9)
    assert high == pytest.approx(np.percentile(x, 99.9), abs=0.05)
    assert low == pytest.approx(np.percentile(x, 0.1), abs=0.05)
    low, high = least_error_range(stats)
    assert high < 36
    zeros = ActivationStats()
    zeros.update_range(np.zeros(3))
    zeros.update_counts(np.zeros(3))
    assert least_error_range(zeros) == (0, 0)


@pytest.mark.parametrize("group", [None, 16])
def test_clipped_weights_have_a_smaller_error(group):
    matrix = np.random.default_rng(0).standard_t(4, (64, 12)).astype("float32")
    clip = weight_clip(matrix, 4, group)
    assert clip.shape == (1 if group is None else 4, 12)
    errors = [
        np.square(from_integers(*to_integers(matrix, 4, group, clip=c)) - matrix).sum()
        for c in (None, clip)
    ]
    assert errors[1] < 0.95 * errors[0]
    keras = keras_of("keras")
    model = keras.Sequential([keras.layers.Input((64,)), keras.layers.Dense(12)])
    model.set_weights([matrix, np.zeros(12, "float32")])
    ke.calibrate(model, weight_bits=4, activation_bits=None, method="mse", group_size=group)
    (transform,) = transforms(model, FakeQuant)
    np.testing.assert_array_equal(transform.clip, clip)
    rounded = transform(transform.weight.value).numpy()
    np.testing.assert_array_equal(rounded, from_integers(*to_integers(matrix, 4, group, clip=clip)))
    np.testing.assert_array_equal(rounded, from_integers(*transform.integers()[:2]))


def outlying(inputs=64, outputs=12, rows=256):
    """Inputs of which a few are large, as in Transformers, and have the largest weights."""
    rng = np.random.default_rng(0)
    matrix = rng.standard_t(4, (inputs, outputs)).astype("float32")
    x = rng.normal(0.5, 1, (rows, inputs)).astype("float32")
    for output in range(0, outputs, 3):
        x[:, np.abs(matrix[:, output]).argmax()] *= 20
    return matrix, x


def output_errors(matrix, x, group, clip):
    rounded = from_integers(*to_integers(matrix, 4, group, clip=clip))
    return np.square(x @ (rounded - matrix)).sum(0)


@pytest.mark.parametrize("group", [None, 16])
def test_clipping_by_the_error_of_weights_alone_makes_outputs_worse(group):
    """At 4 bits "mse" was worse than "minmax", because it clipped the weights of large inputs."""
    matrix, x = outlying()
    plain, blind, seeing = (
        output_errors(matrix, x, group, clip)
        for clip in (
            None,
            weight_clip(matrix, 4, group),
            weight_clip(matrix, 4, group, x.T.astype("float64") @ x),
        )
    )
    assert (blind > 1.05 * plain).any()
    assert (seeing <= 1.001 * plain).all()
    assert seeing.sum() < 0.9 * min(plain.sum(), blind.sum())


def test_inputs_that_do_not_correlate_are_no_reason_to_clip_differently():
    matrix, _ = outlying()
    np.testing.assert_array_equal(
        weight_clip(matrix, 4, 16, 7.0 * np.eye(64)), weight_clip(matrix, 4, 16)
    )
    # Inputs that are always zero.
    assert np.isfinite(weight_clip(matrix, 4, None, np.zeros((64, 64)))).all()


@pytest.mark.parametrize(
    "library, activation_bits", covering(["keras", "tf_keras"], [None, 8], strength=1)
)
def test_mse_at_4_bits_is_no_worse_than_minmax(library, activation_bits):
    """It was, by the outputs of MiniLM's first feed-forward layer: 0.363 against 0.329."""
    keras = keras_of(library)
    matrix, x = outlying()
    expected = x @ matrix
    errors = {}
    for method in ("minmax", "mse"):
        model = keras.Sequential([keras.layers.Input((64,)), keras.layers.Dense(12)])
        model.set_weights([matrix, np.zeros(12, "float32")])
        ke.calibrate(model, x, weight_bits=4, activation_bits=activation_bits, method=method)
        errors[method] = np.square(outputs(model, x) - expected).sum()
    assert errors["mse"] < 0.9 * errors["minmax"]


@libraries
def test_layers_that_the_data_does_not_reach_are_named(library):
    keras = keras_of(library)

    class Two(keras.Model):
        def __init__(self):
            super().__init__()
            self.used, self.other = keras.layers.Dense(3), keras.layers.Dense(3)

        def call(self, inputs):
            return self.used(inputs)

    model, x = Two(), np.ones((4, 6), "float32")
    model.other.build((None, 6))
    model(x)
    report = ke.calibrate(model, x)
    assert len(report.unused) == 1
    assert f"not reached, so not rounded: {report.unused[0]}" in str(report)


@sampled()
@small
def test_ranges_stay_when_the_model_trains_on(specimen):
    x, y = specimen.batch(12)
    model = specimen.make()
    ke.calibrate(model, x)
    before = [part.range.numpy() for part in activation_quantizers(model)]
    fit(quick(specimen.library, model), x, y)
    for part, value in zip(activation_quantizers(model), before, strict=True):
        np.testing.assert_array_equal(part.range.numpy(), value)


SOME = {("keras-sequential", "int8"), ("keras-functional", "int4")}
KERAS = [
    pytest.param(s, method, marks=() if (s.name, method) in SOME else pytest.mark.full)
    for s in ZOO
    if s.library == "keras"
    for method in ("int8", "int4")
]


@sampled()
@pytest.mark.parametrize("specimen, method", KERAS, ids=str)
def test_keras_own_methods(specimen, method):
    x, _ = specimen.batch(12)
    model = specimen.make()
    before = outputs(model, x)
    report = ke.calibrate(model, method=method)
    assert str(report).startswith(f"calibrate: Keras' '{method}'")
    assert report.weight_bits == int(method[3:])
    assert any("int8" in str(v.dtype) for v in model.variables)
    tolerance = 0.02 if method == "int8" else 0.3
    assert np.abs(outputs(model, x) - before).max() < tolerance * np.abs(before).max() + 1e-2


def test_a_config_of_keras():
    import keras

    model = keras.Sequential([keras.layers.Input((6,)), keras.layers.Dense(3)])
    quantizer = keras.quantizers.AbsMaxQuantizer(axis=0, value_range=(-127, 127))
    config = keras.quantizers.Int8QuantizationConfig(quantizer, None)
    report = ke.calibrate(model, method=config)
    assert report.method == "Keras' Int8QuantizationConfig"
    assert len(report.weights) == 1
