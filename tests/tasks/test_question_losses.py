"""The loss of questions: of one batch as of its microbatches, replicas, and without padding."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from bert_folder import write
from covering import covering, sampled
from fit_helpers import mirrored
from test_token_losses import CHANGES as TOKEN_CHANGES, LIBRARIES

import keras_efficient as ke

TASK = ke.tasks.get("question_answering")
CONTEXTS = (
    "the film was very good and the actors with great plots was not bad",
    "bad actors",
    "a good plot with actors and a great film was not very bad and the plot was good",
    "the very bad plot",
)
CHANGES = {
    "replicas": TOKEN_CHANGES["replicas"],
    "both": lambda model: (ke.unpad(model), ke.accumulate(model, microbatch_size=2)),
}


def records():
    rows = []
    for context in CONTEXTS:
        for word in ("plot", "actors"):
            at = context.find(word)
            answers = {"text": [word] * (at >= 0), "answer_start": [at] * (at >= 0)}
            rows.append({"question": f"the {word}", "context": context, "answers": answers})
    return TASK.records(rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("bert") / "model")


def batches(tokenizer):
    """All windows in one batch, of unequal lengths."""
    return ke.data.text(records(), tokenizer, batch_size=32, max_length=16, stride=3, shuffle=False)


def trained(folder, library, change, strategy=None):
    """Return the weights and the logs after an update with all windows."""
    with (strategy or tf.distribute.get_strategy()).scope():
        model, tokenizer = ke.models.load(folder, task=TASK, library=library)
        keras = ke.flavor.of(model).keras
        options = {"metrics": TASK.metrics(keras, 2), "jit_compile": False}
        for layer in model._flatten_layers():
            if isinstance(layer, keras.layers.Dropout):
                layer.rate = 0.0
        model.compile(keras.optimizers.SGD(0.5), TASK.loss(keras), **options)
    change(model)
    logs = model.fit(batches(tokenizer), shuffle=False, verbose=0).history
    return model.get_weights(), {name: float(values[0]) for name, values in logs.items()}


@functools.cache
def whole(folder, library):
    return trained(folder, library, lambda model: ke.accumulate(model, microbatches=1))


def loss_of(folder, library):
    """The loss and the metric of all windows, in NumPy, and the numbers of the windows."""
    model, tokenizer = ke.models.load(folder, task=TASK, library=library)
    ((x, y),) = batches(tokenizer)
    outputs = model(x)
    logits = np.asarray(getattr(outputs, "logits", outputs)).astype("float64")
    y = y.numpy()
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    losses = [logs[n, i, y[n, i]] for n in range(len(y)) for i in range(2)]
    return -np.mean(losses), (logits.argmax(-1) == y[:, :2]).all(1).mean(), y


@sampled(2)
@pytest.mark.parametrize("library, change", covering(LIBRARIES, tuple(CHANGES), strength=1))
def test_one_update_is_the_same(library, change, folder):
    strategy = mirrored(2) if change == "replicas" else None
    expected, logs = whole(folder, library)
    loss, accuracy, labels = loss_of(folder, library)
    # Some windows contain the answer, and others do not.
    assert 3 < (labels[:, 0] > 0).sum() < len(labels) - 3
    assert logs["loss"] == pytest.approx(loss, rel=1e-5)
    assert logs["span_accuracy"] == pytest.approx(accuracy, abs=1e-6)
    found, others = trained(folder, library, CHANGES[change], strategy)
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6)
    assert others == pytest.approx(logs, rel=1e-5, abs=1e-6)


@sampled()
@pytest.mark.parametrize("library", LIBRARIES)
def test_distillation_compares_tokens_and_is_that_of_its_microbatches(library, folder):
    """A teacher of other answers: the softmax is over the tokens."""
    teacher, tokenizer = ke.models.load(folder, task=TASK, library=library, seed=1)
    head = getattr(teacher, "output_dense", None) or teacher.qa_outputs
    head.set_weights([20 * weight for weight in head.get_weights()])
    weights = [
        trained(
            folder,
            library,
            lambda model, n=n: (
                ke.distill(model, teacher, alpha=0.0, temperature=2.0),
                ke.accumulate(model, microbatches=n),
            ),
        )[0]
        for n in (1, 3)
    ]
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6)
    # The gradient of what a softmax over the tokens gives, in a step of SGD.
    ((x, _),) = batches(tokenizer)
    student, _ = ke.models.load(folder, task=TASK, library=library)
    flavor = ke.flavor.of(student)
    variables = list(map(flavor.value, student.trainable_variables))
    with tf.GradientTape() as tape:
        ours, theirs = (getattr(y := model(x), "logits", y) for model in (student, teacher))
        p, q = (tf.nn.softmax(logits / 2, -1) for logits in (theirs, ours))
        loss = 4 * tf.reduce_mean(tf.reduce_sum(p * tf.math.log(p / q + 1e-30), -1))
    moved = [
        v - 0.5 * tf.convert_to_tensor(g)
        for v, g in zip(variables, tape.gradient(loss, variables), strict=True)
    ]
    places = {id(flavor.value(v)): n for n, v in enumerate(student.weights)}
    for variable, expected in zip(variables, moved, strict=True):
        np.testing.assert_allclose(weights[0][places[id(variable)]], expected, atol=5e-6)
