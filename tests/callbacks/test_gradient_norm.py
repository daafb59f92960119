"""GradientNorm: the norm of an update's gradient, compared with NumPy."""

import numpy as np
import pytest
import tensorflow as tf
from covering import covering, sampled
from fit_helpers import batches, mirrored
from zoo import keras_of

import keras_efficient as ke

libraries = pytest.mark.parametrize("library", ["keras", "tf_keras"])
SETTINGS = ({}, {"scale": 1024.0}, {"global_clipnorm": 0.01})
WEIGHTS = np.array([[0.5], [-2.0]], "float32")


def made(library, replicas=1, *, scale=None, **kwargs):
    keras = keras_of(library)
    with mirrored(replicas).scope():
        model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1, use_bias=False)])
        model.set_weights([WEIGHTS])
        optimizer = keras.optimizers.SGD(0.1, **kwargs)
        if scale:
            optimizer = keras.mixed_precision.LossScaleOptimizer(optimizer, initial_scale=scale)
        model.compile(optimizer, "mse", jit_compile=False)
    return model


def data(n=6):
    x = np.random.default_rng(0).normal(size=(n, 2)).astype("float32")
    return x, x.sum(1, keepdims=True)


def expected(x, y, weights):
    return np.linalg.norm(2 * x.T @ (x @ weights - y) / len(x))


@pytest.mark.parametrize(
    "library, replicas, setting", covering(("keras", "tf_keras"), (1, 2), SETTINGS)
)
def test_the_norm_is_numpys(library, replicas, setting):
    """Over microbatches and replicas, without the loss scale, before it is clipped."""
    model, norm = ke.accumulate(made(library, replicas, **setting), 3), ke.callbacks.GradientNorm()
    x, y = data()
    history = model.fit(
        batches(x, y, batch_size=6), epochs=2, shuffle=False, verbose=0, callbacks=[norm]
    ).history
    np.testing.assert_allclose(history["gradient_norm"][0], expected(x, y, WEIGHTS), rtol=1e-5)
    assert norm.last == history["gradient_norm"][1] == history["gradient_norm_max"][1]
    ke.accumulate(model, None)
    assert "train_step" not in vars(model)


@sampled()
@libraries
def test_an_epoch_has_its_mean_and_its_largest(library):
    model, (x, y) = made(library), data(12)
    history = model.fit(
        batches(x, y, batch_size=6),
        shuffle=False,
        verbose=0,
        callbacks=[ke.callbacks.GradientNorm()],
    ).history
    weights, norms = WEIGHTS, []
    for part in (slice(0, 6), slice(6, 12)):
        norms.append(expected(x[part], y[part], weights))
        weights = weights - 0.1 * 2 * x[part].T @ (x[part] @ weights - y[part]) / 6
    np.testing.assert_allclose(history["gradient_norm"], [np.mean(norms)], rtol=1e-5)
    np.testing.assert_allclose(history["gradient_norm_max"], [max(norms)], rtol=1e-5)
    np.testing.assert_allclose(model.get_weights()[0], weights, rtol=1e-5)
    assert "train_step" not in vars(model)


@sampled()
@libraries
def test_rows_of_an_embedding_count_summed(library):
    """The gradients of a token that occurs twice are summed in its row."""
    keras = keras_of(library)
    layers = [keras.layers.Input((2,), dtype="int32"), keras.layers.Embedding(3, 1)]
    model = keras.Sequential([*layers, keras.layers.Flatten()])
    model.set_weights([np.ones((3, 1), "float32")])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    norm = ke.callbacks.GradientNorm()
    ids = tf.constant([[1, 1]])
    model.fit(batches(ids, np.zeros((1, 2), "float32"), batch_size=1), verbose=0,
              shuffle=False, callbacks=[norm])  # fmt: skip
    # The gradient of each occurrence is 2 · 1 / 2, that of the row their sum.
    np.testing.assert_allclose(norm.last, 2.0, rtol=1e-6)
