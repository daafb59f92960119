"""The range test finds a good rate, and restores the model."""

import contextlib

import numpy as np
import pytest
import tensorflow as tf
from covering import covering, sampled
from fit_helpers import compiled
from zoo import ZOO, Specimen, _sequential, keras_of

import keras_efficient as ke
from keras_efficient import flavor as flavors
from keras_efficient.callbacks import LearningRateReport
from keras_efficient.callbacks._find_learning_rate import smooth, steepest
from keras_efficient.checkpoint._variables import model_variables, optimizer_chain

BY_NAME = {specimen.name: specimen for specimen in ZOO}
LIBRARIES = ("keras", "tf_keras")
libraries = pytest.mark.parametrize("library", LIBRARIES)
#: Without attention, which takes long to trace.
SMALL = {lib: Specimen(lib, lib, _sequential(lib), lambda x: x) for lib in LIBRARIES}


def batches(specimen, n=24, size=8):
    return tf.data.Dataset.from_tensor_slices(specimen.batch(n)).batch(size)


def state(model):
    """Values of all variables, and what else a `fit` changes."""
    values = [v.numpy() for v in model_variables(model).values()]
    *_, optimizer = optimizer_chain(model.optimizer)
    place = getattr(optimizer, "_hyper", None) or vars(optimizer)
    rate = place.get("_learning_rate", place.get("learning_rate"))
    return values, rate, model.stop_training, getattr(model, "history", None)


