"""Replicas and microbatches of unequal weight equal one device's batch, for every kind of loss.

Eleven texts in batches of ten: the last batch has one, and leaves a replica without any.
"""

import numpy as np
import pytest
import tensorflow as tf
from covering import covering, sampled
from fit_helpers import assert_same, assert_same_history, batches, mirrored, moved, sample_weights
from training.test_accumulation_losses import labels, ragged_ids, tokens_to_logits, two_outputs
from training.test_accumulation_own_steps import (
    data,
    hugging_face,
    own_step_model,
    token_labels,
    with_extra_logs,
    with_metrics,
    with_minimize,
)
from zoo import CLASSES, LENGTH, VOCABULARY, keras_of

import keras_efficient as ke

LIBRARIES = ("keras", "tf_keras")


def first(library):
    """The test runs for `library`; for the other one under `make test-all`.

    Every loss runs for both libraries, without replicas, in tests/training.
    """
    marks = {lib: [] if lib == library else [pytest.mark.full] for lib in LIBRARIES}
    levels = [pytest.param(lib, marks=marks[lib]) for lib in LIBRARIES]
    return pytest.mark.parametrize("library", levels)


TEXTS = 11


def check(library, make, *dataset, loss=None, rate=0.3, history=True, **kwargs):
    """Assert that two epochs on two replicas, two microbatches each, agree with plain training.

    Args:
        history: whether the logs agree, too.
    """
    keras = keras_of(library)

    def run(replicas, k):
        with mirrored(replicas).scope():
            model = make()
            before = model.get_weights()
            given = {} if loss is None else {"loss": loss(keras.losses)}
            model.compile(keras.optimizers.SGD(rate), **given, **kwargs)
        ke.accumulate(model, k)
        fed = batches(*dataset, batch_size=10)
        logs = model.fit(fed, epochs=2, shuffle=False, verbose=0).history
        assert moved(before, model) > 1e-2
        return model, logs

    (plain, expected), (model, found) = run(1, None), run(2, 2)
    assert_same(model, plain)
    if history:
        assert_same_history(found, expected)


def texts():
    return np.concatenate([ragged_ids(), ragged_ids(1)])[:TEXTS]


def token_weights():
    weights = np.random.default_rng(5).uniform(0.1, 2.0, (TEXTS, LENGTH)).astype("float32")
    weights[2] = 0.0
    return weights


def crossentropy(**kwargs):
    return lambda losses: losses.SparseCategoricalCrossentropy(True, **kwargs)


@first("tf_keras")
def test_masks(library):
    def make():
        return tokens_to_logits(library, tokens=True, masked=True, regularised=True)

    check(library, make, texts(), labels((TEXTS, LENGTH)), loss=crossentropy(), history=False)


@first("keras")
def test_logged_loss_of_masked_tokens(library):
    def make():
        return tokens_to_logits(library, tokens=True, masked=True)

    check(library, make, texts(), labels((TEXTS, LENGTH)), loss=crossentropy())


@pytest.mark.parametrize(
    "reduction",
    [
        "mean_with_sample_weight",
        pytest.param("sum_over_batch_size", marks=pytest.mark.full),
    ],
)
def test_keras_3_masks_with_token_weights(reduction):
    def make():
        return tokens_to_logits("keras", tokens=True, masked=True)

    loss = crossentropy(reduction=reduction)
    y, weights = labels((TEXTS, LENGTH)), token_weights()
    check("keras", make, texts(), y, weights, loss=loss, history=False)


@sampled()
@pytest.mark.parametrize("library, weighted", covering(LIBRARIES, [True, False], strength=1))
def test_sums(library, weighted):
    def make():
        return tokens_to_logits(library, tokens=False)

    dataset = [texts(), labels(TEXTS), *([sample_weights(TEXTS)] if weighted else [])]
    check(library, make, *dataset, loss=crossentropy(reduction="sum"), rate=0.05, history=False)


