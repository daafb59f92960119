"""A tiny Transformer of each task and library, its batches, and its loss written down."""

import functools
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from bert_folder import VOCABULARY
from tokenizers import BertWordPieceTokenizer
from zoo import keras_of

import keras_efficient as ke

LIBRARIES = ("keras", "tf_keras")
#: Of very unequal lengths, so that a mean over texts is another one than that over tokens.
TEXTS = (
    "the film",
    "a good plot with actors and a great film was not very bad",
    "bad actors",
    "very good and bad and good films with a plot",
    "the actors",
    "a plot and a film and the plot",
    "goodly films and plots was not good",
)
BATCH = 4
#: Number of tokens that every text has.
SHORTEST = 3
IGNORED = -100
TEMPERATURE = 2.0


def _tags():
    names = {"film": "B-work", "films": "B-work", "plot": "B-work", "actors": "B-person"}
    rows = [
        {"tokens": text.split(), "tags": [names.get(word, "O") for word in text.split()]}
        for text in TEXTS
    ]
    return TASKS["token_classification"].records(rows)


def _questions():
    rows = []
    for number, context in enumerate(TEXTS):
        word = ("film", "actors", "plot")[number % 3]
        at = context.find(word)
        answers = {"text": [word] * (at >= 0), "answer_start": [at] * (at >= 0)}
        rows.append({"question": f"the {word}", "context": context, "answers": answers})
    return TASKS["question_answering"].records(rows)


def _labelled(name, labels):
    return ke.data.Records.of(list(TEXTS), labels, encode=TASKS[name].encode)


TASKS = {
    name: ke.tasks.get(name, texts=2 if name in ("causal_lm", "question_answering") else 1)
    for name in (
        "classification",
        "multi_label",
        "regression",
        "token_classification",
        "question_answering",
        "masked_lm",
        "causal_lm",
        "seq2seq",
    )
}
_CLASSES = [["good"], ["good", "long"], [], ["bad", "long"], ["bad"], ["good"], ["long"]]
_RECORDS = {
    "classification": lambda: _labelled("classification", list("abcacba")),
    "multi_label": lambda: _labelled("multi_label", _CLASSES),
    "regression": lambda: _labelled("regression", [0.5, -1.0, 2.0, 0.0, 1.5, -0.5, 1.0]),
    "token_classification": _tags,
    "question_answering": _questions,
    "masked_lm": lambda: ke.data.Records.of(list(TEXTS)),
    # Prompts, whose tokens have no labels, and completions.
    "causal_lm": lambda: ke.data.Records.of(list(TEXTS), second_texts=list(TEXTS[::-1])),
    "seq2seq": lambda: _labelled("seq2seq", list(TEXTS[::-1])),
}
#: Number of classes, for tasks that have some.
LABELS = {"classification": 3, "multi_label": 3, "token_classification": 5}


@functools.cache
def records(name):
    """Return seven examples of a task."""
    return _RECORDS[name]()


@functools.cache
def _tokenizer():
    vocabulary = {token: number for number, token in enumerate(VOCABULARY)}
    backend = BertWordPieceTokenizer(vocabulary)
    return ke.data.Tokenizer(backend, inputs=ke.data.HUGGING_FACE, max_length=40)


def new_model(name, library, dropout=0.0):
    """Return a new model, the same each time and far from uniform; and its tokenizer."""
    model, tokenizer = ke.models.create(
        _tokenizer(),
        task=TASKS[name],
        num_labels=LABELS.get(name),
        num_layers=1,
        hidden_dim=16,
        num_heads=2,
        intermediate_dim=32,
        dropout=dropout,
        library=library,
    )
    rng = np.random.default_rng(0)
    model.set_weights([w + 0.3 * rng.normal(size=w.shape) for w in model.get_weights()])
    return model, tokenizer


def compiled(name, library, optimizer, eager=False, **options):
    """Return a new model, compiled for its task; and its tokenizer."""
    model, tokenizer = new_model(name, library, **options)
    keras, task = keras_of(library), TASKS[name]
    model.compile(
        optimizer,
        task.loss(keras),
        metrics=task.metrics(keras, LABELS.get(name, 1)),
        # KerasHub adds an accuracy that counts padding.
        weighted_metrics=[],
        # XLA would take longer to compile than the rest of the test.
        jit_compile=False,
        run_eagerly=eager,
    )
    return model, tokenizer