@contextlib.contextmanager
def unchanged(model):
    """Bit by bit; the rate, a schedule or a variable, is the same object."""
    values, *rest = state(model)
    yield
    after, *rest_after = state(model)
    assert len(values) == len(after) > 2
    for a, b in zip(values, after, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(rest, rest_after, strict=True):
        assert a is b


OPTIMIZERS = {
    "float": lambda keras, library: keras.optimizers.Adam(0.01),
    "theirs": lambda keras, library: keras.optimizers.Adam(
        keras.optimizers.schedules.ExponentialDecay(0.01, 10, 0.5), use_ema=True
    ),
    "ours": lambda keras, library: ke.optimizers.AdamW(
        ke.schedules.warmup_linear(0.01, warmup_steps=2, total_steps=99), library=library
    ),
    "float16": lambda keras, library: keras.mixed_precision.LossScaleOptimizer(
        keras.optimizers.Adam(ke.schedules.constant(0.01).wrap(library))
    ),
}


@sampled()
@pytest.mark.parametrize("library, kind", covering(LIBRARIES, OPTIMIZERS, strength=1))
def test_everything_is_restored(library, kind):
    specimen = SMALL[library]
    keras = keras_of(library)
    data = batches(specimen)

    def trained():
        optimizer = OPTIMIZERS[kind](keras, library)
        model = compiled(library, specimen.make(), optimizer, jit_compile=False)
        model.fit(data, verbose=0)
        return model

    model, other = trained(), trained()
    with unchanged(model):
        found = ke.find_learning_rate(model, data, low=1e-4, high=1e-1, steps=10)
    assert len(found.rates) == 10
    # And it trains like a model that was not tested.
    for each in (model, other):
        each.fit(data, verbose=0)
    for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@sampled()
@pytest.mark.parametrize(
    "name",
    [
        "keras-subclassed",
        "tf_keras-functional",
        pytest.param("kerashub-bert", marks=pytest.mark.full),
        pytest.param("hugging-face-bert", marks=pytest.mark.full),
    ],
)
def test_models_of_the_zoo_with_microbatches(name):
    specimen = BY_NAME[name]
    model = compiled(specimen.library, specimen.make(), jit_compile=False)
    ke.accumulate(model, 2)
    data = batches(specimen)
    model.fit(data, verbose=0)
    with unchanged(model):
        found = ke.find_learning_rate(
            model, data.take(1), low=1e-2, high=1e3, steps=20, smoothing=0.3
        )
    assert 1e-2 < found.suggestion < 1e3
    assert found.losses[0] == pytest.approx(model.evaluate(data.take(1), verbose=0)[0], rel=1e-4)


@pytest.mark.parametrize("scheduled", [pytest.param(False, marks=pytest.mark.full), True])
def test_legacy_optimizers_of_tf_keras(scheduled):
    import tf_keras

    specimen = SMALL["tf_keras"]
    rate = ke.schedules.constant(0.01).wrap("tf_keras") if scheduled else 0.01
    model = compiled("tf_keras", specimen.make(), tf_keras.optimizers.legacy.Adam(rate))
    data = batches(specimen)
    model.fit(data, verbose=0)
    with unchanged(model):
        found = ke.find_learning_rate(
            model, data.take(1), low=1e-4, high=1e2, steps=20, smoothing=0.3
        )
    assert 1e-4 < found.suggestion < 10


def test_random_states_of_keras_3_are_restored():
    import keras

    layers = keras.layers
    model = keras.Sequential([layers.Input((3,)), layers.Dropout(0.5), layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=False)
    data = tf.data.Dataset.from_tensors((np.ones((8, 3)), np.ones((8, 1))))
    seeds = [v.numpy() for v in flavors.of(model).state(model)]
    ke.find_learning_rate(model, data, low=1e-4, high=1e-2, steps=10)
    for a, b in zip(seeds, flavors.of(model).state(model), strict=True):
        np.testing.assert_array_equal(a, b.numpy())


@sampled()
@pytest.mark.parametrize(
    "library, error", covering(LIBRARIES, (KeyboardInterrupt, RuntimeError), strength=1)
)
def test_everything_is_restored_after_an_interrupt(library, error):
    specimen = SMALL[library]
    rate = ke.schedules.constant(0.01)
    optimizer = ke.optimizers.AdamW(rate, library=library)
    model = compiled(library, specimen.make(), optimizer, jit_compile=False)
    data = batches(specimen)
    model.fit(data, verbose=0)
    reset, calls = model.reset_metrics, []

    def interrupted():
        calls.append(None)
        if len(calls) == 7:
            raise error("stop")
        reset()

    object.__setattr__(model, "reset_metrics", interrupted)
    with unchanged(model), pytest.raises(error, match="stop"):
        ke.find_learning_rate(model, data, low=1e-3, high=1.0, steps=20)
    assert len(calls) == 8


@sampled()
@libraries
def test_nothing_need_be_built(library):
    keras = keras_of(library)
    model = keras.Sequential([keras.layers.Dense(4, activation="relu"), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(), "mse", metrics=["mae"], jit_compile=False)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 3)).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((x, x.sum(1, keepdims=True))).batch(8)
    found = ke.find_learning_rate(model, data, low=1e-5, high=10, steps=40)
    assert found.suggestion
    assert int(model.optimizer.iterations) == 0
    *_, rate = optimizer_chain(model.optimizer)
    assert float(rate.learning_rate) == pytest.approx(1e-3)
    slots = [v.numpy() for v in model_variables(model).values() if v.shape == (3, 4)][1:]
    assert len(slots) == 2
    assert all((slot == 0).all() for slot in slots)
    # The first loss is that of the weights as they are.
    fresh = model.evaluate(data.take(1), verbose=0)[0]
    assert found.losses[0] == pytest.approx(fresh, rel=1e-5)


KINDS = ("infinite", "short", "unknown", "sequence", "generator")


@sampled()
@pytest.mark.parametrize("library, kind", covering(LIBRARIES, KINDS, strength=1))
def test_any_data_that_fit_takes(library, kind):
    keras = keras_of(library)
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(), "mse", jit_compile=False)
    x, y = np.ones((4, 3), "float32"), np.ones((4, 1), "float32")
    dataset = tf.data.Dataset.from_tensors((x, y))

    class Batches(getattr(keras.utils, "PyDataset", None) or keras.utils.Sequence):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return x, y

    data = {
        "infinite": dataset.repeat(),
        "short": dataset,
        "unknown": dataset.repeat(3).filter(lambda x, y: True),
        "sequence": Batches(),
        "generator": ((x, y) for _ in range(30)),
    }[kind]
    found = ke.find_learning_rate(model, data, low=1e-6, high=1e-3, steps=12)
    np.testing.assert_allclose(found.rates, np.geomspace(1e-6, 1e-3, 12))
    assert found.diverged_at is None


