"""AdamW is the equation of its docstring, and decays what it should."""

import re

import numpy as np
import pytest
import tensorflow as tf
from zoo import ZOO, keras_of

import keras_efficient as ke

libraries = pytest.mark.parametrize("library", ["keras", "tf_keras"])


def reference(value, gradients, decay, rate=0.01, beta_1=0.9, beta_2=0.999, epsilon=1e-6):
    """Decoupled AdamW in float64."""
    value, m, v = value.astype("float64"), 0.0, 0.0
    for t, g in enumerate(gradients, start=1):
        g = g.astype("float64")
        m, v = beta_1 * m + (1 - beta_1) * g, beta_2 * v + (1 - beta_2) * g**2
        value = value - rate * decay * value
        # Keras adds epsilon before the correction: sqrt(v) + epsilon.
        alpha = rate * np.sqrt(1 - beta_2**t) / (1 - beta_1**t)
        value = value - alpha * m / (np.sqrt(v) + epsilon)
    return value


@libraries
def test_five_updates_are_the_equation(library):
    keras = keras_of(library)
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(4)])
    rng = np.random.default_rng(0)
    start = [rng.normal(0, 1, w.shape).astype("float32") for w in model.get_weights()]
    model.set_weights(start)
    optimizer = ke.optimizers.AdamW(0.01, weight_decay=0.5, exclude=(r"bias$",), library=library)
    gradients = [[rng.normal(0, 1, w.shape).astype("float32") for w in start] for _ in range(5)]
    for step in gradients:
        pairs = zip(map(tf.constant, step), model.trainable_variables, strict=True)
        optimizer.apply_gradients(pairs)
    kernel, bias = model.get_weights()
    np.testing.assert_allclose(kernel, reference(start[0], [g[0] for g in gradients], 0.5), 1e-5)
    np.testing.assert_allclose(bias, reference(start[1], [g[1] for g in gradients], 0.0), 1e-5)


@libraries
def test_one_pattern_as_a_string_and_the_librarys_own_schedule(library):
    rate = keras_of(library).optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    optimizer = ke.optimizers.AdamW(rate, exclude="bias$", library=library)
    assert optimizer.get_config()["exclude"] == ["bias$"]
    assert ke.flavor.of(optimizer).name == library


def decayed(optimizer, model):
    """Which trainable variables a step with gradients of zero changes."""
    flavor = ke.flavor.of(model)
    values = list(map(flavor.value, model.trainable_variables))
    for value in values:
        value.assign(tf.ones_like(value))
    zeros = [tf.zeros_like(value) for value in values]
    optimizer.apply_gradients(zip(zeros, model.trainable_variables, strict=True))
    return [bool(np.abs(value.numpy() - 1).max() > 1e-4) for value in values]


@libraries
def test_nothing_is_excluded_by_default(library):
    keras = keras_of(library)
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)])
    optimizer = ke.optimizers.AdamW(0.1, weight_decay=0.1, library=library)
    assert decayed(optimizer, model) == [True, True]


@pytest.mark.parametrize("name", ["kerashub-bert", "hugging-face-bert", "model-garden-bert"])
def test_no_decay_is_biases_and_normalisation(name):
    specimen = next(specimen for specimen in ZOO if specimen.name == name)
    model = specimen.make()
    flavor = ke.flavor.of(model)
    exclude = ke.optimizers.NO_DECAY
    optimizer = ke.optimizers.AdamW(0.1, weight_decay=0.1, exclude=exclude, library=model)
    normalisation = set()
    for layer in model._flatten_layers():
        if isinstance(layer, flavor.keras.layers.LayerNormalization):
            normalisation |= {id(flavor.value(variable)) for variable in layer.weights}
    assert normalisation
    pairs = zip(model.trainable_variables, decayed(optimizer, model), strict=True)
    for variable, decays in pairs:
        path = flavor.path(variable)
        plain = (
            id(flavor.value(variable)) not in normalisation and "bias" not in path.split("/")[-1]
        )
        assert decays is plain, path
        if plain:
            assert re.search("kernel|embedding", path), path


@pytest.mark.parametrize(("library", "other"), [("keras", "tf_keras"), ("tf_keras", "keras")])
def test_each_library_refuses_the_others_optimizer(library, other):
    keras = keras_of(library)
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="Could not interpret optimizer"):
        model.compile(ke.optimizers.AdamW(library=other), "mse")


def test_an_unknown_library_is_refused():
    with pytest.raises(ValueError, match="`library` must be one of"):
        ke.optimizers.AdamW(library="torch")


def times(gradient, scale):
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(gradient.values * scale, gradient.indices, gradient.dense_shape)
    return gradient * scale


@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_a_repeated_embedding_row_gets_the_square_of_its_sum(library):
    """Keras 3's own Adam gets this wrong: tests/step/test_accumulation_upstream.py."""
    keras = keras_of(library)
    tables = []
    for gradient in (
        tf.IndexedSlices(tf.ones((2, 1)), tf.constant([0, 0]), (2, 1)),
        tf.constant([[2.0], [0.0]]),
    ):
        layer = keras.layers.Embedding(2, 1)
        layer.build((None,))
        layer.set_weights([np.ones((2, 1), "float32")])
        optimizer = ke.optimizers.AdamW(0.1, beta_2=0.5, library=library)
        for scale in (1.0, 3.0):
            optimizer.apply_gradients([(times(gradient, scale), layer.trainable_variables[0])])
        tables.append(layer.get_weights()[0])
    np.testing.assert_allclose(*tables, rtol=0, atol=1e-7)