def batches(name, tokenizer, noise=None, **options):
    """Return batches of four and three examples, of any lengths.

    Args:
        name: of the task.
        tokenizer: that of the model.
        noise: seed of the random numbers that replace ids of padding, and positions of masked
            tokens that do not count. Default: None, they stay.
        options: of the task's `batches`.
    """
    options = {"batch_size": BATCH, "shuffle": False, "training": False} | options
    found = TASKS[name].batches(records(name), tokenizer, **options)
    if noise is None:
        return found
    random = tf.random.Generator.from_seed(noise)
    inputs = tokenizer.inputs

    def change(features, labels):
        pairs = [("ids", "mask"), ("target_ids", "target_mask")]
        changed = {
            inputs[ids]: _replaced(
                features[inputs[ids]], features[inputs[mask]] > 0, random, len(VOCABULARY)
            )
            for ids, mask in pairs
            if ids in inputs and inputs[ids] in features
        }
        if "mask_positions" in features:
            positions = features["mask_positions"]
            changed["mask_positions"] = _replaced(positions, labels != IGNORED, random, SHORTEST)
        return features | changed, labels

    return found.map(change)


def _replaced(values, keep, random, below):
    other = random.uniform(tf.shape(values), 0, below, values.dtype)
    return tf.where(keep, values, other)


def logits(model, features):
    outputs = model(features)
    return getattr(outputs, "logits", outputs)


def losses(name, labels, scores):
    """Return the loss at each position, and 1 for those that count, written down."""
    if name == "regression":
        values = tf.square(tf.reshape(tf.cast(labels, scores.dtype), [-1]) - scores[:, 0])
    elif name == "multi_label":
        labels = tf.cast(labels, scores.dtype)
        values = tf.reduce_mean(tf.math.softplus(scores) - labels * scores, -1)
    else:
        if name == "question_answering":
            # The last one is the number of the window.
            labels = labels[:, :2]
        values = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.maximum(labels, 0), scores)
        return values, tf.cast(labels != IGNORED, values.dtype)
    return values, tf.ones_like(values)


def divergences(name, student, teacher):
    """Return what `ke.distill` compares at each position, written down."""
    if name == "regression":
        return tf.square(student - teacher)[:, 0]
    if name == "multi_label":
        student, teacher = (tf.stack([tf.zeros_like(x), x], -1) for x in (student, teacher))
    log_p, log_q = (tf.nn.log_softmax(x / TEMPERATURE) for x in (teacher, student))
    found = TEMPERATURE**2 * tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), -1)
    return tf.reduce_mean(found, -1) if name == "multi_label" else found


@dataclass(frozen=True)
class Expected:
    """What training must give.

    Attributes:
        weights: list of arrays.
        logs: dict of the mean loss of the batches and of the metrics.
    """

    weights: list
    logs: dict


def by_hand(name, library, rate, teacher=None):
    """Train a new model by SGD on both batches, without padding's noise or microbatches.

    Args:
        name: of the task.
        library: "keras" or "tf_keras".
        rate: learning rate.
        teacher: model from which half of the loss comes. Default: None.
    """
    model, tokenizer = new_model(name, library)
    flavor = ke.flavor.of(model)
    variables = list(map(flavor.value, model.trainable_variables))
    metrics = TASKS[name].metrics(flavor.keras, LABELS.get(name, 1))
    named = {"accuracy": flavor.keras.metrics.SparseCategoricalAccuracy}
    metrics = [named[m](m) if isinstance(m, str) else m for m in metrics]
    total = 0.0
    for features, labels in batches(name, tokenizer):
        target = None if teacher is None else logits(teacher, features)
        with tf.GradientTape() as tape:
            scores = logits(model, features)
            values, counts = losses(name, labels, scores)
            if teacher is not None:
                values = 0.5 * values + 0.5 * divergences(name, scores, target)
            loss = tf.reduce_sum(values * counts) / tf.reduce_sum(counts)
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            if gradient is not None:
                variable.assign_sub(rate * tf.convert_to_tensor(gradient))
        # As `fit` gives numbers to metrics.
        given = labels[:, None] if name == "regression" else labels
        for metric in metrics:
            metric.update_state(given, scores)
        total += len(labels) / len(TEXTS) * float(loss)
    return Expected(model.get_weights(), {"loss": total} | {m.name: m.result() for m in metrics})
