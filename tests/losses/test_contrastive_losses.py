"""Contrastive losses of embeddings, compared with their definitions in NumPy."""

import numpy as np
import pytest
import tensorflow as tf

import keras_efficient as ke

RNG = np.random.default_rng(0)
A, P, N = (RNG.normal(size=(n, 6)) for n in (5, 5, 3))
LABELS = np.array([0, 1, 0, 2, 0])


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def cross_entropy(scores, own):
    return [np.log(np.exp(row).sum()) - row[i] for row, i in zip(scores, own, strict=True)]


@pytest.mark.parametrize("negatives", [None, N], ids=["in-batch", "hard"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_multiple_negatives_is_the_cross_entropy_of_the_positive(negatives, symmetric, temperature):
    candidates = P if negatives is None else np.concatenate([P, negatives])
    expected = np.array(cross_entropy(unit(A) @ unit(candidates).T / temperature, range(5)))
    if symmetric:
        back = cross_entropy(unit(P) @ unit(A).T / temperature, range(5))
        expected = (expected + back) / 2
    found = ke.losses.multiple_negatives(
        A, P, negatives, temperature=temperature, symmetric=symmetric
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_the_supervised_loss_averages_over_the_positives(temperature):
    scores = unit(A) @ unit(A).T / temperature
    expected = []
    for i, label in enumerate(LABELS):
        others = [a for a in range(5) if a != i]
        total = np.log(sum(np.exp(scores[i, a]) for a in others))
        terms = [total - scores[i, p] for p in others if LABELS[p] == label]
        expected.append(np.mean(terms) if terms else 0.0)
    found = ke.losses.supervised_contrastive(A, LABELS, temperature=temperature)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert expected[1] == expected[3] == 0 and expected[0] > 0.1


def test_gradients_are_those_of_finite_differences():
    for loss in (
        lambda z: ke.losses.multiple_negatives(z[:2], z[2:4], z[4:], symmetric=True),
        lambda z: ke.losses.supervised_contrastive(z, LABELS),
    ):
        theoretical, numerical = tf.test.compute_gradient(loss, [tf.constant(A)], delta=1e-5)
        np.testing.assert_allclose(theoretical[0], numerical[0], atol=1e-6)
        assert np.abs(theoretical[0]).max() > 0.1


def test_a_single_example_has_no_loss_and_no_gradient():
    z = tf.constant(A[:1], tf.float32)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(z)
        alone = ke.losses.supervised_contrastive(z, [0])
        pair = ke.losses.multiple_negatives(z, z)
    for loss in (alone, pair):
        np.testing.assert_allclose(loss, [0.0], atol=1e-6)
        np.testing.assert_allclose(tape.gradient(loss, z), np.zeros((1, 6)), atol=1e-6)


def test_half_precision_is_computed_in_float32():
    found = ke.losses.multiple_negatives(
        tf.constant(300 * A, tf.float16), tf.constant(P, tf.float16)
    )
    assert found.dtype == tf.float32
    np.testing.assert_allclose(found, ke.losses.multiple_negatives(A, P), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("temperature", [0, -1.0, True, "low"])
def test_the_temperature_is_positive(temperature):
    for loss in (ke.losses.multiple_negatives, ke.losses.supervised_contrastive):
        with pytest.raises(ValueError, match=r"`temperature` must be a number > 0. Received: "):
            loss(A, A, temperature=temperature)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"with one width. Received: anchors \(5, 6\), positives"):
        ke.losses.multiple_negatives(A, P[:, :4])
    with pytest.raises(ValueError, match=r"Received: embeddings \(1, 5, 6\). Pool"):
        ke.losses.supervised_contrastive(A[None], LABELS)
    with pytest.raises(ValueError, match=r"one positive. Received: 5 anchors and 4 positives"):
        ke.losses.multiple_negatives(A, P[:4])
    with pytest.raises(ValueError, match=r"an int class per example.*Received: float64 \(5,\)"):
        ke.losses.supervised_contrastive(A, LABELS.astype("float64"))
