"""The losses of distillation against NumPy, and positions that must not count."""

import numpy as np
import pytest
import tensorflow as tf

from keras_efficient.distillation import (
    attention_distance,
    hidden_state_distance,
    relation_divergence,
    soft_target_divergence,
)
from keras_efficient.training._logits import logits_of

T = 2.5
LENGTHS = np.array([5, 2, 0, 3])
MASK = np.arange(5) < LENGTHS[:, None]


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(p, q):
    return (p * np.log(p / q)).sum(-1)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def close(found, expected, dtype):
    np.testing.assert_allclose(
        found, expected, rtol=1e-6 if dtype == "float64" else 1e-5, atol=1e-6
    )


SOFT = {
    "forward_kl": lambda a, b: T**2 * kl(softmax(b / T), softmax(a / T)),
    "reverse_kl": lambda a, b: T**2 * kl(softmax(a / T), softmax(b / T)),
    "jensen_shannon": lambda a, b: (
        T**2
        * sum(
            kl(p, (softmax(a / T) + softmax(b / T)) / 2) for p in (softmax(a / T), softmax(b / T))
        )
        / 2
    ),
    "mse": lambda a, b: ((a - b) ** 2).mean(-1),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("divergence", SOFT)
@pytest.mark.parametrize("shape", [(6, 3), (4, 5, 7)])
def test_soft_targets_are_numpys(divergence, shape, dtype):
    a, b = normal(*shape).astype(dtype), 2 * normal(*shape, seed=1).astype(dtype)
    found = soft_target_divergence(a, b, temperature=T, divergence=divergence)
    assert found.dtype == dtype and found.shape == shape[:-1]
    close(found, SOFT[divergence](a.astype("float64"), b.astype("float64")), dtype)
    same = soft_target_divergence(a, a, temperature=T, divergence=divergence)
    np.testing.assert_allclose(same, 0.0, atol=1e-6)


@pytest.mark.parametrize("divergence", SOFT)
def test_certain_predictions_have_finite_divergences_and_gradients(divergence):
    z = tf.constant([[80.0, -80.0], [-80.0, 80.0]])
    with tf.GradientTape() as tape:
        tape.watch(z)
        value = soft_target_divergence(z, z[::-1], divergence=divergence)
    assert np.isfinite(value).all() and np.isfinite(tape.gradient(value, z)).all()


def test_half_precision_is_computed_in_float32():
    a = normal(6, 3).astype("float16")
    value = soft_target_divergence(a, tf.constant(a + 1, tf.bfloat16))
    assert value.dtype == tf.float32 and np.isfinite(value).all()


def test_the_teacher_gets_no_gradient():
    a, b = (tf.constant(normal(4, 5, 8, seed=seed)) for seed in (0, 1))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([a, b])
        values = [
            soft_target_divergence(a, b),
            hidden_state_distance(a, b),
            relation_divergence(a, b, heads=2),
            attention_distance(a[:, None, :, :5], b[:, None, :, :5]),
        ]
    for value in values:
        assert tape.gradient(value, b) is None
        assert np.abs(tape.gradient(value, a)).max() > 0


def test_probabilities_single_outputs_and_independent_labels_become_logits():
    z = normal(6, 3)
    close(tf.nn.softmax(logits_of(softmax(z), from_logits=False)), softmax(z), "float64")
    sigmoid = 1 / (1 + np.exp(-z))
    for independent, values in ((False, z[:, :1]), (True, z)):
        expected = 1 / (1 + np.exp(-values))
        found = [
            logits_of(values, True, independent),
            logits_of(1 / (1 + np.exp(-values)), False, independent),
        ]
        for logits in found:
            second = tf.nn.softmax(logits)[..., 1]
            close(second, expected if independent else expected[:, 0], "float64")
    assert logits_of(sigmoid, False, True).shape == (6, 3, 2)


def token_mean(values):
    return np.array([v[m].mean() if m.any() else 0.0 for v, m in zip(values, MASK, strict=True)])


@pytest.mark.parametrize("metric", ["mse", "cosine"])
def test_hidden_states_are_numpys(metric):
    a, b, w = normal(4, 5, 8), normal(4, 5, 6, seed=1), normal(8, 6, seed=2)
    c = a @ w
    if metric == "mse":
        each = ((c - b) ** 2).mean(-1)
    else:
        each = 1 - (c * b).sum(-1) / np.linalg.norm(c, axis=-1) / np.linalg.norm(b, axis=-1)
    found = hidden_state_distance(a, b, MASK, metric=metric, projection=w)
    close(found, token_mean(each), "float64")
    close(hidden_state_distance(c, b, metric=metric), each.mean(1), "float64")


@pytest.mark.parametrize("metric", ["kl", "mse"])
def test_attention_maps_are_numpys(metric):
    a, b = normal(4, 2, 5, 5), normal(4, 2, 5, 5, seed=1)
    found = attention_distance(a, b, MASK, metric=metric)
    lengths = LENGTHS > 0
    expected = np.zeros(4)
    for i in np.flatnonzero(lengths):
        n = LENGTHS[i]
        p, q = softmax(b[i, :, :n, :n]), softmax(a[i, :, :n, :n])
        expected[i] = (kl(p, q) if metric == "kl" else ((p - q) ** 2).mean(-1)).mean()
    close(found, expected, "float64")
    whole = attention_distance(a, b, metric=metric)
    full = attention_distance(a, b, np.ones((4, 5)), metric=metric)
    close(whole, full, "float64")
    close(whole[0], found[0], "float64")


def test_relations_are_numpys():
    a, b = normal(4, 5, 8), normal(4, 5, 12, seed=1)

    def relations(x, heads, n):
        parts = x[:n].reshape(n, heads, -1).transpose(1, 0, 2)
        return softmax(parts @ parts.transpose(0, 2, 1) / np.sqrt(parts.shape[-1]))

    expected = [
        kl(relations(y, 4, n), relations(x, 4, n)).mean() if n else 0.0
        for x, y, n in zip(a, b, LENGTHS, strict=True)
    ]
    close(relation_divergence(a, b, MASK, heads=4), expected, "float64")


MASKED = {
    "hidden": (lambda a, b, m: hidden_state_distance(a, b, m), (4, 5, 8), 1),
    "cosine": (lambda a, b, m: hidden_state_distance(a, b, m, metric="cosine"), (4, 5, 8), 1),
    "kl": (lambda a, b, m: attention_distance(a, b, m), (4, 2, 5, 5), 2),
    "attention mse": (lambda a, b, m: attention_distance(a, b, m, metric="mse"), (4, 2, 5, 5), 2),
    "relations": (lambda a, b, m: relation_divergence(a, b, m, heads=2), (4, 5, 8), 1),
}


@pytest.mark.parametrize("name", MASKED)
def test_masked_positions_change_neither_values_nor_gradients(name):
    function, shape, axis = MASKED[name]
    real = MASK[:, :, None] if axis == 1 else (MASK[:, None, :, None] & MASK[:, None, None, :])

    def run(seed):
        rng = np.random.default_rng(seed)
        a, b = (tf.constant(np.where(real, x, 50 * rng.normal(size=shape))) for x in fixed)
        with tf.GradientTape() as tape:
            tape.watch(a)
            value = function(a, b, MASK)
        return value.numpy(), tape.gradient(value, a).numpy()

    fixed = normal(*shape), normal(*shape, seed=1)
    (value, gradient), (again, gradient_again) = run(7), run(8)
    np.testing.assert_allclose(value, again, rtol=1e-12)
    kept = np.broadcast_to(real, shape)
    np.testing.assert_allclose(gradient[kept], gradient_again[kept], rtol=1e-9, atol=1e-12)
    assert not gradient[~kept].any() and not gradient_again[~kept].any()
    assert np.abs(gradient[kept]).max() > 0 and value[2] == 0


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda a: soft_target_divergence(a, a, divergence="kl"), "`divergence` must be one of"),
        (lambda a: soft_target_divergence(a, a[..., :2]), "must predict the same classes"),
        (lambda a: hidden_state_distance(a, a, metric="l1"), "`metric` must be one of"),
        (
            lambda a: hidden_state_distance(a, a[..., :2]),
            r"equally wide\. Received: widths 8 and 2",
        ),
        (lambda a: attention_distance(a, a, metric="l1"), "`metric` must be one of"),
        (lambda a: attention_distance(a[None], a[None, :2]), "4 heads in the student and 2"),
        (lambda a: relation_divergence(a, a, heads=3), "3 heads for a width of 8"),
    ],
)
def test_misfits_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(normal(4, 5, 8))
