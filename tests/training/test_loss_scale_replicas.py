"""Dynamic loss scaling: one decision for all replicas, and a skipped update is not a step."""

import numpy as np
import pytest
import tensorflow as tf
from covering import covering, sampled
from fit_helpers import SMALL, batches, mirrored
from zoo import keras_of

import keras_efficient as ke

libraries = pytest.mark.parametrize("library", ["keras", "tf_keras"])
LIBRARIES = ("keras", "tf_keras")
rotated = pytest.mark.parametrize("library, replicas", covering(LIBRARIES, (2, 1), strength=1))
SCALE = 2.0**10
FIRST, SECOND = 0, 1


def linear(library, count, *, use_ema=False, growth_steps=2000, scaled=True):
    """A linear model whose rate halves with every step, compiled with a loss scale of 2^10."""
    keras = keras_of(library)
    with mirrored(count).scope():
        model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
        model.set_weights([np.full((2, 1), 0.5, "float32"), np.zeros(1, "float32")])
        decay = keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
        ema = {"use_ema": True, "ema_momentum": 0.5} if use_ema else {}
        inner = keras.optimizers.SGD(decay, momentum=0.9, **ema)
        scaling = keras.mixed_precision.LossScaleOptimizer
        optimizer = scaling(inner, initial_scale=SCALE, dynamic_growth_steps=growth_steps)
        model.compile(optimizer if scaled else inner, "mse")
    return model


def good(n=4):
    x = np.random.default_rng(0).normal(size=(n, 2)).astype("float32")
    return x, x.sum(1, keepdims=True)


