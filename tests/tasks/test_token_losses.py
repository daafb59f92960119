"""The loss of tagged words: of one batch as of its microbatches, replicas, and without padding."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from bert_folder import write
from covering import covering
from fit_helpers import mirrored

import keras_efficient as ke

TASK = ke.tasks.get("token_classification")
LIBRARIES = ("keras", "tf_keras")
#: Texts of very unequal numbers of words, so that a mean over texts is another one.
ROWS = [
    "the film",
    "a good plot with actors and a great film was not very bad",
    "bad actors",
    "very very good",
    "the actors",
    "a plot and a film and the plot",
    "great films",
    "goodly films and plots was not good",
]
NAMES = {"film": "B-work", "plot": "B-work", "actors": "B-person", "great": "B-work"}


def records():
    rows = []
    for text in ROWS:
        tokens = text.split()
        tags = [NAMES.get(token, "O") for token in tokens]
        tags = [
            "I-work" if tag == "B-work" and i and tokens[i - 1] == "great" else tag
            for i, tag in enumerate(tags)
        ]
        rows.append({"tokens": tokens, "tags": tags})
    return TASK.records(rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("bert") / "model")


@functools.cache
def loaded(folder, library):
    return ke.models.load(folder, task=TASK, num_labels=5, library=library)


def trained(folder, library, change, strategy=None, batch_size=8):
    """Return the weights and the logs after an update with all texts."""
    with (strategy or tf.distribute.get_strategy()).scope():
        model, tokenizer = ke.models.load(folder, task=TASK, num_labels=5, library=library)
        keras = ke.flavor.of(model).keras
        for layer in model._flatten_layers():
            if isinstance(layer, keras.layers.Dropout):
                layer.rate = 0.0
        options = {"metrics": TASK.metrics(keras, 5), "jit_compile": False}
        model.compile(keras.optimizers.SGD(0.5), TASK.loss(keras), **options)
    change(model)
    data = ke.data.text(records(), tokenizer, batch_size=batch_size, max_length=32, shuffle=False)
    logs = model.fit(data, shuffle=False, verbose=0).history
    return model.get_weights(), {name: float(values[0]) for name, values in logs.items()}


def loss_of(folder, library):
    """The mean over the words of all texts, in NumPy."""
    model, tokenizer = loaded(folder, library)
    data = ke.data.text(records(), tokenizer, batch_size=8, max_length=32, shuffle=False)
    ((x, y),) = data
    logits = TASK.scores(
        {"logits": getattr(model(x), "logits", None)} if library == "tf_keras" else {"": model(x)}
    )
    z, y = logits.astype("float64"), y.numpy()
    logs = z - np.log(np.exp(z).sum(-1, keepdims=True))
    return -np.take_along_axis(logs, np.maximum(y, 0)[..., None], -1)[..., 0][y >= 0].mean()


CHANGES = {
    "microbatches": lambda model: ke.accumulate(model, microbatches=3),
    "unpad": lambda model: ke.unpad(model, ignore_padding_outputs=True),
    "both": lambda model: (
        ke.unpad(model, ignore_padding_outputs=True),
        ke.accumulate(model, microbatch_size=2),
    ),
    "replicas": lambda model: ke.accumulate(model, microbatches=1),
}


@pytest.mark.parametrize("library, change", covering(LIBRARIES, tuple(CHANGES), strength=1))
def test_one_update_is_the_same(library, change, folder):
    strategy = mirrored(2) if change == "replicas" else None
    expected, logs = whole(folder, library)
    assert logs["loss"] == pytest.approx(loss_of(folder, library), rel=1e-5)
    found, others = trained(folder, library, CHANGES[change], strategy)
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)
    assert others["loss"] == pytest.approx(logs["loss"], rel=1e-5)
    assert others["entity_f1"] == pytest.approx(logs["entity_f1"], abs=1e-6)


@functools.cache
def whole(folder, library):
    return trained(folder, library, lambda model: ke.accumulate(model, microbatches=1))


@pytest.mark.parametrize("library", LIBRARIES)
def test_unpad_refuses_outputs_of_padding_unless_they_are_ignored(library, folder):
    model, _ = ke.models.load(folder, task=TASK, num_labels=5, library=library)
    with pytest.raises(ValueError, match="ignore_padding_outputs=True"):
        ke.unpad(model)


@pytest.mark.parametrize("library", LIBRARIES)
def test_distillation_of_words_is_that_of_its_microbatches(library, folder):
    teacher, _ = loaded(folder, library)
    weights = [
        trained(
            folder,
            library,
            lambda model, n=n: (
                ke.distill(model, teacher, alpha=0.3, temperature=2.0),
                ke.accumulate(model, microbatches=n),
            ),
        )[0]
        for n in (1, 3)
    ]
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)
