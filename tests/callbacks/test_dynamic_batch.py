"""Callbacks that set the number of batches per update."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from covering import covering, sampled
from fit_helpers import batches, compiled, mirrored
from zoo import Specimen, _sequential, keras_of

import keras_efficient as ke
from keras_efficient import flavor as flavors
from keras_efficient._errors import InputError
from keras_efficient.callbacks._gradient_noise_scale import noise_scale

SMALL = {lib: Specimen(lib, lib, _sequential(lib), lambda x: x) for lib in ("keras", "tf_keras")}
libraries = pytest.mark.parametrize("library", list(SMALL))
Growth = ke.callbacks.BatchSizeSchedule
Noise = ke.callbacks.GradientNoiseScale
Plateau = ke.callbacks.AdaptOnPlateau


def made(library, optimizer=None, **kwargs):
    return compiled(library, SMALL[library].make(), optimizer, jit_compile=False, **kwargs)


def train(model, callback, n=12, batch_size=3, **kwargs):
    data = batches(*SMALL["keras"].batch(n), batch_size=batch_size)
    return model.fit(data, shuffle=False, verbose=0, callbacks=[callback], **kwargs).history


def updates(model):
    return int(flavors.of(model).optimizer(model).iterations.numpy())


# --- BatchSizeSchedule; for the updates see tests/training/test_accumulation_window.py ----------


@sampled()
@pytest.mark.parametrize("library, as_function", covering(SMALL, (False, True), strength=1))
def test_batches_per_update_are_logged(library, as_function):
    growth = (lambda update: 1 + (update >= 4)) if as_function else {0: 1, 4: 2}
    model = made(library)
    history = train(model, Growth(growth), epochs=3)
    assert history["batches_per_update"] == [1, 2, 2]
    assert updates(model) == 4 + 2 + 2
    assert "train_step" not in vars(model)


@pytest.mark.parametrize("table", [{}, {1: 2}, {-1: 2, 0: 1}, [1, 2], 4])
def test_a_schedule_says_what_to_start_with(table):
    with pytest.raises(ValueError, match="`batches_per_update` must be a function, or a dict"):
        Growth(table)


@pytest.mark.parametrize("batches", [0, -1, 1.5, True])
def test_batches_are_a_positive_int(batches):
    message = f"must be a positive int. Received: {batches} for update 5"
    with pytest.raises(ValueError, match=message):
        Growth({0: 1, 5: batches})
    with pytest.raises(ValueError, match="Received: None for update 0"):
        train(made("keras"), Growth(lambda update: None))


# --- GradientNoiseScale -------------------------------------------------------------------------


def test_the_estimates_are_right_on_average():
    """Gradients of b and B examples around a known mean, with a known variance."""
    rng = np.random.default_rng(0)
    mean, deviation = np.array([1.0, -2.0, 0.5]), np.array([1.0, 3.0, 0.1])
    small, large, times = 4, 16, 20000
    examples = mean + deviation * rng.normal(size=(times, large, 3))
    norms = [np.mean((examples[:, :n].mean(1) ** 2).sum(-1)) for n in (small, large)]
    squared, variance = noise_scale(*map(tf.constant, norms), float(small), float(large))
    np.testing.assert_allclose(squared, (mean**2).sum(), rtol=0.02)
    np.testing.assert_allclose(variance, (deviation**2).sum(), rtol=0.02)


def test_without_replacement_the_size_of_the_data_corrects_the_estimate():
    """A reshuffled dataset gave values that were 42 % and 59 % too large."""
    rng = np.random.default_rng(0)
    for size, batch, microbatch in [(64, 16, 4), (60, 30, 10), (32, 32, 8)]:
        examples = rng.normal([1.0, 0.5], [5.0, 1.0], (size, 2))
        variance = examples.var(0, ddof=1).sum()
        truth = variance / (examples.mean(0) ** 2).sum()
        estimates = []
        for _ in range(20000 // batch):
            drawn = rng.permutation(examples)[:batch]
            parts = drawn.reshape(-1, microbatch, 2).mean(1)
            norms = (parts**2).sum(-1).mean(), (drawn.mean(0) ** 2).sum()
            estimates.append(noise_scale(*norms, float(microbatch), float(batch)))
        squared, spread = np.mean(estimates, 0)
        values = []
        for noise in (Noise(), Noise(dataset_size=size), Noise(dataset_size=10**9)):
            noise._state = tf.Variable([squared, spread, 1.0, 1.0, batch])
            values.append(noise.value)
        plain, corrected, unlimited = values
        np.testing.assert_allclose(corrected, truth, rtol=0.1)
        np.testing.assert_allclose(plain, truth / (1 - truth / size), rtol=0.15)
        assert plain > 1.2 * truth
        np.testing.assert_allclose(unlimited, plain, rtol=1e-4)


def test_a_gradient_that_is_lost_in_the_noise_of_few_examples():
    """About the number of examples, in place of inf."""
    for squared, expected in [(0.0, 64), (-0.2, float("inf")), (1.0, 64 / 7.4)]:
        noise = Noise(dataset_size=64)
        noise._state = tf.Variable([squared, 10.0, 1.0, 1.0, 8.0])
        np.testing.assert_allclose(noise.value, expected, rtol=1e-5)
        noise._state.assign([squared, -1.0, 1.0, 1.0, 8.0])
        assert noise.value == (0 if squared > 0 else float("inf"))


def test_the_growing_batch_of_the_documentation_reaches_the_size_it_names():
    """docs/large-batch.md said "from 32 to 256" and ended at 128."""
    text = (Path(__file__).parents[2] / "docs/large-batch.md").read_text()
    first, last = map(int, re.search(r"# Or grow from (\d+) to (\d+)", text).groups())
    examples = int(re.search(r"rng\.normal\(size=\((\d+), 8\)\)", text).group(1))
    table = ast.literal_eval(re.search(r"BatchSizeSchedule\((\{.*?\})\)", text).group(1))
    schedule, sizes, left = Growth(table).schedule, [], examples // first
    while left > 0:
        sizes.append(first * min(schedule(len(sizes)), left))
        left -= schedule(len(sizes) - 1)
    # Half of the examples in updates of the first size, then a quarter, an eighth and an eighth.
    assert sizes[0] == first and sizes[-1] == last
    shares = [sizes.count(size) * size / examples for size in sorted(set(sizes))]
    assert shares == [0.5, 0.25, 0.125, 0.125]


def test_equal_sizes_tell_nothing():
    assert list(noise_scale(tf.constant(2.0), tf.constant(1.0), 4.0, 4.0)) == [0, 0]


def linear(library, count=1, *, loss="mse", rate=0.0, scale=None):
    keras = keras_of(library)
    with mirrored(count).scope():
        model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1, use_bias=False)])
        model.set_weights([np.zeros((2, 1), "float32")])
        optimizer = keras.optimizers.SGD(rate)
        if scale:
            optimizer = keras.mixed_precision.LossScaleOptimizer(optimizer, initial_scale=scale)
        model.compile(optimizer, loss, jit_compile=False)
    return model


def regression(n=2048):
    """At weights of zero an example's gradient is -2xy: with y = x₀ + noise it is known."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(n, 2)).astype("float32")
    y = x[:, :1] + 3 * rng.normal(size=(n, 1)).astype("float32")
    gradients = -2 * x * y
    return (x, y), gradients.var(0).sum() / (gradients.mean(0) ** 2).sum()


