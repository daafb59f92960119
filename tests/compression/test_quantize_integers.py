"""Fake-quantized values equal integers times scales bit for bit, on TF-MOT's grid."""

import numpy as np
import pytest
import tensorflow as tf
from compression_helpers import libraries
from zoo import ZOO, keras_of

import keras_efficient as ke
from keras_efficient.architecture._weights import all_weights
from keras_efficient.compression._fake_quant import FakeQuant, fake_quantize
from keras_efficient.compression._integers import (
    from_integers,
    input_grid,
    input_integers,
    largest,
    to_integers,
)
from keras_efficient.compression._tf_mot import tf_mot
from keras_efficient.parametrize._attach import attach
from keras_efficient.parametrize._parametrized_layer import transforms


def numbers(kind, shape=(256, 1024)):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype("float32")
    if kind == "ties":
        # Halves of a step of 2^-7, the step itself exact.
        x = (rng.integers(-253, 254, shape) / 2).astype("float32") * np.float32(2.0**-7)
        x[0] = 127 * 2.0**-7
    elif kind == "tiny":
        x *= np.float32(1e-27)
    elif kind == "denormal":
        x *= np.float32(1e-39)
    elif kind == "huge":
        x *= np.float32(1e37)
    elif kind == "zeros":
        x[:, ::3] = 0
        x[rng.random(shape) < 0.5] = 0
    elif kind == "mixed":
        x *= np.exp(rng.uniform(-60, 60, shape)).astype("float32")
    return x


def dense_weight(library, matrix):
    """A kernel with these numbers, as a `Weight` in a model."""
    keras = keras_of(library)
    model = keras.Sequential(
        [keras.layers.Input((matrix.shape[0],)), keras.layers.Dense(matrix.shape[1])]
    )
    model.set_weights([matrix, np.zeros(matrix.shape[1], "float32")])
    return model, next(w for w in all_weights(model) if w.kind == "kernel")


KINDS = ["normal", "ties", "tiny", "denormal", "huge", "zeros", "mixed"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, None), (4, 32)])
def test_rounded_weights_are_integers_times_scales_bit_for_bit(kind, bits, group):
    matrix = numbers(kind)
    model, weight = dense_weight("keras", matrix)
    transform = FakeQuant(bits, group_size=group)
    attach(model, [(weight, transform)])
    integers, scales = to_integers(matrix, bits, group)
    rounded = transform(weight.value).numpy()
    np.testing.assert_array_equal(rounded, from_integers(integers, scales))
    wide = np.repeat(scales, matrix.shape[0] // len(scales), 0)
    np.testing.assert_array_equal(np.rint(rounded / wide), integers)
    assert np.abs(integers).max() <= largest(bits)
    assert np.isfinite(rounded).all()
    if kind not in ("denormal", "zeros"):
        assert (np.abs(integers.reshape(len(scales), -1, 1024)).max(1) == largest(bits)).all()
    # Zeros stay zeros: sparsity survives.
    assert (rounded[matrix == 0] == 0).all()
    for ours, theirs in zip(transform.integers(), (integers, scales, None), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("compiled", [False, True])
def test_graphs_round_as_eager_does(kind, compiled):
    """Grappler and XLA rewrite arithmetic, but leave this one as it is, bit for bit."""
    matrix = numbers(kind)
    model, weight = dense_weight("keras", matrix)
    transform = FakeQuant(8)
    attach(model, [(weight, transform)])
    rounded = tf.function(lambda: transform(weight.value), jit_compile=compiled)()
    np.testing.assert_array_equal(rounded, from_integers(*to_integers(matrix)))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", ["normal", "huge", "tiny"])
def test_the_grid_is_tf_mots(bits, kind):
    """TF-MOT's op rounds differently only at ties, up to float precision."""
    matrix = numbers(kind)
    most = tf.reduce_max(tf.abs(matrix), 0)
    theirs = tf.quantization.fake_quant_with_min_max_vars_per_channel(
        matrix, -most, most, num_bits=bits, narrow_range=True
    ).numpy()
    integers, scales = to_integers(matrix, bits)
    near = np.abs(np.abs(matrix / scales) % 1 - 0.5) < 1e-4
    assert near.mean() < 1e-3
    ours = from_integers(integers, scales)
    np.testing.assert_allclose(ours[~near], theirs[~near], rtol=5e-7)
    step = np.broadcast_to(scales, matrix.shape)
    assert (np.abs(ours - theirs) <= step * 1.001).all()


def test_last_value_quantizer_of_tf_mot_is_the_same():
    ops = tf_mot("quantization.keras.quant_ops")
    matrix = numbers("normal", (64, 48))
    low, high = tf.Variable(tf.zeros(48)), tf.Variable(tf.zeros(48))
    theirs = ops.LastValueQuantize(
        tf.constant(matrix), low, high, per_channel=True, narrow_range=True, symmetric=True
    )
    np.testing.assert_allclose(from_integers(*to_integers(matrix)), theirs, rtol=1e-6)


def test_trap_29_per_axis_quantizer_of_tf_mot_still_refuses_three_axes_and_ours_does_not():
    ops = tf_mot("quantization.keras.quant_ops")
    kernel = numbers("normal", (8, 2, 4))
    with pytest.raises(UnboundLocalError):
        ops.LastValueQuantize(
            tf.constant(kernel),
            tf.Variable(tf.zeros(4)),
            tf.Variable(tf.zeros(4)),
            per_channel=True,
        )
    model = ZOO[0].make()
    weights = [w for w in all_weights(model) if w.kind == "kernel" and len(w.shape) == 3]
    pairs = [(weight, FakeQuant(8)) for weight in weights]
    assert len(pairs) == 4
    attach(model, pairs)
    for weight, transform in pairs:
        matrix = weight.matrix(tf.constant(weight.value.numpy())).numpy()
        rounded = weight.matrix(transform(tf.constant(weight.value.numpy())))
        np.testing.assert_array_equal(rounded, from_integers(*to_integers(matrix)))


def test_xla_changes_zeros_in_tf_mots_op_and_not_in_ours():
    """The reason not to use the op: compiled steps would lose the mask's zeros."""
    matrix = numbers("zeros")
    most = tf.reduce_max(tf.abs(matrix), 0)

    @tf.function(jit_compile=True)
    def theirs(x):
        return tf.quantization.fake_quant_with_min_max_vars_per_channel(
            x, -most, most, num_bits=8, narrow_range=True
        )

    assert np.isnan(theirs(matrix)[:, 0]).all()
    assert (theirs(matrix).numpy()[matrix == 0] != 0).mean() > 0.5
    model, weight = dense_weight("keras", matrix)
    transform = FakeQuant(8)
    attach(model, [(weight, transform)])
    ours = tf.function(lambda x: transform(x), jit_compile=True)(matrix).numpy()
    assert np.isfinite(ours).all()
    assert (ours[matrix == 0] == 0).all()


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.0, 5.0), (-2.5, 2.5), (-7.0, 0.0)])
def test_inputs_are_rounded_to_the_integers_and_as_tensorflow_does(low, high):
    x = np.random.default_rng(0).uniform(low - 1, high + 1, (1000, 100)).astype("float32")
    x[0] = 0
    integers, scale, zero = input_integers(x, low, high)
    grid = input_grid(low, high)
    assert (grid[0], grid[1], grid[2]) == (scale, zero, 255)
    value = (integers.astype("float32") - zero) * scale
    assert (value[0] == 0).all()
    np.testing.assert_array_equal(
        fake_quantize(tf.constant(x), tf.constant(scale), -float(zero), 255.0 - zero), value
    )
    theirs = tf.quantization.fake_quant_with_min_max_vars(x, low, high).numpy()
    near = np.abs(np.abs(x / scale) % 1 - 0.5) < 1e-3
    np.testing.assert_allclose(value[~near], theirs[~near], rtol=1e-5, atol=1e-6)


