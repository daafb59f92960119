"""LossScale: overflows are counted, and a run that no longer learns is stopped (trap 12)."""

import warnings

import numpy as np
import pytest
from covering import covering, sampled
from fit_helpers import batches, mirrored, moved
from zoo import keras_of

import keras_efficient as ke
from keras_efficient._errors import InputError

libraries = pytest.mark.parametrize("library", ["keras", "tf_keras"])
rotated = pytest.mark.parametrize(
    "library, replicas", covering(("keras", "tf_keras"), (1, 2), strength=1)
)


def made(library, replicas=1, scaled=True):
    keras = keras_of(library)
    with mirrored(replicas).scope():
        model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
        optimizer = keras.optimizers.SGD(0.01)
        if scaled:
            optimizer = keras.mixed_precision.LossScaleOptimizer(optimizer, initial_scale=1024.0)
        model.compile(optimizer, "mse", jit_compile=False)
    # Keras 3 fails on the first batch of two replicas before it calls any callback (trap 16).
    return ke.accumulate(model, 1)


def train(model, bad, watch, n=24, **kwargs):
    """Fit batches of two, of which those with the indices `bad` overflow."""
    x = np.ones((n, 2), "float32")
    x[[2 * index for index in bad]] = np.inf
    data = batches(x, np.ones((n, 1), "float32"), batch_size=2)
    return model.fit(data, shuffle=False, verbose=0, callbacks=[watch], **kwargs).history


@sampled()
@rotated
def test_scale_and_overflows_are_logged(library, replicas):
    model, watch = made(library, replicas), ke.callbacks.LossScale()
    history = train(model, [1, 5], watch, epochs=2)
    assert history["overflows"] == [2, 4]
    assert history["loss_scale"] == [256.0, 64.0]
    assert (watch.overflows, watch.scale) == (4, 64.0)
    ke.accumulate(model, None)
    assert "train_step" not in vars(model)


@sampled()
@rotated
def test_a_run_whose_every_step_overflows_is_stopped(library, replicas):
    """Both libraries continue it for ever (trap 12)."""
    model, watch = made(library, replicas), ke.callbacks.LossScale(patience=5)
    before = model.get_weights()
    with pytest.warns(UserWarning, match=r"Stopped: the last 5 steps overflowed .* scale of 32\."):
        train(model, range(12), watch, epochs=3)
    assert watch.overflows < 3 * 12
    assert model.stop_training
    assert moved(before, model) == 0


@sampled()
@libraries
def test_a_good_step_starts_the_count_again(library):
    model, watch = made(library), ke.callbacks.LossScale(patience=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, [0, 1, 3, 4, 6, 7], watch)
    assert watch.overflows == 6
    assert not model.stop_training


@sampled()
@libraries
def test_the_count_goes_on_in_the_next_fit(library):
    """Also with another split, for which the step is set up again."""
    model, watch = made(library), ke.callbacks.LossScale()
    train(model, [0, 1], watch)
    train(model, [3], watch)
    ke.accumulate(model, 2)
    train(model, [0, 3], watch)
    assert watch.overflows == 5


@libraries
def test_without_a_loss_scale_it_is_refused(library):
    model = made(library, scaled=False)
    with pytest.raises(InputError, match=r"LossScale needs .* Received: SGD\. Set ke\.mixed"):
        train(model, [], ke.callbacks.LossScale())


@pytest.mark.parametrize("patience", [0, -1, 2.0, True])
def test_patience_is_a_positive_int(patience):
    with pytest.raises(
        ValueError, match=f"`patience` must be a positive int. Received: {patience}"
    ):
        ke.callbacks.LossScale(patience)
