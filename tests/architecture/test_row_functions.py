"""Values and gradients of the functions of rows, against TensorFlow's own rules."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from keras_efficient.architecture import _row_functions as functions
from keras_efficient.architecture._token_rows import TokenRows


def normal(*shape, seed=0):
    return tf.constant(np.random.default_rng(seed).normal(size=shape), tf.float64)


def same(function, reference, *arguments, tolerance=1e-9):
    """Assert equal values and equal gradients of a weighted sum."""
    found = []
    for f in (function, reference):
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            y = f(*arguments)
            loss = tf.reduce_sum(y * normal(*y.shape, seed=9))
        found.append([y, *tape.gradient(loss, arguments)])
    for value, expected in zip(*found, strict=True):
        np.testing.assert_allclose(value, expected, rtol=tolerance, atol=tolerance)


def test_layer_norm():
    def reference(x, gamma, beta):
        mean, variance = tf.nn.moments(x, [-1], keepdims=True)
        return (x - mean) / tf.sqrt(variance + 1e-3) * gamma + beta

    same(lambda *a: functions.layer_norm(*a, 1e-3), reference, normal(5, 8), normal(8), normal(8))


@pytest.mark.parametrize("function, approximate", [("gelu", False), ("gelu_tanh", True)])
def test_gelu(function, approximate):
    x = 3 * normal(4, 50)
    reference = functools.partial(tf.nn.gelu, approximate=approximate)
    # Its constants are rounded to float32.
    same(getattr(functions, function), reference, x, tolerance=1e-7)
    found = functions.faster_activation(lambda x: tf.nn.gelu(x, approximate=approximate))
    assert found is getattr(functions, function)


def test_other_activations_remain():
    assert functions.faster_activation(tf.nn.relu) is tf.nn.relu
    assert functions.faster_activation(tf.nn.silu) is tf.nn.silu


@pytest.mark.parametrize("masked", ["added", "overwritten", "zeroed"])
def test_attention(masked):
    q, k, v = (normal(3, 2, 5, 4, seed=seed) for seed in range(3))
    # The last example has no real token.
    bias = tf.constant([[0, 0, 0, 0, 0], [0, 0, -1e9, 0, -1e9], [-1e9] * 5], tf.float64)
    bias = bias[:, None, None, :]
    keep = tf.cast(normal(3, 2, 5, 5, seed=5) > 0, tf.float64) * 2

    def reference(q, k, v):
        scores = tf.matmul(q, k, transpose_b=True) * 0.5
        if masked == "added":
            scores = scores + bias
        else:
            scores = tf.where(bias < 0, tf.constant(-1e9, tf.float64), scores)
        p = tf.nn.softmax(scores)
        if masked == "zeroed":
            p = tf.where(bias < 0, tf.constant(0.0, tf.float64), p)
        return tf.matmul(p * keep, v)

    same(lambda *a: functions.attend(*a, 0.5, bias, keep, masked), reference, q, k, v)


def test_a_dropout_mask_has_the_rate_and_follows_the_seed():
    masks = [
        functions.dropout_mask([500, 401], 0.3, tf.constant(seed), tf.float32)
        for seed in ([1, 2], [1, 2], [1, 3])
    ]
    np.testing.assert_array_equal(masks[0], masks[1])
    both = np.mean((masks[0].numpy() == 0) & (masks[2].numpy() == 0))
    assert abs(both - 0.09) < 0.005
    values, counts = np.unique(masks[0], return_counts=True)
    np.testing.assert_allclose(values, [0, 1 / 0.7], rtol=1e-4)
    assert abs(counts[0] / counts.sum() - 0.3) < 0.005
    assert abs(np.mean(masks[0]) - 1) < 0.01


def test_rows_go_to_their_places_and_back():
    real = np.array([[1, 1, 1, 0], [0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]], bool)
    rows = TokenRows(tf.where(real, 0.0, -1e9))
    # The first token of the second example is computed, though it is padding.
    kept = real | (np.arange(4) == 0) | ~real.any(1, keepdims=True)
    x = normal(4, 4, 6)
    taken = rows.take(x)
    np.testing.assert_array_equal(taken, x[kept])
    np.testing.assert_array_equal(rows.put(taken), np.where(kept[..., None], x, 0))
    heads = functions.split_heads(taken, 1, 2, rows.place, rows.back(2))[0]
    joined = functions.join_heads(heads, rows.place, rows.back(2), None)
    np.testing.assert_array_equal(joined, taken)
    np.testing.assert_array_equal(tf.gather(taken, rows.first), x[:, 0])
    attended = (rows.bias[:, 0, 0] > -1).numpy()
    np.testing.assert_array_equal(attended.sum(1), real.sum(1))


def test_gradients_of_rows():
    rows = TokenRows(tf.constant([[0.0, 0.0, -1e9], [0.0, -1e9, -1e9]]))
    kept = [[1, 1, 0], [1, 0, 0]]
    x = normal(2, 3, 4)
    same(rows.take, lambda x: tf.boolean_mask(x, kept), x)
    mask = tf.constant(kept, tf.float64)[..., None]
    same(lambda x: rows.put(rows.take(x)), lambda x: x * mask, x)

    def through_heads(x):
        pieces = functions.split_heads(x, 3, 2, rows.place, rows.back(2))
        used = tf.cast(rows.used, tf.float64)
        joined = [functions.join_heads(p * used, rows.place, rows.back(2), used) for p in pieces]
        return tf.concat(joined, 1)

    same(through_heads, lambda x: x, normal(3, 12))
