"""The optimizers in `fit`: compiled, loss-scaled, accumulated, saved, loaded, on two replicas."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from fit_helpers import assert_same, compiled, fit, moved
from formulas import EQUATIONS
from zoo import CLASSES, LENGTH, VOCABULARY, keras_of

import keras_efficient as ke

libraries = pytest.mark.parametrize("library", ["keras", "tf_keras"])
kinds = pytest.mark.parametrize("kind", EQUATIONS)


def tiny(library):
    """A model without key biases: their gradients are noise around 0, which Adafactor scales up."""
    layers = keras_of(library).layers
    rng = np.random.default_rng(0)
    model = keras_of(library).Sequential(
        [
            layers.Input((LENGTH,), dtype="int32"),
            layers.Embedding(VOCABULARY, 4),
            layers.Flatten(),
            layers.LayerNormalization(),
            layers.Dense(CLASSES),
        ]
    )
    model.set_weights([rng.normal(0, 0.5, w.shape) for w in model.get_weights()])
    return model


def batch():
    rng = np.random.default_rng(1)
    return rng.integers(0, VOCABULARY, (12, LENGTH)), rng.integers(0, CLASSES, 12)


def make(kind, library, **arguments):
    rate = ke.schedules.warmup_linear(0.01, warmup_steps=2, total_steps=20)
    arguments = {
        "weight_decay": 0.1,
        "exclude": ke.optimizers.NO_DECAY,
        "groups": {"dense": ke.optimizers.ParamGroup(2.0, weight_decay=0.2)},
        "global_clipnorm": 1.0,
        **arguments,
    }
    return getattr(ke.optimizers, kind)(rate, library=library, **arguments)


def scaled(optimizer, library):
    keras = keras_of(library)
    home = keras.optimizers if library == "keras" else keras.mixed_precision
    return home.LossScaleOptimizer(optimizer)


@libraries
@pytest.mark.parametrize(
    ("kind", "loss_scaling"), [*((kind, False) for kind in EQUATIONS), ("LAMB", True)]
)
def test_a_saved_and_loaded_model_trains_on_alike(library, kind, loss_scaling, tmp_path):
    optimizer = make(kind, library)
    optimizer = scaled(optimizer, library) if loss_scaling else optimizer
    model = compiled(library, tiny(library), optimizer)
    before = model.get_weights()
    x, y = batch()
    fit(model, x, y, epochs=3)
    assert moved(before, model) > 1e-4
    model.save(tmp_path / "model.keras")
    loaded = keras_of(library).models.load_model(tmp_path / "model.keras")
    inner = getattr(loaded.optimizer, "inner_optimizer", loaded.optimizer)
    assert type(inner).__name__ == kind
    assert int(loaded.optimizer.iterations) == 3
    # Keras 3's paths lose the name of a Sequential.
    treated = [
        [line.split()[:2] for line in ke.optimizers.describe(m).splitlines()]
        for m in (loaded, model)
    ]
    assert treated[0] == treated[1]
    fit(model, x, y, epochs=2)
    fit(loaded, x, y, epochs=2)
    assert_same(model, loaded, 1e-7)


@libraries
@kinds
def test_an_optimizer_comes_back_from_its_config(library, kind):
    optimizers = keras_of(library).optimizers
    optimizer = make(kind, library, layerwise_decay=0.9)
    copy = type(optimizer).from_config(optimizer.get_config())
    assert copy.get_config() == optimizer.get_config()
    json.dumps(copy.get_config()["groups"])
    copy = optimizers.deserialize(optimizers.serialize(optimizer))
    assert type(copy) is type(optimizer)
    assert copy.get_config() == optimizer.get_config()


@libraries
@kinds
def test_a_pickled_optimizer_keeps_its_settings(library, kind):
    optimizer = make(kind, library)
    copy = pickle.loads(pickle.dumps(optimizer))
    assert type(copy) is type(optimizer)
    assert copy.get_config() == optimizer.get_config()


@libraries
def test_xla_changes_nothing(library):
    models = []
    for jit_compile in (False, True):
        optimizer = make("LAMB", library)
        model = compiled(library, tiny(library), optimizer, jit_compile=jit_compile)
        fit(model, *batch(), epochs=3)
        models.append(model)
    assert_same(*models, 1e-5)


@pytest.mark.parametrize(
    ("library", "kind"), [("keras", "LAMB"), ("keras", "Adafactor"), ("tf_keras", "LAMB")]
)
def test_four_microbatches_are_one_batch(library, kind):
    models = []
    for microbatch_size in (12, 3):
        model = compiled(library, tiny(library), make(kind, library))
        ke.accumulate(model, microbatch_size)
        fit(model, *batch(), epochs=3)
        models.append(model)
    assert_same(*models, 2e-5)


@libraries
@kinds
def test_slots_are_float32_under_mixed_precision(library, kind):
    keras = keras_of(library)
    layers = [
        keras.layers.Embedding(5, 4, dtype="mixed_float16"),
        keras.layers.Dense(2, dtype="mixed_float16"),
    ]
    model = keras.Sequential([keras.layers.Input((3,), dtype="int32"), *layers])
    optimizer = scaled(make(kind, library, groups=()), library)
    model.compile(optimizer, "mse")
    fit(model, np.ones((4, 3), "int32"), np.ones((4, 3, 2), "float32"))
    slots = optimizer.inner_optimizer.variables
    floats = {tf.as_dtype(v.dtype) for v in slots if not tf.as_dtype(v.dtype).is_integer}
    assert floats == {tf.float32}
    assert np.isfinite(model.get_weights()[1]).all()


ELSEWHERE = """
import sys, json
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
sys.path[:0] = json.loads(sys.argv[1])
from test_optimizers_training import *
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
found = {}
for library in ("keras", "tf_keras"):
    path = sys.argv[2] + library + ".keras"
    objects = ke.optimizers.custom_objects(library)
    loaded = keras_of(library).models.load_model(path, custom_objects=objects)
    found[library + " loaded"] = [type(loaded.optimizer).__name__, int(loaded.optimizer.iterations)]
    for kind in ("LAMB", "Adafactor"):
        weights = []
        # Keras 3 clips before it reduces (trap 10).
        free = {"global_clipnorm": None}
        alone = compiled(library, tiny(library), make(kind, library, **free))
        with strategy.scope():
            both = compiled(library, tiny(library), make(kind, library, **free))
        for model in (alone, both):
            fit(model, *batch(), epochs=3)
        values = [ke.flavor.of(both).value(v).values for v in both.trainable_variables]
        apart = max(float(tf.reduce_max(tf.abs(a - b))) for a, b in values)
        off = max(abs(a - b).max() for a, b in zip(alone.get_weights(), both.get_weights()))
        found[f"{library} {kind}"] = [len(values), apart, float(off)]
print("FOUND", json.dumps(found))
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """What a fresh process, with two logical devices, finds."""
    folder = tmp_path_factory.mktemp("optimizers")
    for library in ("keras", "tf_keras"):
        model = compiled(library, tiny(library), make("LAMB", library))
        fit(model, *batch(), epochs=2)
        model.save(f"{folder}/{library}.keras")
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, json.dumps([str(here), str(here.parent)]), f"{folder}/"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.partition("FOUND ")[2])


@libraries
@pytest.mark.parametrize("kind", ["LAMB", "Adafactor"])
def test_two_replicas_hold_the_same_weights_as_one_device(elsewhere, library, kind):
    variables, apart, off = elsewhere[f"{library} {kind}"]
    assert variables == 5
    assert apart == 0
    assert off < 2e-5


@libraries
def test_custom_objects_load_a_model_in_a_fresh_process(elsewhere, library):
    assert elsewhere[f"{library} loaded"] == ["LAMB", 2]


@libraries
def test_custom_objects_are_of_the_library(library):
    objects = ke.optimizers.custom_objects(library)
    assert {"keras_efficient>" + kind for kind in EQUATIONS} < set(objects)
    assert type(make("Lion", library)) in objects.values()
