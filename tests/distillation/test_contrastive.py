"""Contrastive distillation: InfoNCE against NumPy, and in the training step."""

import numpy as np
import pytest
import tensorflow as tf
from covering import covering
from distillation.test_losses import MASK, close, normal, token_mean as numpys_token_mean
from distillation.test_projection import MODELS, PLAIN, ragged, student_of, teacher_of, values_of
from fit_helpers import assert_same, batches, compiled, mirrored, moved
from zoo import keras_of

import keras_efficient as ke
from keras_efficient.distillation import Contrastive, contrastive_loss
from keras_efficient.distillation._hidden_states import token_mean

T = 0.3


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_it_is_numpys(dtype):
    s, w, t, n = normal(6, 8), normal(8, 5, seed=1), normal(6, 5, seed=2), normal(7, 5, seed=3)
    # The fourth negative is the second example itself.
    n[3] = 2 * t[1]
    found = contrastive_loss(
        *(x.astype(dtype) for x in (s, t, n)), temperature=T, projection=w.astype(dtype)
    )
    assert found.dtype == dtype
    s, t, n = unit(s @ w), unit(t), unit(n)
    expected = []
    for number in range(6):
        positive = np.exp(s[number] @ t[number] / T)
        others = [np.exp(s[number] @ x / T) for i, x in enumerate(n) if (number, i) != (1, 3)]
        expected.append(-np.log(positive / (positive + sum(others))))
    close(found, expected, dtype)


def test_neither_teacher_nor_negatives_get_a_gradient():
    s, t, n = (tf.Variable(normal(4, 5, seed=seed)) for seed in range(3))
    with tf.GradientTape() as tape:
        loss = contrastive_loss(s, t, n)
    gradients = tape.gradient(loss, [s, t, n])
    assert np.abs(gradients[0]).max() > 0 and gradients[1:] == [None, None]
    with pytest.raises(ValueError, match="Vectors can be compared if they are equally wide"):
        contrastive_loss(s, t[:, :3], n)


def test_means_are_those_of_real_tokens():
    values = normal(4, 5, 3)
    expected = np.stack([numpys_token_mean(values[..., i]) for i in range(3)], -1)
    close(token_mean(tf.constant(values), MASK), expected, "float64")
    x = tf.constant(np.where(MASK[..., None], values, 1e6))
    with tf.GradientTape() as tape:
        tape.watch(x)
        mean = token_mean(x, MASK)
    close(mean, expected, "float64")
    assert not tape.gradient(mean, x).numpy()[~MASK].any()


def trained(specimen, x, y, negatives, *, replicas=1, k=1, teacher=None, epochs=2):
    with mirrored(replicas).scope():
        model = student_of(specimen)
        optimizer = keras_of(specimen.library).optimizers.SGD(0.1)
        compiled(specimen.library, model, optimizer, jit_compile=False)
    ke.distill(
        model,
        teacher or teacher_of(specimen),
        alpha=0.7,
        hidden=Contrastive(negatives, 2.0),
        layers="last",
    )
    before = model.get_weights()
    ke.accumulate(model, k)
    data = batches(x, y, batch_size=6)
    history = model.fit(data, verbose=0, shuffle=False, epochs=epochs).history
    return model, moved(before, model), history["loss"]


@pytest.mark.full
@pytest.mark.parametrize("specimen, replicas", covering(MODELS, (2, 1)))
def test_microbatches_are_one_batch_and_padding_has_no_effect(specimen, replicas):
    x, y = ragged(specimen)
    noisy, _ = ragged(specimen, noise=9)
    # Some of the examples are among the negatives.
    negatives = {name: value[:4] for name, value in x.items()}
    other = {name: value[:4] for name, value in noisy.items()}
    one, change, loss = trained(specimen, x, y, negatives)
    split, _, _ = trained(specimen, x, y, negatives, replicas=replicas, k=3)
    padded, _, again = trained(specimen, noisy, y, other)
    assert change > 1e-4
    np.testing.assert_allclose(again, loss, rtol=1e-5)
    for each in (split, padded):
        assert_same(one, each, 5e-6)
        names = ("projection_m", "projection_updates")
        for name in names:
            np.testing.assert_allclose(values_of(each)[name], values_of(one)[name], atol=2e-6)


def test_an_example_is_no_negative_of_itself():
    """Adding the examples themselves to the negatives of each leaves the others alone."""
    specimen = PLAIN[1]
    x, y = ragged(specimen, n=6)
    first = {name: np.repeat(value[:1], 6, 0) for name, value in x.items()}
    rest = {name: value[1:] for name, value in x.items()}
    teacher = teacher_of(specimen)
    losses = [
        trained(specimen, first, np.repeat(y[:1], 6), negatives, teacher=teacher, epochs=1)[2]
        for negatives in (x, rest)
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"weight": 0}, "`weight` must be a number > 0"),
        ({"temperature": -1.0}, "`temperature` must be a number > 0"),
        ({"projection": 3}, "`projection` must be True, False or None"),
    ],
)
def test_arguments_that_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Contrastive(np.zeros((2, 3)), **kwargs)