# --- what it finds -------------------------------------------------------------------------------


def regression(library, optimizer=None, jit=False):
    """Linear regression on known curvatures: the eigenvalues of 2 XᵀX / n. Returns the largest."""
    rng = np.random.default_rng(0)
    x, _ = np.linalg.qr(rng.normal(size=(256, 4)))
    x = (x * np.sqrt(256 * np.array([8.0, 4.0, 2.0, 1.0]) / 2)).astype("float32")
    y = (x @ rng.normal(size=(4, 1)) + rng.normal(size=(256, 1))).astype("float32")
    keras = keras_of(library)
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
    model = keras.Sequential([keras.layers.Input((4,)), layer])
    model.compile(optimizer or keras.optimizers.SGD(), "mse", jit_compile=jit)
    return model, tf.data.Dataset.from_tensors((x, y)), 8.0


@sampled()
@pytest.mark.parametrize("library, scheduled", covering(LIBRARIES, (False, True), strength=1))
def test_the_suggestion_is_below_the_stable_limit_and_divergence_above(library, scheduled):
    rate = ke.schedules.constant(1.0).wrap(library) if scheduled else 1.0
    optimizer = keras_of(library).optimizers.SGD(rate)
    model, data, curvature = regression(library, optimizer, jit=scheduled)
    found = ke.find_learning_rate(model, data, low=1e-5, high=10.0, steps=100)
    limit = 2 / curvature
    assert limit / 100 < found.suggestion < limit
    assert limit < found.diverged_at < 10 * limit
    # Plain gradient descent in NumPy with these rates has these losses.
    (x, y), weights = next(iter(data.as_numpy_iterator())), np.zeros((4, 1))
    for rate, loss in zip(found.rates, found.losses, strict=True):
        if rate > limit / 2:
            break
        error = x @ weights - y
        assert loss == pytest.approx(np.mean(error**2), rel=1e-3)
        weights = weights - rate * 2 * x.T @ error / len(x)
    # The suggestion trains: the loss comes near the least one.
    assert found.smoothed.min() < 0.5 * found.losses[0]


@sampled()
@libraries
def test_the_loss_is_that_of_each_batch(library):
    """Not the mean since the epoch began, and not the last batch's of a smaller size."""
    keras = keras_of(library)
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
    model = keras.Sequential([keras.layers.Input((1,)), layer])
    model.compile(keras.optimizers.SGD(), "mse", jit_compile=False)
    x, y = np.zeros((10, 1), "float32"), np.repeat([[1.0], [2.0], [3.0]], [4, 4, 2], axis=0)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    found = ke.find_learning_rate(model, data, steps=12, smoothing=0)
    np.testing.assert_allclose(found.losses, [1, 4, 9] * 4 if len(found.losses) == 12 else [1, 4])
    np.testing.assert_array_equal(found.smoothed, found.losses)


def test_smoothing_does_not_shift_the_curve():
    losses = np.array([0.0] * 10 + [1.0] + [0.0] * 10)
    smoothed = smooth(losses, 0.5)
    np.testing.assert_allclose(smoothed, smoothed[::-1])
    assert smoothed.argmax() == 10
    np.testing.assert_allclose(smooth(np.full(7, 3.0), 0.9), 3.0)
    np.testing.assert_array_equal(smooth(losses, 0.0), losses)


def test_the_steepest_point_is_before_the_lowest():
    rates = np.geomspace(1e-4, 1, 41)
    # Falls around 1e-2, is lowest near 1e-1, and jumps later.
    smoothed = -np.tanh(np.log10(rates) + 2)
    smoothed[30:] = [5, -9, *[5] * 9]
    smoothed[31] = 5.0
    assert steepest(rates, smoothed) == pytest.approx(1e-2)
    assert steepest(rates, np.arange(41.0)) is None


def test_a_report_is_shown(tmp_path):
    rates = np.geomspace(1e-4, 1e-1, 30)
    losses = 1 - 0.5 * np.tanh(np.log10(rates) + 2.5)
    found = LearningRateReport(rates, losses, losses, 3.2e-3, 0.2)
    assert "suggestion 3.2e-03" in str(found)
    assert "divergence at 2.0e-01 (30 updates from 1.0e-04 to 1.0e-01" in str(found)
    nothing = LearningRateReport(rates, losses[::-1], losses[::-1], None, None)
    assert "no suggestion, the loss never fell; no divergence" in str(nothing)
    for each, suffix in ((found, "png"), (nothing, "svg")):
        path = tmp_path / f"rates.{suffix}"
        each.plot(path)
        assert path.stat().st_size > 5000


