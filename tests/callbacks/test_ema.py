"""EMA: the formula, what counts as an update, and that trained weights are always restored."""

import numpy as np
import pytest
from covering import covering, sampled
from fit_helpers import batches, compiled, mirrored, moved
from in_process_export import serve_here
from zoo import Specimen, _sequential, keras_of

import keras_efficient as ke
from keras_efficient._errors import InputError

SMALL = {lib: Specimen(lib, lib, _sequential(lib), lambda x: x) for lib in ("keras", "tf_keras")}
libraries = pytest.mark.parametrize("library", list(SMALL))
rotated = pytest.mark.parametrize("library, replicas", covering(SMALL, (2, 1), strength=1))
EMA = ke.callbacks.EMA


def made(library, replicas=1, jit_compile=False):
    with mirrored(replicas).scope():
        return compiled(library, SMALL[library].make(), jit_compile=jit_compile)


def data(n=12, size=6):
    return batches(*SMALL["keras"].batch(n), batch_size=size)


def train(model, callbacks=(), dataset=None, **kwargs):
    kwargs = {"shuffle": False, "verbose": 0, "callbacks": list(callbacks), **kwargs}
    return model.fit(dataset or data(), **kwargs).history


class Record(ke.flavor.Callback):
    def on_train_begin(self, logs=None):
        self.weights = [self.model.get_weights()]

    def on_train_batch_end(self, batch, logs=None):
        self.weights.append(self.model.get_weights())


def average(history, decay, warm_up, updates=0):
    averages = history[0]
    for weights in history[1:]:
        updates += 1
        d = min(decay, (1 + updates) / (10 + updates)) if warm_up else decay
        averages = [d * a + (1 - d) * w for a, w in zip(averages, weights, strict=True)]
    return averages


def assert_close(found, expected, atol=1e-6):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(a), b, rtol=0, atol=atol)


def values(ema):
    return [average.numpy() for average in ema.averages]


@sampled()
@pytest.mark.parametrize("library, replicas, warm_up", covering(SMALL, (1, 2), (True, False)))
def test_the_averages_are_the_formula(library, replicas, warm_up):
    """Microbatches are not steps; all replicas hold the same; the next `fit` continues."""
    jit = "auto" if (library, replicas) == ("keras", 1) else False
    model, ema, record = made(library, replicas, jit), EMA(0.6, warm_up=warm_up), Record()
    ke.accumulate(model, 3)
    train(model, [ema, record], epochs=2)
    expected = average(record.weights, 0.6, warm_up)
    assert len(record.weights) == 5
    assert_close(values(ema), expected)
    for variable in ema.averages:
        copies = [c.numpy() for c in mirrored(replicas).experimental_local_results(variable)]
        assert len(copies) == replicas
        np.testing.assert_array_equal(copies[0], copies[-1])
    train(model, [ema, record])
    record.weights[0] = expected
    assert_close(values(ema), average(record.weights, 0.6, warm_up, updates=4))


@sampled()
@rotated
def test_a_skipped_update_moves_no_average(library, replicas):
    keras = keras_of(library)
    with mirrored(replicas).scope():
        model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
        scaled = keras.mixed_precision.LossScaleOptimizer(keras.optimizers.SGD(0.1))
        model.compile(scaled, "mse", jit_compile=False)
    ke.accumulate(model, 1)
    x, ema = np.ones((4, 2), "float32"), EMA(0.5)
    train(model, [ema], batches(x, x[:, :1], batch_size=4))
    before = values(ema)
    train(model, [ema], batches(x * np.inf, x[:, :1], batch_size=4))
    for a, b in zip(values(ema), before, strict=True):
        np.testing.assert_array_equal(a, b)
    train(model, [ema], batches(x, x[:, :1], batch_size=4))
    assert np.abs(values(ema)[0] - before[0]).max() > 0


@sampled()
@rotated
def test_validation_in_fit_sees_the_averages(library, replicas):
    model, ema = made(library, replicas), EMA(0.5, warm_up=False)
    found = train(model, [ema], validation_data=data())["val_loss"][-1]
    trained, raw = model.get_weights(), model.evaluate(data(), verbose=0)[0]
    with ema.averaged():
        averaged = model.evaluate(data(), verbose=0)[0]
        assert_close(model.get_weights(), values(ema), 0)
    assert moved(trained, model) == 0
    np.testing.assert_allclose(found, averaged, rtol=1e-6)
    assert abs(raw - averaged) > 1e-4
    assert model.evaluate(data(), verbose=0)[0] == raw
    assert not {"evaluate", "train_step"} & set(vars(model))


class Fail(ke.flavor.Callback):
    """Ends the run in validation, or after it."""

    def __init__(self, where):
        vars(self)[where] = self.fail

    def on_train_begin(self, logs=None):
        self.record = []

    def on_train_batch_end(self, batch, logs=None):
        self.trained = self.model.get_weights()

    def fail(self, *args, **kwargs):
        raise KeyboardInterrupt