SPLITS = [(1, 4, None), (2, 1, None), (1, 4, 1024.0)]


@sampled()
@pytest.mark.parametrize("library, split", covering(SMALL, SPLITS, strength=1))
def test_in_fit_it_is_that_of_the_data(library, split):
    """From microbatches, or from replicas; without the loss scale."""
    (count, microbatches, scale), (data, expected) = split, regression()
    noise, model = Noise(smoothing=0.98), linear(library, count, scale=scale)
    assert Noise().batches == 1
    ke.accumulate(model, microbatches)
    history = model.fit(
        batches(*data, batch_size=32), epochs=2, shuffle=False, verbose=0, callbacks=[noise]
    ).history
    assert history["gradient_noise_scale"][-1] == noise.value
    assert expected / 2 < noise.value < expected * 2
    assert 5 < expected < 50
    ke.accumulate(model, None)
    assert "train_step" not in vars(model)


@sampled()
@pytest.mark.parametrize("library, replicas", covering(SMALL, (1, 2), strength=1))
def test_the_batch_follows_the_noise(library, replicas):
    """256 batches of 2 examples: about ten of them are worth it, four are allowed."""
    data, expected = regression(512)
    noise, model = Noise(smoothing=0.9, max_batches=4, every_updates=20), linear(library, replicas)
    ke.accumulate(model, microbatch_size=1)
    model.fit(batches(*data, batch_size=2), shuffle=False, verbose=0, callbacks=[noise])
    assert noise.batches == 4 < expected / 2
    assert updates(model) < 256 / 2
    many = Noise(smoothing=0.98, max_batches=1000)
    model.fit(batches(*data, batch_size=6), shuffle=False, verbose=0, callbacks=[many])
    # The last window and the last batch are incomplete, which does not bias the estimate.
    assert (
        many.batches == max(1, round(many.value / 6))
        or abs(many.batches * 6 / many.value - 1) < 0.3
    )