def test_the_plot_is_drawn(tmp_path):
    model, data, _ = regression("keras")
    ke.find_learning_rate(model, data, low=1e-5, high=10.0, plot=tmp_path / "rates.png")
    assert (tmp_path / "rates.png").read_bytes().startswith(b"\x89PNG")


# --- wrong use -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ({"low": 0.0}, "`low` must be > 0"),
        ({"low": 1.0, "high": 1.0}, "`high` must be greater than `low`"),
        ({"steps": 9}, "`steps` must be a whole number >= 10"),
        ({"steps": 20.5}, "`steps` must be a whole number >= 10"),
        ({"smoothing": 1.0}, "`smoothing` must be >= 0 and < 1"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, rule):
    model, data, _ = regression("keras")
    with pytest.raises(ValueError, match=rule):
        ke.find_learning_rate(model, data, **arguments)


@libraries
def test_a_model_must_be_compiled(library):
    keras = keras_of(library)
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="The model must be compiled"):
        ke.find_learning_rate(model, None)


@libraries
def test_several_steps_per_call_are_refused(library):
    model, data, _ = regression(library)
    model.compile("sgd", "mse", steps_per_execution=4, jit_compile=False)
    with pytest.raises(ValueError, match="The range test needs the loss of each update"):
        ke.find_learning_rate(model, data)


def test_arrays_are_refused():
    model, data, _ = regression("keras")
    with pytest.raises(TypeError, match="`data` must be batches as `fit` takes them"):
        ke.find_learning_rate(model, next(iter(data)))


@libraries
def test_an_unbuilt_model_needs_shapes(library):
    keras = keras_of(library)
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="The model must be built before its weights"):
        ke.find_learning_rate(model, (batch for batch in ()))


@sampled()
@libraries
def test_an_empty_dataset_is_refused(library):
    model, data, _ = regression(library)
    with pytest.raises(ValueError, match=r"must have at least one batch|empty|no data"):
        ke.find_learning_rate(model, data.take(0))


@sampled()
@libraries
def test_a_loss_that_is_no_number_at_first_is_refused(library):
    model, data, _ = regression(library)
    model.fit(data, verbose=0)
    model.set_weights([np.full((4, 1), np.nan)])
    with unchanged(model), pytest.raises(ValueError, match="finite before the first update"):
        ke.find_learning_rate(model, data)


@sampled()
@libraries
def test_a_loss_that_becomes_no_number_ends_the_test(library):
    model, data, _ = regression(library)
    model.compile(
        model.optimizer,
        lambda y, p: tf.math.log(tf.math.abs(1e-3 + p) * 0 + 1 - 9 * p),
        jit_compile=False,
    )
    found = ke.find_learning_rate(model, data, low=1e-9, high=1e3, steps=30)
    assert found.diverged_at is not None
    assert np.isfinite(found.losses).all()


@sampled()
@libraries
def test_a_step_without_a_loss_in_its_logs_is_refused(library):
    class Silent(keras_of(library).Model):
        def __init__(self):
            super().__init__()
            self.dense = keras_of(library).layers.Dense(1)

        def call(self, x):
            return self.dense(x)

        def train_step(self, data):
            super().train_step(data)
            return {"other": tf.constant(1.0)}

    model = Silent()
    model(np.ones((1, 4), "float32"))
    model.compile("sgd", "mse", jit_compile=False)
    with pytest.raises(ValueError, match='The logs of a training step must have a "loss"'):
        ke.find_learning_rate(model, regression(library)[1])


def test_an_optimizer_without_a_rate_is_refused():
    model, data, _ = regression("keras")
    object.__setattr__(model.optimizer, "_learning_rate", None)
    with pytest.raises(TypeError, match="The optimizer must have a learning rate"):
        ke.find_learning_rate(model, data)
