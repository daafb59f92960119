"""Helpers of the contract tests: compile a model, fit it, compare two runs."""

import functools

import numpy as np
from zoo import Specimen, _sequential, keras_of

#: A small model of each library with an embedding, whose gradients are sparse.
SMALL = {lib: Specimen(lib, lib, _sequential(lib), lambda x: x) for lib in ("keras", "tf_keras")}


def compiled(library, model, optimizer=None, **kwargs):
    """Compile `model` with SGD, cross-entropy and two metrics, unless `kwargs` say otherwise."""
    keras = keras_of(library)
    accuracy = keras.metrics.SparseCategoricalAccuracy
    kwargs = {
        "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "metrics": [accuracy("accuracy")],
        "weighted_metrics": [accuracy("weighted")],
        **kwargs,
    }
    model.compile(optimizer or keras.optimizers.SGD(0.5), **kwargs)
    return model


def fit(model, x, y=None, sample_weight=None, *, batch_size=12, epochs=1, **kwargs):
    """Fit in the order of the data; return the history's dict."""
    return model.fit(
        x,
        y,
        sample_weight=sample_weight,
        batch_size=batch_size,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        **kwargs,
    ).history


def assert_same(model, other, atol=1e-5):
    """Assert that the weights of two models agree."""
    for index, (a, b) in enumerate(zip(model.get_weights(), other.get_weights(), strict=True)):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=f"weight {index}")


def assert_same_history(history, other, atol=1e-5):
    """Assert that two histories have the same entries with the same values."""
    assert history.keys() == other.keys()
    for name, values in history.items():
        np.testing.assert_allclose(values, other[name], rtol=atol, atol=atol, err_msg=name)


def moved(before, model):
    """Return the largest change of any weight since `before`."""
    pairs = zip(before, model.get_weights(), strict=True)
    return max(np.abs(a - b).max() for a, b in pairs if a.size)


def sample_weights(n):
    """Return weights that differ much, one of them zero."""
    weights = np.random.default_rng(1).uniform(0.1, 3.0, n).astype("float32")
    weights[n // 2] = 0.0
    return weights


@functools.cache
def mirrored(replicas=2):
    """Return a strategy of `replicas` replicas, or TensorFlow's default for one.

    It sums over replicas on one device, without TensorFlow's collectives. The collectives of two
    strategies in one process get the same keys and are mixed up ("Shape mismatch in the collective
    instance"), and a step that fails breaks them for the rest of the process. Tests of the
    collectives run in a process of their own.
    """
    import tensorflow as tf

    if replicas == 1:
        return tf.distribute.get_strategy()
    devices = [f"CPU:{index}" for index in range(replicas)]
    return tf.distribute.MirroredStrategy(devices, tf.distribute.ReductionToOneDevice())


def batches(x, y, sample_weight=None, *, batch_size):
    """Return the data as a `tf.data` pipeline, in order."""
    import tensorflow as tf

    data = (x, y) if sample_weight is None else (x, y, sample_weight)
    return tf.data.Dataset.from_tensor_slices(data).batch(batch_size)
