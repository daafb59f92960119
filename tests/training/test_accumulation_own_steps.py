"""Accumulation in models with a custom `train_step`, and in Hugging Face models."""

import numpy as np
import pytest
import tensorflow as tf
from covering import sampled
from fit_helpers import assert_same, assert_same_history, fit, moved
from zoo import CLASSES, LENGTH, VOCABULARY, hf_config, keras_of

import keras_efficient as ke

both = pytest.mark.parametrize("library", ["keras", "tf_keras"])


def own_step_model(library, step):
    """A model whose class has `step` as `train_step`."""
    keras = keras_of(library)
    base = type("Own", (keras.Model,), {"train_step": step, "keras": keras})
    ids = keras.layers.Input((LENGTH,), dtype="int32")
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(VOCABULARY, 8)(ids))
    model = base(ids, keras.layers.Dense(CLASSES)(x))
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.5, w.shape) for w in model.get_weights()])
    return model


def gradients(model, data):
    x, y = data
    with tf.GradientTape() as tape:
        y_pred = model(x, training=True)
        loss = model.compute_loss(x=x, y=y, y_pred=y_pred)
    variables = [getattr(v, "value", v) for v in model.trainable_variables]
    if model.keras.__name__ == "tf_keras":
        variables = model.trainable_variables
    return loss, y_pred, tape.gradient(loss, variables)


def with_metrics(model, data):
    """As in Keras' guide to `train_step`."""
    loss, y_pred, grads = gradients(model, data)
    model.optimizer.apply_gradients(zip(grads, model.trainable_variables, strict=True))
    if model.keras.__name__ == "tf_keras":
        model.compiled_metrics.update_state(data[1], y_pred)
    else:
        for metric in model.metrics:
            metric.update_state(*((loss,) if metric.name == "loss" else (data[1], y_pred)))
    return {metric.name: metric.result() for metric in model.metrics}


def with_extra_logs(model, data):
    loss, y_pred, grads = gradients(model, data)
    model.optimizer.apply_gradients(zip(grads, model.trainable_variables, strict=True))
    return {"my_loss": loss, "size_of_logits": tf.reduce_mean(tf.abs(y_pred))}


def with_minimize(model, data):
    """tf_keras' own way."""
    x, y = data
    with tf.GradientTape() as tape:
        loss = model.compute_loss(x=x, y=y, y_pred=model(x, training=True))
    model.optimizer.minimize(loss, model.trainable_variables, tape=tape)
    return {"my_loss": loss}


def data(n):
    rng = np.random.default_rng(2)
    x = rng.integers(1, VOCABULARY, (n, LENGTH)).astype("int32")
    return x, rng.integers(0, CLASSES, n).astype("int32")


@pytest.mark.full
@sampled()
@pytest.mark.parametrize(
    ("library", "step"),
    [
        ("keras", with_metrics),
        ("keras", with_extra_logs),
        ("tf_keras", with_metrics),
        ("tf_keras", with_extra_logs),
        ("tf_keras", with_minimize),
    ],
)
def test_a_users_train_step(library, step):
    def run(k):
        model = own_step_model(library, step)
        before = model.get_weights()
        model.compile(
            keras_of(library).optimizers.SGD(0.5),
            keras_of(library).losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"] if step is with_metrics else None,
        )
        ke.accumulate(model, k)
        history = fit(model, *data(24), epochs=2)
        assert moved(before, model) > 1e-2
        assert int(model.optimizer.iterations) == 4
        return model, history

    (plain, history), (model, accumulated) = run(None), run(3)
    assert_same(model, plain)
    assert_same_history(accumulated, history)


@sampled()
@both
def test_extra_logs_weigh_unequal_microbatches(library):
    def run(k):
        model = own_step_model(library, with_extra_logs)
        loss = keras_of(library).losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras_of(library).optimizers.SGD(0.5), loss)
        ke.accumulate(model, k)
        return fit(model, *data(10))

    assert_same_history(run(4), run(None))


@sampled()
@both
def test_a_step_that_applies_gradients_twice_is_refused(library):
    def twice(model, data):
        _, _, grads = gradients(model, data)
        for _ in range(2):
            model.optimizer.apply_gradients(zip(grads, model.trainable_variables, strict=True))
        return {}

    model = own_step_model(library, twice)
    loss = keras_of(library).losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    ke.accumulate(model, 2)
    with pytest.raises(NotImplementedError, match="applied them twice"):
        fit(model, *data(12))
    # And the optimizer is the optimizer again.
    assert not {"minimize", "apply", "apply_gradients"} & set(vars(model.optimizer))


def hugging_face(name):
    import transformers

    model = getattr(transformers, name)(hf_config())
    model(model.dummy_inputs)
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.2, w.shape).astype(w.dtype) for w in model.get_weights()])
    return model


def token_labels(n, classes):
    """Unequal numbers of labels per text; the texts 2 and 3 (one microbatch) have none."""
    rng = np.random.default_rng(4)
    labels = rng.integers(0, classes, (n, LENGTH)).astype("int32")
    counts = np.array([6, 1, 0, 0, 2, 1, 5, 3, 4, 6, 1, 2])[:n]
    return np.where(np.arange(LENGTH) < counts[:, None], labels, -100)


def full(*values):
    return pytest.param(*values, marks=pytest.mark.full)


@sampled()
@pytest.mark.parametrize(
    ("name", "labels", "k"),
    [
        ("TFBertForSequenceClassification", lambda n: data(n)[1], 5),
        full("TFBertForSequenceClassification", lambda n: data(n)[1], 2),
        ("TFBertForTokenClassification", lambda n: token_labels(n, CLASSES), 6),
        full("TFBertForMaskedLM", lambda n: token_labels(n, VOCABULARY), 6),
    ],
)
def test_hugging_face_with_its_internal_loss(name, labels, k):
    ids = data(12)[0]
    features = {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": labels(12)}

    def run(k):
        model = hugging_face(name)
        before = model.get_weights()
        model.compile(keras_of("tf_keras").optimizers.SGD(0.3))
        ke.accumulate(model, k)
        history = fit(model, features, epochs=2)
        assert moved(before, model) > 1e-2
        return model, history

    plain, history = run(None)
    model, accumulated = run(k)
    assert_same(model, plain)
    # The logged loss is that of the counted tokens.
    assert_same_history(accumulated, history, 1e-4)


@pytest.mark.full
def test_hugging_face_labels_as_y():
    features, labels = {"input_ids": data(12)[0]}, token_labels(12, CLASSES)

    def run(k):
        model = hugging_face("TFBertForTokenClassification")
        model.compile(keras_of("tf_keras").optimizers.SGD(0.3))
        ke.accumulate(model, k)
        fit(model, features, labels)
        return model

    assert_same(run(4), run(None))
