"""Models whose weights do not train, and losses that depend on no weight."""

import numpy as np
import pytest
import tensorflow as tf
from covering import sampled
from fit_helpers import fit, mirrored
from training.test_accumulation_own_steps import own_step_model, with_metrics
from zoo import keras_of

import keras_efficient as ke

both = pytest.mark.parametrize("library", ["keras", "tf_keras"])
X = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
Y = np.arange(6) % 3


def model_of(library, replicas=1, train=False):
    keras = keras_of(library)
    with mirrored(replicas).scope():
        model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3)])
        model.set_weights([np.random.default_rng(1).normal(size=(4, 3)), np.zeros(3)])
        model.trainable = train
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss)
    return model


@sampled()
@both
def test_a_model_with_nothing_to_train_is_fitted_as_by_the_library(library):
    expected = fit(model_of(library), X, Y, batch_size=6)["loss"]
    for apply in (
        lambda m: ke.accumulate(m, 1),
        lambda m: ke.accumulate(m, 3),
        lambda m: ke.sam(ke.accumulate(m, 2), 0.1),
    ):
        model = model_of(library)
        before = model.get_weights()
        apply(model)
        np.testing.assert_allclose(fit(model, X, Y, batch_size=6)["loss"], expected, rtol=1e-6)
        for a, b in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
        # Neither library counts an update.
        assert int(model.optimizer.iterations) == 0


@sampled()
@both
def test_nothing_to_train_on_two_replicas_or_by_an_own_train_step(library):
    model = ke.accumulate(model_of(library, 2), 2)
    expected = fit(model_of(library), X, Y, batch_size=6)["loss"]
    np.testing.assert_allclose(fit(model, X, Y, batch_size=6)["loss"], expected, rtol=1e-6)
    own = own_step_model(library, with_metrics)
    own.trainable = False
    if library == "keras":
        # Its optimizers refuse an empty list in `apply_gradients`.
        return
    own.compile("sgd", keras_of(library).losses.SparseCategoricalCrossentropy(True))
    ke.accumulate(own, 2)
    fit(own, np.ones((4, 6), "int32"), Y[:4], batch_size=4)


@sampled()
@both
def test_a_loss_that_depends_on_no_weight_is_refused(library):
    model = model_of(library, train=True)
    model.compile("sgd", lambda y, p: 0.0 * tf.cast(y, tf.float32) + 1.0)
    ke.accumulate(model, 2)
    with pytest.raises(ValueError, match=r"(?s)does not depend on any weight.*dense"):
        fit(model, X, Y, batch_size=6)