@sampled()
@pytest.mark.parametrize(
    "library, where", covering(SMALL, ("on_test_begin", "on_test_end", "on_epoch_end"), strength=1)
)
def test_trained_weights_are_back_after_a_failure(library, where):
    """And `evaluate`, called afterwards, evaluates them."""
    model, ema, fail = made(library), EMA(0.5, warm_up=False), Fail(where)
    with pytest.raises(KeyboardInterrupt):
        train(model, [ema, fail], validation_data=data())
    assert moved(fail.trained, model) == 0
    raw = model.evaluate(data(), verbose=0)[0]
    with ema.averaged():
        assert abs(model.evaluate(data(), verbose=0)[0] - raw) > 1e-5
    other = EMA(0.9)
    found = train(model, [other], validation_data=data())["val_loss"][-1]
    with other.averaged():
        np.testing.assert_allclose(model.evaluate(data(), verbose=0)[0], found, rtol=1e-6)
    assert "evaluate" not in vars(model)


@sampled()
@libraries
def test_after_a_failure_a_fit_without_it_validates_with_the_trained_weights(library):
    model, fail = made(library), Fail("on_test_end")
    with pytest.raises(KeyboardInterrupt):
        train(model, [EMA(0.5, warm_up=False), fail], validation_data=data())
    found = train(model, validation_data=data())["val_loss"][-1]
    np.testing.assert_allclose(found, model.evaluate(data(), verbose=0)[0], rtol=1e-6)


@sampled()
@libraries
def test_averaged_restores_to_the_last_bit_after_an_error(library):
    model, ema = made(library), EMA(0.5)
    train(model, [ema])
    before = model.get_weights()
    with pytest.raises(ZeroDivisionError), ema.averaged():
        assert moved(before, model) > 0
        raise ZeroDivisionError
    assert moved(before, model) == 0


@libraries
@pytest.mark.parametrize("method", ["evaluate", "predict"])
def test_evaluate_and_predict_refuse_it(library, method):
    """SwapEMAWeights leaves the averages in the model there (trap 19)."""
    model = made(library)
    with pytest.raises(InputError, match=rf"`with ema\.averaged\(\): model\.{method}"):
        getattr(model, method)(data(), callbacks=[EMA()], verbose=0)
    assert "train_step" not in vars(model)


@pytest.mark.parametrize("decay", [0, 1, -0.5, 1.5])
def test_decay_is_between_0_and_1(decay):
    with pytest.raises(ValueError, match=f"`decay` must be between 0 and 1. Received: {decay}"):
        EMA(decay)


@sampled()
@libraries
def test_there_must_be_an_average_of_the_same_weights(library):
    model, ema = made(library), EMA()
    ema.set_model(model)
    with pytest.raises(ValueError, match="Received: 0 averages for 3 weights"), ema.averaged():
        pass
    train(model, [ema])
    model.layers[-1].trainable = False
    with pytest.raises(ValueError, match="Received: 3 averages for 1 weights"), ema.averaged():
        pass


@sampled()
@libraries
def test_methods_that_change_weights_are_refused_inside(library):
    """`ke.merge` inside left neither averaged nor trained weights in the model."""
    model, ema = made(library), EMA(0.5)
    ke.lora(model, rank=2, layers="kernel")
    train(model, [ema])
    before = model.get_weights()
    methods = {
        "ke.merge": ke.merge,
        "ke.prune": lambda m: ke.prune(m, 0.5, layers="kernel"),
        "ke.cluster": lambda m: ke.cluster(m, clusters=4, layers="kernel"),
        "ke.quantize_aware": ke.quantize_aware,
        "ke.calibrate": lambda m: ke.calibrate(m, [SMALL[library].batch(4)[0]]),
        "ke.lora": lambda m: ke.lora(m, rank=2, name="other", layers="kernel"),
        "ke.share_weights": lambda m: ke.share_weights(m, "embeddings"),
    }
    with ema.averaged():
        averaged = model.get_weights()
        for name, method in methods.items():
            with pytest.raises(
                ValueError, match=rf"{name} changes the model's weights, which `ema"
            ):
                method(model)
        ke.summary(model)
        assert moved(averaged, model) == 0
    assert moved(before, model) == 0
    assert len(ke.merge(model).folded) == 1


@sampled()
@libraries
def test_weights_that_change_inside_are_not_lost_in_silence(library):
    model, ema = made(library), EMA(0.5)
    train(model, [ema])
    before = model.get_weights()
    with pytest.raises(ValueError, match="must not change inside of `ema"), ema.averaged():
        train(model)
    assert moved(before, model) == 0
    # As often as wanted, and one inside of another.
    with ema.averaged(), ema.averaged():
        assert moved(before, model) > 0
    ke.prune(model, 0.5, layers="kernel")


def test_an_export_inside_holds_the_averages(tmp_path, monkeypatch):
    served = serve_here(monkeypatch)
    model, ema = made("keras"), EMA(0.5, warm_up=False)
    train(model, [ema])
    x, _ = SMALL["keras"].batch(4)
    with ema.averaged():
        expected = model.predict(x, verbose=0)
        ke.export(model, tmp_path / "a", sample=x, latency=False)
    ((found,),) = [outputs.values() for outputs in served]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(expected - model.predict(x, verbose=0)).max() > 1e-4


@sampled()
@libraries
def test_an_update_left_at_validation_is_made_with_the_trained_weights(library):
    """Not with the averaged ones: swapping back would lose it."""
    weights = []
    for extra in ([], [EMA(0.5)]):
        model, growth = made(library), ke.callbacks.BatchSizeSchedule({0: 5})
        train(model, [*extra, growth], validation_data=data())
        weights.append(model.get_weights())
    assert_close(weights[1], weights[0], 0)