@sampled()
@libraries
def test_a_schedule_of_batches_gives_microbatches_too(library):
    data, expected = regression(1024)
    noise, model = Noise(smoothing=0.98), linear(library)
    callbacks = [noise, Growth({0: 4})]
    model.fit(batches(*data, batch_size=4), shuffle=False, verbose=0, callbacks=callbacks)
    assert expected / 3 < noise.value < expected * 3


@pytest.mark.parametrize("library, settings", covering(SMALL, ({}, {"max_batches": 4}), strength=1))
def test_one_microbatch_is_refused(library, settings):
    data, _ = regression(8)
    with pytest.raises(InputError, match=r"Received: updates of one microbatch\. Use ke\.accumula"):
        linear(library).fit(batches(*data, batch_size=4), verbose=0, shuffle=False,
                            callbacks=[Noise(**settings)])  # fmt: skip


@libraries
def test_summed_losses_are_refused(library):
    data, _ = regression(8)
    loss = keras_of(library).losses.MeanSquaredError(reduction="sum")
    model = ke.accumulate(linear(library, loss=loss), 2)
    with pytest.raises(ValueError, match=r'needs a loss that is averaged .* reduction="sum"'):
        model.fit(batches(*data, batch_size=4), shuffle=False, verbose=0, callbacks=[Noise()])


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_smoothing_is_a_share(smoothing):
    with pytest.raises(ValueError, match=rf"`smoothing` must be in \[0, 1\)\. .*{smoothing}"):
        Noise(smoothing)


@pytest.mark.parametrize("name", ["max_batches", "every_updates", "dataset_size"])
def test_counts_are_positive_ints(name):
    with pytest.raises(ValueError, match=f"`{name}` must be a positive int. Received: 0"):
        Noise(**{name: 0})


# --- AdaptOnPlateau -----------------------------------------------------------------------------


class Says(ke.flavor.Callback):
    """Puts given values into the epoch's logs, as validation would."""

    def __init__(self, name, values):
        self.name, self.values = name, values

    def on_epoch_end(self, epoch, logs=None):
        logs[self.name] = self.values[epoch]


def watched(model, plateau, values, name="val_loss"):
    data = batches(*SMALL["keras"].batch(12), batch_size=3)
    history = model.fit(
        data,
        epochs=len(values),
        shuffle=False,
        verbose=0,
        callbacks=[Says(name, values), plateau],
    ).history
    return history["learning_rate_scale"], history


@sampled()
@libraries
def test_patience_waits_and_an_improvement_starts_it_again(library):
    model = made(library)
    values = [3, 2, 2, 2.5, 1.9, 1.9, 1.9, 1.9, 1.9]
    scales, _ = watched(model, Plateau(patience=2), values)
    # After two epochs without improvement, and again after two more.
    assert scales == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.125]
    assert float(model.optimizer.learning_rate.numpy()) == 0.5 * 0.125


