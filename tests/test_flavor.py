"""The flavor of an object, and the interface that both libraries have in common."""

import numpy as np
import pytest
import tensorflow as tf
from covering import sampled
from fit_helpers import compiled
from zoo import ZOO, keras_of

import keras_efficient as ke

libraries = pytest.mark.parametrize("library", ["keras", "tf_keras"])
SMALL = {"keras": "keras-sequential", "tf_keras": "tf_keras-functional"}


def small(library):
    return next(specimen for specimen in ZOO if specimen.name == SMALL[library])


@sampled(2)
@pytest.mark.parametrize("specimen", ZOO, ids=repr)
def test_models_of_the_zoo(specimen):
    model = specimen.make()
    flavor = ke.flavor.of(model)
    assert flavor.name == specimen.library
    assert flavor.keras is keras_of(specimen.library)
    weights = flavor.weights(model)
    assert len(weights) == len(set(map(id, weights))) == len(model.get_weights())
    assert all(isinstance(weight, tf.Variable) for weight in weights)
    paths = [flavor.path(variable) for variable in model.weights]
    assert all(path and ":" not in path for path in paths)
    # A user's class has the flavor of its base class.
    assert any(path.endswith(("kernel", "embeddings")) for path in paths)


@libraries
def test_other_objects(library):
    keras = keras_of(library)
    for make in (
        lambda: keras.optimizers.Adam(),
        lambda: keras.layers.Dense(2),
        lambda: keras.metrics.Mean(),
        lambda: keras.losses.MeanSquaredError(),
        lambda: keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9),
        lambda: keras.callbacks.Callback(),
    ):
        assert ke.flavor.of(make()).name == library


def test_variables():
    assert ke.flavor.of(keras_of("keras").Variable(1.0)).name == "keras"
    # tf_keras has no variable class of its own.
    with pytest.raises(TypeError, match="Expected a Keras object"):
        ke.flavor.of(tf.Variable(1.0))


@pytest.mark.parametrize("thing", [None, 3, "keras", tf.Module(), np.zeros(2)])
def test_anything_else_is_refused(thing):
    with pytest.raises(TypeError, match=r"Expected a Keras object.*Received"):
        ke.flavor.of(thing)


def test_flavors_by_name():
    flavor = ke.flavor.get("keras")
    assert flavor is ke.flavor.get(flavor) is ke.flavor.get(keras_of("keras").layers.Dense(1))
    with pytest.raises(ValueError, match=r"`library` must be one of .* Received: 'keras3'"):
        ke.flavor.get("keras3")


@libraries
def test_a_shared_weight_is_listed_once(library):
    layers = keras_of(library).layers
    shared = layers.Dense(3)
    x = layers.Input((3,))
    model = keras_of(library).Model(x, shared(shared(x)))
    assert len(ke.flavor.of(model).weights(model)) == 2


class Recorder(ke.flavor.Callback):
    """Counts its calls; keeps the logs of batches and epochs."""

    def __init__(self):
        self.calls, self.logs = {}, []

    def __getattribute__(self, name):
        if not name.startswith("on_"):
            return super().__getattribute__(name)

        def hook(*args, logs=None):
            self.calls[name] = self.calls.get(name, 0) + 1
            logs = logs or (args[-1] if args and isinstance(args[-1], dict) else {})
            if name.endswith("_end") and "predict" not in name:
                self.logs.append(logs)

        return hook

    # Both libraries look at the class for hooks that matter.
    def on_train_batch_end(self, batch, logs=None): ...
    def on_test_batch_end(self, batch, logs=None): ...
    def on_predict_batch_end(self, batch, logs=None): ...


@pytest.fixture(scope="module", params=["keras", "tf_keras"])
def trained(request):
    """A compiled model, which several tests train, and its specimen."""
    specimen = small(request.param)
    return compiled(request.param, specimen.make()), specimen


@sampled()
def test_one_callback_class_for_both_libraries(trained):
    (model, specimen), library = trained, trained[1].library
    x, y = specimen.batch(10)
    recorder = Recorder()
    options = {"batch_size": 4, "verbose": 0, "callbacks": [recorder]}
    model.fit(x, y, epochs=2, validation_data=(x, y), **options)
    expected = {
        "on_train_begin": 1,
        "on_train_end": 1,
        "on_epoch_begin": 2,
        "on_epoch_end": 2,
        "on_train_batch_end": 6,
        "on_test_begin": 2,
        "on_test_end": 2,
        "on_test_batch_end": 6 if library == "tf_keras" else recorder.calls["on_test_batch_end"],
    }
    assert {name: recorder.calls.get(name) for name in expected} == expected
    assert recorder.model is model
    assert recorder.params["epochs"] == 2
    for logs in recorder.logs:
        assert {"loss", "accuracy"} <= set(logs)
        assert all(np.isfinite(float(value)) for value in logs.values())

    recorder.calls.clear()
    model.evaluate(x, y, **options)
    assert recorder.calls["on_test_batch_end"] == 3
    recorder.calls.clear()
    model.predict(x, **options)
    assert recorder.calls["on_predict_batch_end"] == 3
    assert recorder.calls["on_predict_begin"] == recorder.calls["on_predict_end"] == 1


@sampled()
def test_the_base_callback_does_nothing(trained):
    model, specimen = trained
    x, y = specimen.batch(4)
    callback = ke.flavor.Callback()
    assert not callback._implements_train_batch_hooks()
    history = model.fit(x, y, verbose=0, callbacks=[callback]).history
    assert np.isfinite(history["loss"]).all()


@pytest.mark.full
def test_trap_36_a_keras_3_callback_still_fails_in_tf_keras():
    specimen = small("tf_keras")
    model = compiled("tf_keras", specimen.make())
    x, y = specimen.batch(4)
    with pytest.raises(AttributeError, match="_implements_train_batch_hooks"):
        model.fit(x, y, verbose=0, callbacks=[keras_of("keras").callbacks.Callback()])