def bad(replica, n=4):
    """A batch with an infinite feature in the share of one replica."""
    x, y = good(n)
    x[replica * n // 2, 0] = np.inf
    return x, y


def train(model, *data):
    for x, y in data:
        model.fit(batches(x, y, batch_size=len(x)), shuffle=False, verbose=0)


def scaling(model):
    return ke.flavor.of(model).loss_scale(model)


def copies(model):
    """Every variable of model and optimizer but the scale's own, on every replica."""
    flavor = ke.flavor.of(model)
    inner = flavor.optimizer(model)
    variables = inner.variables() if callable(inner.variables) else inner.variables
    values = list(map(flavor.value, [*model.weights, *variables]))
    strategy = model.distribute_strategy
    return [p.numpy() for v in values for p in strategy.experimental_local_results(v)]


def assert_bitwise(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@sampled()
@pytest.mark.parametrize(
    "library, place, use_ema",
    covering(LIBRARIES, [(2, FIRST), (2, SECOND), (1, FIRST)], [True, False], strength=1),
)
def test_an_overflow_on_one_replica_changes_nothing_anywhere(library, place, use_ema):
    """Weights, momentum, moving averages, `iterations` and with them the schedule."""
    count, replica = place
    model = ke.accumulate(linear(library, count, use_ema=use_ema), 2)
    train(model, good())
    before = copies(model)
    assert int(scaling(model).inner.iterations.numpy()) == 1
    train(model, bad(replica))
    assert_bitwise(copies(model), before)
    assert float(scaling(model).scale.numpy()) == SCALE / 2
    assert int(scaling(model).good_steps.numpy()) == 0
    train(model, good())
    assert int(scaling(model).inner.iterations.numpy()) == 2
    assert all(np.isfinite(copy).all() for copy in copies(model))


@sampled()
@rotated
def test_after_an_overflow_training_goes_on_as_if_it_had_not_been(library, replicas):
    skipping, plain = (ke.accumulate(linear(library, replicas), 2) for _ in range(2))
    train(skipping, good(), bad(SECOND), good())
    train(plain, good(), good())
    # Another power of two scales: no digit changes.
    for a, b in zip(skipping.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.full
@sampled()
@rotated
def test_the_scale_doubles_after_growth_steps(library, replicas):
    model = ke.accumulate(linear(library, replicas, growth_steps=2), 2)
    scales = []
    for data in (good(), good(), good(), bad(SECOND), good(), good()):
        train(model, data)
        scales.append(float(scaling(model).scale.numpy()) / SCALE)
    # One good step of a window, then an overflow: the count begins again.
    assert scales == [1, 2, 2, 1, 1, 2]


@sampled()
@libraries
def test_scaled_training_is_unscaled_training(library):
    scaled, plain = (linear(library, 2, scaled=scaled) for scaled in (True, False))
    for model in (scaled, plain):
        ke.accumulate(model, 2)
        train(model, good(6), good(5))
    for a, b in zip(scaled.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.full
def test_trap_9_keras_3_trusts_the_first_replica():
    """Plain `fit` with an inf on replica 1 alone: -inf in the weights, and the scale stays."""
    model = linear("keras", 2)
    train(model, bad(SECOND))
    assert not all(np.isfinite(w).all() for w in model.get_weights())
    assert float(scaling(model).scale.numpy()) == SCALE

    ours = ke.accumulate(linear("keras", 2), 2)
    before = ours.get_weights()
    train(ours, bad(SECOND))
    assert_bitwise(ours.get_weights(), before)
    assert float(scaling(ours).scale.numpy()) == SCALE / 2


@pytest.mark.full
def test_trap_11_tf_keras_counts_a_skipped_update_as_a_step():
    """Then the schedule goes on without an update; Keras 3 and ours wait."""
    counts = {}
    for name, model in {
        "tf_keras": linear("tf_keras", 1),
        "keras": linear("keras", 1),
        "tf_keras, ours": ke.accumulate(linear("tf_keras", 1), 2),
        "keras, ours": ke.accumulate(linear("keras", 1), 2),
    }.items():
        train(model, bad(FIRST), good())
        counts[name] = int(scaling(model).inner.iterations.numpy())
    assert counts == {"tf_keras": 2, "keras": 1, "tf_keras, ours": 1, "keras, ours": 1}


@pytest.mark.full
@sampled()
@libraries
def test_trap_12_a_loss_scale_at_its_floor_skips_silently_for_ever(library):
    """Upstream: no update, no word. (Of ours, `ke.callbacks` has the word.)"""
    model = linear(library, 1)
    train(model, *[bad(FIRST)] * 13)
    before = model.get_weights()
    # Keras 3 goes below 1, down to where float32 ends; tf_keras stops at 1.
    assert float(scaling(model).scale.numpy()) == (1.0 if library == "tf_keras" else SCALE / 2**13)
    train(model, bad(FIRST))
    assert_bitwise(model.get_weights(), before)

    ours = ke.accumulate(linear(library, 1), 2)
    train(ours, *[bad(FIRST)] * 13)
    assert float(scaling(ours).scale.numpy()) == 1.0


@pytest.fixture
def float16():
    def choose(library):
        ke.mixed_precision("mixed_float16", library=library)

    yield choose
    for library in ("keras", "tf_keras"):
        ke.mixed_precision("float32", library=library)


@pytest.mark.full
@sampled()
@rotated
def test_float16_with_the_loss_scale_of_compile_is_about_float32(library, replicas, float16):
    specimen = SMALL[library]
    keras = keras_of(specimen.library)

    def run(half):
        if half:
            float16(specimen.library)
        with mirrored(replicas).scope():
            model = specimen.make()
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile(keras.optimizers.SGD(0.3), loss)
        ke.mixed_precision("float32", library=specimen.library)
        assert ("LossScale" in type(model.optimizer).__name__) == half
        ke.accumulate(model, 2)
        losses = model.fit(
            batches(*specimen.batch(12), batch_size=12), epochs=6, shuffle=False, verbose=0
        ).history["loss"]
        if half:
            # Otherwise it is not the same updates that are compared.
            assert int(scaling(model).inner.iterations.numpy()) == 6
        assert tf.as_dtype(model.weights[0].dtype) == tf.float32
        return model.get_weights(), losses

    (half, half_losses), (single, losses) = run(True), run(False)
    assert losses[-1] < losses[0] - 1e-3
    np.testing.assert_allclose(half_losses, losses, rtol=5e-3)
    for a, b in zip(half, single, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-3)