@libraries
def test_it_acts_at_the_epochs_of_reduce_lr_on_plateau(library):
    """`patience=2` waited three epochs, where the libraries' callback waits two."""
    model = made(library)
    falling, stuck = [3, 2, 2.5, 2, 1.9, 1.9, 1.9, 1.8, 1.8, 1.8, 1.8, 1.8], [1.0] * 12
    for patience, values, mode, delta in [
        (0, falling, "min", 0.0),
        (1, falling, "min", 0.0),
        (2, falling, "min", 0.0),
        (2, stuck, "min", 0.0),
        (3, stuck, "min", 0.0),
        (2, [-value for value in falling], "max", 0.15),
        (2, [3, float("nan"), float("nan"), 2, 2, 2], "min", 0.0),
    ]:
        reduce = keras_of(library).callbacks.ReduceLROnPlateau(
            "x", factor=0.5, patience=patience, mode=mode, min_delta=delta
        )
        plateau = Plateau("x", patience=patience, mode=mode, min_delta=delta)
        rates = []
        for callback in (reduce, plateau):
            model.optimizer.learning_rate.assign(0.5)
            callback.set_model(model)
            callback.on_train_begin()
            taken = []
            for epoch, value in enumerate(values):
                callback.on_epoch_end(epoch, {"x": value})
                taken.append(float(model.optimizer.learning_rate.numpy()))
            rates.append(taken)
        assert rates[0] == rates[1], (patience, values)
        assert rates[1][-1] < 0.5


def test_a_small_improvement_is_none():
    scales, _ = watched(made("keras"), Plateau(patience=0, min_delta=0.1), [3, 2.95, 2.8])
    assert scales == [1, 0.5, 0.5]


@sampled()
@libraries
def test_schedules_are_scaled_down_to_the_least(library):
    schedule = ke.schedules.linear(0.5, total_steps=100).wrap(library)
    model = made(library, keras_of(library).optimizers.SGD(schedule))
    adapt = Plateau(patience=0, rate_factor=0.5, min_scale=0.3)
    scales, _ = watched(model, adapt, [1, 1, 1, 1])
    np.testing.assert_allclose(scales, [1, 0.5, 0.3, 0.3])
    assert adapt.scale == 0.3
    np.testing.assert_allclose(float(schedule(16)), 0.3 * 0.5 * (1 - 16 / 100), rtol=1e-5)


@sampled()
@libraries
def test_batches_grow_instead_of_the_rate_falling(library):
    model = made(library)
    adapt = Plateau(patience=0, rate_factor=1, batch_factor=3, max_batches=4)
    scales, history = watched(model, adapt, [1, 1, 1, 1])
    assert scales == [1] * 4
    assert history["batches_per_update"] == [1, 3, 4, 4] and adapt.batches == 4
    # 4 batches per epoch: 4 updates, 4, 3 + 1, 4.
    assert updates(model) == 4 + 4 + 2 + 1
    assert "train_step" not in vars(model)


def test_the_mode():
    """Values that rise: good for an accuracy, bad for a loss."""
    cases = [
        ("val_accuracy", "auto", False),
        ("val_f1", "auto", False),
        ("val_loss", "auto", True),
        ("val_accuracy", "min", True),
        ("val_loss", "max", False),
    ]
    model = made("keras")
    for name, mode, falls in cases:
        plateau = Plateau(name, mode=mode, patience=0)
        plateau.set_model(model)
        plateau.on_train_begin()
        for value in (1, 2):
            plateau.on_epoch_end(0, {name: value})
        assert plateau.scale == (0.5 if falls else 1), (name, mode)


@sampled()
@libraries
def test_what_is_monitored_must_be_in_the_logs(library):
    with pytest.raises(InputError, match=r"Received: 'val_loss' with logs of \['accuracy', 'loss'"):
        train(made(library), Plateau())


@libraries
def test_a_foreign_schedule_is_refused(library):
    keras = keras_of(library)
    model = made(library, keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 10)))
    with pytest.raises(InputError, match=r"Received: CosineDecay\. Use the schedule of that name"):
        train(model, Plateau("loss"))


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"mode": "up"}, "`mode` must be 'auto', 'min' or 'max'"),
        ({"patience": -1}, "`patience` must be an int >= 0"),
        ({"rate_factor": 0}, r"`rate_factor` must be in \(0, 1\]"),
        ({"batch_factor": 0}, "`batch_factor` must be an int >= 1"),
        ({"max_batches": 0}, "`max_batches` must be an int >= 1"),
        ({"min_delta": -1}, "`min_scale` and `min_delta` must be >= 0"),
        ({"rate_factor": 1}, "`rate_factor` < 1 or `batch_factor` > 1"),
    ],
)
def test_numbers_out_of_range_are_refused(settings, rule):
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=rf"{rule}.*\. Received: .*{name}={value!r}"):
        Plateau(**settings)
