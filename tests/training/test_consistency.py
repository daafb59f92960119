"""Consistency training: its loss, its place in the step, and batches with unlabelled texts."""

import numpy as np
import pytest
import task_models
import tensorflow as tf
from task_models import LIBRARIES, compiled, new_model
from zoo import keras_of

import keras_efficient as ke
from keras_efficient._errors import InputError
from keras_efficient.training import _train_step_hook as train_step_hook
from keras_efficient.training._consistency import consistency_loss

libraries = pytest.mark.parametrize("library", LIBRARIES)
RATE = 0.1
SETTINGS = {"weight": 0.7, "temperature": 0.5, "confidence": 0.0}


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_the_divergence_from_confident_predictions():
    z, other = np.random.default_rng(0).normal(0, 2, (2, 50, 3))
    p, q = softmax(z / 0.4), softmax(other)
    expected = np.where(softmax(z).max(-1) >= 0.8, (p * np.log(p / q)).sum(-1), 0)
    found = consistency_loss(tf.constant(z), tf.constant(other), 0.4, 0.8)
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert 5 < (expected > 0).sum() < 45
    with tf.GradientTape() as tape:
        a, b = tf.Variable(z), tf.Variable(other)
        loss = tf.reduce_sum(consistency_loss(a, b, 0.4, 0.8))
    assert tape.gradient(loss, a) is None
    loss = float(loss)
    # That of the copies alone: the gradient of cross-entropy.
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(consistency_loss(tf.constant(z), b, 0.4, 0.8))
    mask = (softmax(z).max(-1) >= 0.8)[:, None]
    np.testing.assert_allclose(tape.gradient(loss, b), np.where(mask, q - p, 0), atol=1e-9)


def joined(tokenizer):
    """Batches of four labelled and three unlabelled texts, of unequal lengths."""
    task, records = task_models.TASKS["classification"], task_models.records("classification")
    some = task.batches(records.take([0, 1, 2, 4]), tokenizer, batch_size=4, shuffle=False)
    more = records.take([3, 5, 6]).without_labels()
    more = ke.data.text(more, tokenizer, batch_size=3, shuffle=False)
    return ke.data.join_unlabelled(some, more, tokenizer)


def term_of(model):
    return train_step_hook.attach(model).loss_terms["consistency"]


def step_by_hand(library):
    """One step of SGD on the loss of the labels and the divergence, written down."""
    model, tokenizer = new_model("classification", library)
    model.compile(keras_of(library).optimizers.SGD(RATE))
    ke.consistency(model, tokenizer, **SETTINGS)
    ((x, y, weights),) = joined(tokenizer)
    doubled, *_ = term_of(model).prepare((x, y, weights))
    flavor = ke.flavor.of(model)
    variables = list(map(flavor.value, model.trainable_variables))
    with tf.GradientTape() as tape:
        logits = task_models.logits(model, doubled)
        one, other = tf.split(logits, 2)
        labelled = [
            tf.nn.sparse_softmax_cross_entropy_with_logits(y[:4], part[:4]) for part in (one, other)
        ]
        divergence = consistency_loss(one, other, 0.5, 0.0)
        loss = tf.reduce_mean(labelled) + 0.7 * tf.reduce_mean(divergence)
    for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
        variable.assign_sub(RATE * tf.convert_to_tensor(gradient))
    altered = {name: tensor[7:] for name, tensor in doubled.items()}
    ids = tokenizer.inputs["ids"]
    assert (altered[ids].numpy() != x[ids].numpy()).any()
    return model, float(loss), float(tf.reduce_mean(divergence))


@libraries
@pytest.mark.parametrize("microbatches", [1, 3])
def test_a_step_is_that_of_the_written_loss(library, microbatches):
    expected, loss, divergence = step_by_hand(library)
    assert divergence > 0.01
    model, tokenizer = compiled("classification", library, keras_of(library).optimizers.SGD(RATE))
    ke.consistency(model, tokenizer, **SETTINGS)
    ke.accumulate(model, microbatches=microbatches)
    history = model.fit(joined(tokenizer), verbose=0, shuffle=False).history
    for a, b in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    np.testing.assert_allclose(history["loss"][0], loss, rtol=1e-4)


@libraries
def test_what_is_altered_follows_from_update_and_text(library):
    model, tokenizer = compiled("classification", library, keras_of(library).optimizers.SGD(RATE))
    ke.consistency(model, tokenizer)
    ((x, y, _),) = joined(tokenizer)
    ids, mask = tokenizer.inputs["ids"], tokenizer.inputs["mask"]

    def altered(features):
        doubled = term_of(model).prepare((features, y))[0]
        number = len(features[ids])
        rows = zip(doubled[ids].numpy()[number:], doubled[mask].numpy()[number:], strict=True)
        return [row[real > 0].tolist() for row, real in rows]

    first = altered(x)
    assert first != [
        row[real > 0].tolist() for row, real in zip(x[ids].numpy(), x[mask].numpy(), strict=True)
    ]
    # Of other texts, in another order and with more padding.
    again = altered({name: tf.pad(t[2:5][::-1], [[0, 0], [0, 3]]) for name, t in x.items()})
    assert again == first[2:5][::-1]
    model.optimizer.iterations.assign(1)
    assert altered(x) != first
    ke.consistency(model, tokenizer, augmentations=None)
    assert "consistency" not in train_step_hook.attach(model).loss_terms


def test_metrics_and_labels_of_joined_batches():
    _, tokenizer = new_model("classification", "keras")
    ((x, y, weights),) = joined(tokenizer)
    assert x["token_ids"].shape[0] == 7 and y.shape == (7,)
    np.testing.assert_allclose(weights, [7 / 4] * 4 + [0] * 3)
    mask = x["padding_mask"].numpy()
    assert (x["token_ids"].numpy()[mask == 0] == tokenizer.pad_id).all()
    data = joined(tokenizer)
    assert int(data.cardinality()) == 1


def test_arguments_that_cannot_be_used():
    model, tokenizer = new_model("classification", "keras")
    for settings, message in (
        ({"weight": 0}, "`weight` must be a number > 0"),
        ({"temperature": -1}, "`temperature` must be a number > 0"),
        ({"confidence": 2}, "`confidence` must be a number from 0 to 1"),
        ({"augmentations": []}, "There must be an augmentation"),
    ):
        with pytest.raises(ValueError, match=message):
            ke.consistency(model, tokenizer, **settings)
    records = task_models.records("classification")
    some = ke.data.text(records, tokenizer, batch_size=2)
    with pytest.raises(InputError, match="`unlabelled` must be batches of the same features"):
        ke.data.join_unlabelled(some, some, tokenizer)
    with pytest.raises(InputError, match="`labelled` must be batches of \\(features, labels\\)"):
        ke.data.join_unlabelled(some.map(lambda x, y: x), some, tokenizer)


def test_models_that_are_no_classifiers():
    model, tokenizer = compiled("regression", "keras", "sgd")
    ke.consistency(model, tokenizer)
    with pytest.raises(ValueError, match="Consistency training is for classifiers of texts"):
        model.fit(task_models.batches("regression", tokenizer), verbose=0)
