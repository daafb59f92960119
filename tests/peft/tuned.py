"""Helpers and checks that the tests of adapters, prefixes and BitFit share."""

import functools

import numpy as np
import tensorflow as tf
from fit_helpers import compiled, fit, mirrored
from in_process_export import serve_here
from zoo import ZOO

import keras_efficient as ke
from keras_efficient.architecture._heads import head_weights
from keras_efficient.architecture._weights import all_weights
from keras_efficient.parametrize._parametrized_layer import parametrized_layers

SPECIMENS = {specimen.name: specimen for specimen in ZOO}
#: One of each library, with Transformer blocks.
TWO = [SPECIMENS["kerashub-bert"], SPECIMENS["hugging-face-bert"]]


def outputs(model, x):
    given = model(x)
    return np.asarray(tf.cast(getattr(given, "logits", given), tf.float32))


def values(model):
    """`{"number attribute": array}` of the model's own weights."""
    return {key: weight.value.numpy() for key, weight in numbered(model).items()}


def numbered(model):
    """The model's own weights by keys that another model of the kind has too.

    Keras numbers the names of layers by what a process has created before.
    """
    return {f"{n} {weight.attribute}": weight for n, weight in enumerate(all_weights(model))}


def head_keys(model):
    """Those of the last layer with a kernel."""
    inside = {id(weight.variable) for weight in head_weights(model)}
    return {key for key, w in numbered(model).items() if id(w.variable) in inside}


def added(model):
    """`{name: array}` of the variables that were added to layers."""
    stores = [layer.store for layer in parametrized_layers(model) if layer.store is not None]
    flavor = ke.flavor.of(model)
    return {
        f"{number}.{name}": flavor.value(variable).numpy()
        for number, store in enumerate(stores)
        for name, variable in store.named.items()
    }


def train(specimen, caller, *, replicas=1, jit=False, examples=24):
    """A model of the zoo with a caller applied, after three updates of two microbatches each."""
    x, y = specimen.batch(examples)
    with mirrored(replicas).scope():
        model = specimen.make()
        caller(model)
        compiled(specimen.library, model, jit_compile=jit)
    ke.accumulate(model, 2)
    fit(model, x, y, batch_size=examples // 3)
    return model


@functools.cache
def trained(specimen, caller):
    """`train(specimen, caller)`, once for all tests that only read the model."""
    return train(specimen, caller)


def assert_only_these_move(specimen, caller, moves):
    """Three updates move no other weights than the model's with keys in `moves`, not by a bit.

    Returns:
        The keys that moved, and the names of what was added and did not.
    """
    fresh = specimen.make()
    before = values(fresh)
    report = caller(fresh)
    new = added(fresh)
    model = trained(specimen, caller)
    moved = {key for key, value in values(model).items() if (value != before[key]).any()}
    assert moved <= set(moves)
    after = added(model)
    assert after.keys() == new.keys()
    still = [name for name, value in after.items() if (value == new[name]).all()]
    assert report.trainable == sum(np.size(v) for v in model.trainable_weights)
    return moved, still


def assert_saved(specimen, caller, folder):
    """A new model with the same method applied loads the weights of a trained one."""
    model = trained(specimen, caller)
    x, _ = specimen.batch(5, seed=3)
    other = specimen.make()
    caller(other)
    file = folder / "model.weights.h5"
    model.save_weights(str(file))
    other.load_weights(str(file))
    np.testing.assert_array_equal(outputs(other, x), outputs(model, x))
    for name, value in added(model).items():
        np.testing.assert_array_equal(added(other)[name], value, err_msg=name)


def assert_exported(specimen, caller, folder, monkeypatch):
    """An export computes the same as the model, with what was added."""
    served = serve_here(monkeypatch)
    model = trained(specimen, caller)
    x, y = specimen.batch(3, seed=3)
    expected, without = outputs(model, x), outputs(specimen.make(), x)
    report = ke.export(model, folder / "exported", sample=(x, y))
    assert report.max_abs_difference <= 1e-5
    (given,) = served
    logits = next(value for value in given.values() if value.shape == expected.shape)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert np.abs(logits - without).max() > 1e-3


def assert_replicas_agree(specimen, caller):
    one, two = trained(specimen, caller), train(specimen, caller, replicas=2)
    expected, found = values(one) | added(one), values(two) | added(two)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=name)


def assert_compiles(specimen, caller):
    """Three updates compiled by XLA give the same weights."""
    plain, compiled_too = trained(specimen, caller), train(specimen, caller, jit=True)
    found = values(compiled_too) | added(compiled_too)
    for name, value in (values(plain) | added(plain)).items():
        np.testing.assert_allclose(found[name], value, atol=1e-4, err_msg=name)


def assert_mixed(specimen, caller):
    """In mixed precision the added variables are float32."""
    ke.flavor.of(specimen.make()).keras.mixed_precision.set_global_policy("mixed_bfloat16")
    model = train(specimen, caller)
    assert all(value.dtype == np.float32 for value in added(model).values())
    assert np.isfinite(outputs(model, specimen.batch(3)[0])).all()
    assert all(np.isfinite(value).all() for value in (values(model) | added(model)).values())
