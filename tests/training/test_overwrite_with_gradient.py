"""Keras 3 variables with `overwrite_with_gradient`, such as the scales of float8."""

import keras
import numpy as np
import pytest
from fit_helpers import fit, mirrored

import keras_efficient as ke

X = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
# The largest inputs are in the first microbatch, the second has smaller ones.
X[0] *= 10.0
Y = np.arange(8) % 3


def float8_model(replicas=1, optimizer=None):
    with mirrored(replicas).scope():
        layers = [keras.layers.Input((4,)), keras.layers.Dense(3, kernel_initializer="ones")]
        model = keras.Sequential(layers)
        model.layers[-1].quantize("float8")
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer or keras.optimizers.SGD(0.1, global_clipnorm=0.5), loss)
    return model


def state(model):
    return {v.path.rsplit("/", 1)[-1]: np.array(v) for v in model.weights}


def check(model, expected):
    found = state(model)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-3, atol=1e-6, err_msg=name)


@pytest.fixture(scope="module")
def plain():
    model = float8_model()
    fit(model, X, Y, batch_size=8, epochs=2)
    found = state(model)
    assert found["inputs_amax_history"].max() == np.abs(X).max()
    assert found["inputs_scale"] != 1
    return found


def rounded(model):
    """Return the kernel and bias, which float8 rounds by each microbatch's gradients."""
    return {name: v for name, v in state(model).items() if name in ("kernel", "bias")}


def test_one_microbatch_overwrites_as_the_librarys_step(plain):
    model = ke.accumulate(float8_model(), 1)
    norms = ke.callbacks.GradientNorm()
    fit(model, X, Y, batch_size=8, epochs=2, callbacks=[norms])
    check(model, plain)


def test_several_microbatches_keep_the_maximum(plain):
    """The maxima of absolute values are those of the whole batch, and so are the scales."""
    model = ke.accumulate(float8_model(), 4)
    fit(model, X, Y, batch_size=8, epochs=2)
    check(model, {**plain, **rounded(model)})


@pytest.mark.full
def test_two_replicas_keep_the_maximum(plain):
    model = ke.accumulate(float8_model(2), 2)
    fit(model, X, Y, batch_size=8, epochs=2)
    # A replica's gradients are those of the mean over its own examples.
    own = {name: v for name, v in state(model).items() if name.startswith("outputs_grad")}
    check(model, {**plain, **rounded(model), **own})


@pytest.mark.full
def test_a_loss_scale_and_sam_leave_the_new_values_alone(plain):
    for scale in (None, 1024.0):
        model = float8_model(optimizer=keras.optimizers.SGD(0.1, loss_scale_factor=scale))
        ke.sam(ke.accumulate(model, 2), 1e-6)
        fit(model, X, Y, batch_size=8, epochs=2)
        for name in ("inputs_amax_history", "kernel_amax_history", "inputs_scale"):
            np.testing.assert_allclose(state(model)[name], plain[name], rtol=0.05, err_msg=name)
