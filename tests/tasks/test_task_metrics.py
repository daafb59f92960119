"""The metrics of tasks with one output per text: what they log is what their report says."""

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
def test_an_evaluation_gives_what_the_report_says(library, name):
    task = ke.tasks.get(name)
    keras, model = model_of(library, 1 if name == "regression" else CLASSES)
    # XLA would take longer to compile than the rest of the test.
    options = {"metrics": task.metrics(keras, model.output_shape[-1]), "jit_compile": False}
    model.compile("sgd", task.loss(keras), **options)
    found = model.evaluate(IDS, LABELS[name], batch_size=4, verbose=0, return_dict=True)
    outputs, labels = model.predict(IDS, verbose=0), task.batch_labels(LABELS[name], "labels")
    assert found["loss"] == pytest.approx(loss_of(name, outputs), rel=1e-5)
    report = task.report(labels, outputs).to_dict()
    assert set(task.choices) <= set(found)
    for metric in set(task.choices) - {"loss"}:
        assert found[metric] == pytest.approx(report[metric], abs=1e-5), metric
