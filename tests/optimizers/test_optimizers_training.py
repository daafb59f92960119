"""The optimizers in `fit`: saving, pickling, XLA, microbatches, loss scaling and replicas."""

import json
import pickle
import subprocess

import forked_python
import numpy as np
import pytest
import tensorflow as tf
from covering import contract, covering, sampled
from fit_helpers import assert_same, compiled, fit, mirrored, moved
from formulas import EQUATIONS
from zoo import CLASSES, LENGTH, VOCABULARY, keras_of

import keras_efficient as ke

LIBRARIES = ["keras", "tf_keras"]
libraries = pytest.mark.parametrize("library", LIBRARIES)
kinds = pytest.mark.parametrize("kind", EQUATIONS)


def tiny(library):
    """Return a model without attention, whose key biases get noise that Adafactor scales up."""
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


@sampled()
@pytest.mark.parametrize(("kind", "library"), covering(EQUATIONS, LIBRARIES, strength=1))
def test_a_saved_and_loaded_model_trains_on_alike(kind, library, tmp_path):
    check_loading(kind, library, make(kind, library), tmp_path)


@sampled()
@libraries
def test_a_saved_and_loaded_model_with_loss_scaling_trains_on_alike(library, tmp_path):
    check_loading("LAMB", library, scaled(make("LAMB", library), library), tmp_path)


def check_loading(kind, library, optimizer, tmp_path):
    model = compiled(library, tiny(library), optimizer, run_eagerly=True)
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


@contract("xla")
@sampled()
@libraries
def test_xla_changes_nothing(library):
    models = []
    for jit_compile in (False, True):
        optimizer = make("LAMB", library)
        model = compiled(library, tiny(library), optimizer, jit_compile=jit_compile)
        fit(model, *batch(), epochs=3)
        models.append(model)
    assert_same(*models, 1e-5)


@contract("microbatches")
@sampled()
@pytest.mark.parametrize(
    ("library", "kind"),
    [
        ("keras", "Adafactor"),
        ("tf_keras", "LAMB"),
        pytest.param("keras", "LAMB", marks=pytest.mark.full),
    ],
)
def test_four_microbatches_are_one_batch(library, kind):
    models = []
    for microbatch_size in (12, 3):
        model = compiled(library, tiny(library), make(kind, library))
        ke.accumulate(model, microbatch_size)
        fit(model, *batch(), epochs=3)
        models.append(model)
    assert_same(*models, 2e-5)


@sampled(3)
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
    model.compile(optimizer, "mse", run_eagerly=True)
    fit(model, np.ones((4, 3), "int32"), np.ones((4, 3, 2), "float32"))
    slots = optimizer.inner_optimizer.variables
    floats = {tf.as_dtype(v.dtype) for v in slots if not tf.as_dtype(v.dtype).is_integer}
    assert floats == {tf.float32}
    assert np.isfinite(model.get_weights()[1]).all()


@contract("replicas")
@sampled()
@pytest.mark.parametrize(
    ("library", "kind"), covering(LIBRARIES, ["LAMB", "Adafactor"], strength=1)
)
def test_two_replicas_hold_the_same_weights_as_one_device(library, kind):
    # Keras 3 clips before it reduces (trap 10).
    alone = compiled(library, tiny(library), make(kind, library, global_clipnorm=None))
    with mirrored().scope():
        both = compiled(library, tiny(library), make(kind, library, global_clipnorm=None))
    for model in (alone, both):
        fit(model, *batch(), epochs=3)
    values = [ke.flavor.of(both).value(v).values for v in both.trainable_variables]
    assert len(values) == 5
    for a, b in values:
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    assert_same(alone, both, 2e-5)


FRESH = """
import json, sys
import keras_efficient as ke
found = {}
for library in ("keras", "tf_keras"):
    objects = ke.optimizers.custom_objects(library)
    load = ke.flavor.get(library).keras.models.load_model
    optimizer = load(f"{sys.argv[1]}/{library}.keras", custom_objects=objects).optimizer
    found[library] = [type(optimizer).__name__, int(optimizer.iterations)]
print("FOUND", json.dumps(found))
"""


@pytest.mark.full
def test_custom_objects_load_a_model_in_a_fresh_process(tmp_path):
    for library in ("keras", "tf_keras"):
        model = compiled(library, tiny(library), make("LAMB", library), run_eagerly=True)
        fit(model, *batch(), epochs=2)
        model.save(f"{tmp_path}/{library}.keras")
    done = subprocess.run(
        [*forked_python.command(*forked_python.TRAINING), "-c", FRESH, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.partition("FOUND ")[2])
    assert found == {"keras": ["LAMB", 2], "tf_keras": ["LAMB", 2]}


@libraries
def test_custom_objects_are_of_the_library(library):
    objects = ke.optimizers.custom_objects(library)
    assert {"keras_efficient>" + kind for kind in EQUATIONS} < set(objects)
    assert type(make("Lion", library)) in objects.values()
