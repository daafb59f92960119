"""Several batches of `fit` that make one update, as with `ke.callbacks.BatchSizeSchedule`."""

import numpy as np
import pytest
from covering import covering, sampled
from fit_helpers import (
    SMALL,
    assert_same,
    batches,
    compiled,
    fit,
    mirrored,
    moved,
    sample_weights,
)
from zoo import keras_of

import keras_efficient as ke
from keras_efficient import flavor as flavors
from keras_efficient.training import (
    _accumulation_window as accumulation_window,
    _train_step_hook as train_step_hook,
)

libraries = pytest.mark.parametrize("library", list(SMALL))
rotated = pytest.mark.parametrize("library, replicas", covering(SMALL, (1, 2), strength=1))
Growth = ke.callbacks.BatchSizeSchedule


def made(library, replicas=1, optimizer=None):
    with mirrored(replicas).scope():
        return compiled(library, SMALL[library].make(), optimizer and optimizer())


def train(model, n=20, batch_size=20, callbacks=(), **kwargs):
    x, y = SMALL["keras"].batch(n)
    data = batches(x, y, sample_weights(n), batch_size=batch_size)
    return model.fit(data, shuffle=False, verbose=0, callbacks=list(callbacks), **kwargs).history


def updates(model):
    return int(flavors.of(model).optimizer(model).iterations.numpy())


@sampled()
@pytest.mark.parametrize(
    "library, replicas, window",
    covering(SMALL, (1, 2), [(6, 4), (6, 99), (5, 4)], strength=1),
)
def test_n_batches_make_the_update_of_one(library, replicas, window):
    """The last may be smaller; a window that is not full makes its update at the epoch's end."""
    size, count = window
    rate = ke.schedules.linear(0.5, total_steps=4)

    def sgd():
        return keras_of(library).optimizers.SGD(rate.wrap(library))

    one, several = made(library, optimizer=sgd), made(library, replicas, optimizer=sgd)
    train(one, epochs=2)
    train(ke.accumulate(several, 2), batch_size=size, callbacks=[Growth({0: count})], epochs=2)
    # One update is one step of the schedule, or the second would have another rate.
    assert updates(several) == updates(one) == 2
    assert_same(one, several, 1e-6)
    assert "train_step" in vars(several)
    assert train_step_hook.of(several).window is None


@sampled()
@libraries
def test_the_last_update_comes_before_validation(library):
    """Trap 6: keras validates, and saves, with gradients that were never applied."""
    x, y = SMALL[library].batch(8, seed=1)
    one, several = made(library), made(library)
    expected = train(one, validation_data=batches(x, y, batch_size=8))
    found = train(several, 20, 6, [Growth({0: 99})], validation_data=batches(x, y, batch_size=8))
    np.testing.assert_allclose(found["val_loss"], expected["val_loss"], rtol=1e-5)


@sampled()
@libraries
def test_a_change_traces_nothing(library):
    keras, traces = keras_of(library), []

    class Spy(keras.layers.Layer):
        def call(self, x):
            traces.append(1)
            return x

    model = keras.Sequential([keras.layers.Input((2,)), Spy(), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    data = np.ones((24, 2), "float32"), np.ones((24, 1), "float32")
    seen = []

    class Count(ke.flavor.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append((len(traces), updates(model)))

    growth = Growth({0: 1, 2: 2, 4: 3})
    model.fit(batches(*data, batch_size=2), shuffle=False, verbose=0, callbacks=[growth, Count()])
    counted = [update for _, update in seen]
    assert counted == [1, 2, 2, 3, 3, 4, 4, 4, 5, 5, 5, 6]
    assert len({trace for trace, _ in seen}) == 1


class Stop(ke.flavor.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 1:
            raise KeyboardInterrupt


@sampled()
@pytest.mark.parametrize("library, again", covering(SMALL, [True, False], strength=1))
def test_an_interrupted_fit_leaves_no_gradient_behind(library, again):
    model, plain = made(library), made(library)
    growth = Growth({0: 4})
    before = model.get_weights()
    with pytest.raises(KeyboardInterrupt):
        train(model, 20, 5, [growth, Stop()])
    assert moved(before, model) == 0
    train(model, 20, 5, [growth if again else Growth({0: 4})])
    train(plain)
    assert_same(plain, model, 1e-6)


@pytest.mark.full
@sampled()
@libraries
def test_after_an_interrupted_fit_another_callback_may_set_how_many(library):
    model = ke.accumulate(made(library), 2)
    with pytest.raises(KeyboardInterrupt):
        train(model, 20, 5, [Growth({0: 4}), Stop()])
    train(model, 20, 5, [ke.callbacks.GradientNoiseScale(max_batches=2)])
    assert updates(model) >= 2


@pytest.mark.full
@sampled()
@libraries
def test_the_same_callback_works_in_a_second_fit(library):
    model, growth = made(library), Growth({0: 4})
    for fits in (1, 2):
        train(model, 20, 5, [growth])
        assert updates(model) == fits


@sampled()
@rotated
def test_an_overflow_skips_the_whole_window(library, replicas):
    keras = keras_of(library)
    with mirrored(replicas).scope():
        model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
        scaled = keras.mixed_precision.LossScaleOptimizer(keras.optimizers.SGD(0.1))
        model.compile(scaled, "mse")
    x = np.ones((12, 2), "float32")
    x[2] = np.inf
    history, before = [], model.get_weights()

    class Watch(ke.flavor.Callback):
        def on_train_batch_end(self, batch, logs=None):
            history.append((updates(model), moved(before, model) > 0))

    ke.accumulate(model, 1)
    data = batches(x, np.ones((12, 1), "float32"), batch_size=2)
    model.fit(data, shuffle=False, verbose=0, callbacks=[Growth({0: 3}), Watch()])
    assert history == [(0, False)] * 5 + [(1, True)]
    assert all(np.isfinite(w).all() for w in model.get_weights())


def test_one_callback_sets_how_many():
    model = made("keras")
    both = [Growth({0: 2}), ke.callbacks.AdaptOnPlateau("loss", batch_factor=2)]
    with pytest.raises(ValueError, match="Received: AdaptOnPlateau beside BatchSizeSchedule"):
        train(model, callbacks=both)


def test_detach_is_for_the_owner_alone():
    model, owner = made("keras"), object()
    present = accumulation_window.attach(model, owner)
    accumulation_window.detach(model, object())
    assert train_step_hook.of(model).window is present
    accumulation_window.detach(model, owner)
    assert train_step_hook.of(model) is None
    accumulation_window.detach(model, owner)


@pytest.mark.full
@sampled()
@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_an_interrupted_fit_leaves_nothing_to_the_next(library):
    """Neither the window nor the watchers and averages of callbacks that are not given again."""

    class Interrupt(ke.flavor.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    keras = keras_of(library)
    model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x, y = np.ones((8, 2), "float32"), np.ones((8, 1), "float32")
    callbacks = [
        ke.callbacks.BatchSizeSchedule({0: 4}),
        ke.callbacks.GradientNorm(),
        ke.callbacks.EMA(),
        Interrupt(),
    ]
    with pytest.raises(KeyboardInterrupt):
        fit(model, x, y, batch_size=2, callbacks=callbacks)
    fit(model, x, y, batch_size=2)
    assert int(model.optimizer.iterations.numpy()) == 4
    assert vars(model)["_keras_efficient_step"].parts == []