@first("tf_keras")
def test_sums_with_a_regulariser_and_a_replica_without_examples(library):
    def make():
        return tokens_to_logits(library, tokens=False, regularised=True)

    loss = crossentropy(reduction="sum")
    check(library, make, texts(), labels(TEXTS), loss=loss, rate=0.05, history=False)


def test_keras_3_weighted_means():
    def make():
        return tokens_to_logits("keras", tokens=False)

    loss = crossentropy(reduction="mean_with_sample_weight")
    check("keras", make, texts(), labels(TEXTS), sample_weights(TEXTS), loss=loss, history=False)


@sampled()
@pytest.mark.parametrize("library, masked", covering(LIBRARIES, [False, True], strength=1))
def test_ignored_classes(library, masked):
    """Both libraries make a mask of `ignore_class`, and divide by the labels that are left."""
    y = labels((TEXTS, LENGTH))
    y[:, 3:] = -100
    y[1] = -100

    def make():
        return tokens_to_logits(library, tokens=True, masked=masked)

    check(library, make, texts(), y, loss=crossentropy(ignore_class=-100), history=False)


@first("keras")
def test_added_losses(library):
    def make():
        return tokens_to_logits(library, tokens=False, adds=True)

    check(library, make, texts(), labels(TEXTS), loss=crossentropy())


@first("tf_keras")
def test_several_losses(library):
    y = {"one": labels(TEXTS), "two": labels(TEXTS)[::-1].copy()}
    check(
        library,
        lambda: two_outputs(library),
        texts(),
        y,
        loss=lambda losses: {n: losses.SparseCategoricalCrossentropy(True) for n in y},
        loss_weights={"one": 1.0, "two": 0.3},
        # Plain Keras 3 takes batches of unknown size for equal in "one_loss" and "two_loss".
        history=library == "tf_keras",
    )


@first("keras")
def test_a_models_own_compute_loss(library):
    keras = keras_of(library)

    class Doubled(keras.Model):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, **kwargs):
            kwargs = {"sample_weight": sample_weight, **kwargs}
            return 2.0 * super().compute_loss(x=x, y=y, y_pred=y_pred, **kwargs)

    def make():
        inner = tokens_to_logits(library, tokens=False)
        return Doubled(inner.inputs, inner.outputs)

    check(library, make, texts(), labels(TEXTS), sample_weights(TEXTS), loss=crossentropy())


@sampled()
@pytest.mark.parametrize(
    ("library", "step"),
    [
        ("keras", with_metrics),
        ("tf_keras", with_minimize),
        pytest.param("keras", with_extra_logs, marks=pytest.mark.full),
        pytest.param("tf_keras", with_metrics, marks=pytest.mark.full),
        pytest.param("tf_keras", with_extra_logs, marks=pytest.mark.full),
    ],
)
def test_a_users_train_step(library, step):
    def make():
        return own_step_model(library, step)

    metrics = ["accuracy"] if step is with_metrics else None
    # This step's metric called "loss" weighs a replica's batches alike, whatever their size; and
    # Keras 3 averages other logs over replicas, the empty one's included.
    history = library == "tf_keras"
    check(library, make, *data(TEXTS), loss=crossentropy(), metrics=metrics, history=history)


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "classes"),
    [("TFBertForTokenClassification", CLASSES), ("TFBertForMaskedLM", VOCABULARY)],
)
def test_hugging_face_token_losses(name, classes):
    ids = data(TEXTS)[0]
    features = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    features["labels"] = token_labels(TEXTS, classes)

    def run(replicas, k):
        with mirrored(replicas).scope():
            model = hugging_face(name)
            before = model.get_weights()
            model.compile(keras_of("tf_keras").optimizers.SGD(0.3))
        ke.accumulate(model, k)
        fed = tf.data.Dataset.from_tensor_slices(features).batch(10)
        history = model.fit(fed, epochs=2, shuffle=False, verbose=0).history
        assert moved(before, model) > 1e-2
        return model, history

    (plain, _), (model, _) = run(1, None), run(2, 2)
    assert_same(model, plain)