@libraries
def test_a_layer_computes_what_int32_sums_give(library):
    """The integers agree exactly, their product with the scales up to float rounding."""
    rng = np.random.default_rng(0)
    keras = keras_of(library)
    model = keras.Sequential([keras.layers.Input((64,)), keras.layers.Dense(48)])
    x = rng.normal(0.3, 1, (32, 64)).astype("float32")
    report = ke.calibrate(model, x)
    (low, high), *_ = report.ranges.values()
    assert (low, high) == (float(x.min()), float(x.max()))
    transform = transforms(model, FakeQuant)[0]
    weights, scales, _ = transform.integers()
    inputs, scale, zero = input_integers(x, low, high)
    # The floats that the layer multiplies are on the grids exactly.
    rounded = transform(transform.weight.value).numpy()
    np.testing.assert_array_equal(rounded, weights.astype("float32") * scales)
    sums = (inputs.astype("int32") - zero) @ weights.astype("int32")
    expected = sums.astype("float64") * scale * scales
    got = np.asarray(model(x))
    assert np.abs(got - expected).max() <= 1e-6 * np.abs(expected).max()


def test_gradients_pass_straight_through_inside_the_range():
    x = tf.constant([-3.0, -0.9, 0.2, 0.9, 3.0])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        bounded = fake_quantize(x, tf.constant(1 / 127), -127.0, 127.0)
        free = fake_quantize(x, tf.constant(1.0), None, None)
    np.testing.assert_array_equal(tape.gradient(bounded, x), [0, 1, 1, 1, 0])
    np.testing.assert_array_equal(tape.gradient(free, x), np.ones(5))
    theirs = tf.quantization.fake_quant_with_min_max_vars_gradient(
        tf.ones(5), x, -1.0, 1.0, num_bits=8, narrow_range=True
    )[0]
    np.testing.assert_array_equal(tape.gradient(bounded, x), theirs)


def test_a_clipped_range_and_one_scale_for_all():
    matrix = numbers("normal", (32, 6))
    clip = np.full((1, 6), 0.5, "float32")
    integers, scales = to_integers(matrix, 8, clip=clip)
    np.testing.assert_allclose(scales[0], np.abs(matrix).max(0) / 254, rtol=1e-6)
    assert np.abs(integers).max() == 127
    integers, scales = to_integers(matrix, 8, per_channel=False)
    assert scales.shape == (1, 1)
    np.testing.assert_allclose(scales, np.abs(matrix).max() / 127, rtol=1e-6)
    model, weight = dense_weight("keras", matrix)
    transform = FakeQuant(8, per_channel=False)
    attach(model, [(weight, transform)])
    np.testing.assert_array_equal(transform(weight.value), from_integers(integers, scales))
    assert transform.extra_bytes == 4
