"""The losses and metrics of all tasks: of one batch as of its microbatches, in both libraries."""

import numpy as np
import pytest
from covering import covering
from zoo import LENGTH, VOCABULARY, keras_of

import keras_efficient as ke

CLASSES = 3
RANDOM = np.random.default_rng(0)
IDS = RANDOM.integers(1, VOCABULARY, (7, LENGTH)).astype("int32")
LABELS = {
    "classification": RANDOM.integers(0, CLASSES, 7).astype("int32"),
    "multi_label": RANDOM.integers(0, 2, (7, CLASSES)).astype("int32"),
    "regression": RANDOM.normal(0, 1, 7).astype("float32"),
}


def model_of(library, outputs):
    keras = keras_of(library)
    layers = keras.layers
    ids = layers.Input((None,), dtype="int32")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(VOCABULARY, 8)(ids))
    model = keras.Model(ids, layers.Dense(outputs)(x))
    random = np.random.default_rng(1)
    model.set_weights([random.normal(0, 0.5, w.shape) for w in model.get_weights()])
    return keras, model


def loss_of(name, logits):
    """The mean over the examples, in NumPy."""
    y, z = LABELS[name], logits.astype("float64")
    if name == "regression":
        return np.mean((y - z[:, 0]) ** 2)
    if name == "multi_label":
        return np.mean(np.logaddexp(0, z) - y * z)
    return np.mean(np.log(np.exp(z).sum(1)) - z[np.arange(7), y])


@pytest.mark.parametrize("library, name", covering(("keras", "tf_keras"), tuple(LABELS)))
def test_microbatches_are_one_batch(library, name):
    task = ke.tasks.get(name)
    trained = []
    for microbatches in (1, 3):
        keras, model = model_of(library, 1 if name == "regression" else CLASSES)
        loss = loss_of(name, model.predict(IDS, verbose=0))
        size = model.output_shape[-1]
        # XLA would take longer to compile than the rest of the test.
        options = {"metrics": task.metrics(keras, size), "jit_compile": False}
        model.compile(keras.optimizers.SGD(0.5), task.loss(keras), **options)
        if microbatches > 1:
            ke.accumulate(model, microbatches=microbatches)
        logs = model.fit(IDS, LABELS[name], batch_size=7, shuffle=False, verbose=0).history
        assert logs["loss"][0] == pytest.approx(loss, rel=1e-5)
        found = model.evaluate(IDS, LABELS[name], batch_size=4, verbose=0, return_dict=True)
        assert set(task.choices) <= set(found)
        trained.append((model.get_weights(), found))
    (one, metrics), (several, others) = trained
    for a, b in zip(one, several, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert metrics == pytest.approx(others, abs=1e-5)
    # What was logged is what the report says.
    outputs, labels = model.predict(IDS, verbose=0), task.batch_labels(LABELS[name], "labels")
    report = task.report(labels, outputs).to_dict()
    for metric in set(task.choices) - {"loss"}:
        assert others[metric] == pytest.approx(report[metric], abs=1e-5), metric
