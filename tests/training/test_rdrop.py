"""R-Drop: the divergence of two predictions, and its place in the loss."""

import numpy as np
import pytest
import tensorflow as tf
from covering import covering, sampled
from fit_helpers import (
    SMALL,
    assert_same,
    assert_same_history,
    batches,
    compiled,
    mirrored,
    moved,
)
from zoo import CLASSES, LENGTH, VOCABULARY, ZOO, keras_of

import keras_efficient as ke
from keras_efficient import flavor as flavors
from keras_efficient.training._rdrop import symmetric_divergence

BY_NAME = {specimen.name: specimen for specimen in ZOO}
libraries = pytest.mark.parametrize("library", list(SMALL))
rotated = pytest.mark.parametrize("library, replicas", covering(SMALL, (1, 2), strength=1))
#: What the second of two equal examples gets on top of its logits.
NOISE = np.array([0.5, -1.0, 2.0], "float32")
ALPHA = 0.7


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def kl(p, q):
    return (p * np.log(p / q)).sum(-1)


def two(shape):
    return np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")


@pytest.mark.parametrize("shape", [(5, 3), (4, 6, 3)])
def test_the_divergence_of_logits_and_of_probabilities(shape):
    a, b = two(shape)
    p, q = softmax(a), softmax(b)
    expected = (kl(p, q) + kl(q, p)) / 2
    np.testing.assert_allclose(symmetric_divergence(a, b, True), expected, rtol=1e-5)
    np.testing.assert_allclose(symmetric_divergence(p, q, False), expected, rtol=1e-5)
    assert expected.mean() > 0.1
    np.testing.assert_array_equal(symmetric_divergence(a, a, True), np.zeros(shape[:-1]))


def test_a_single_output_is_a_choice_of_two():
    a, b = two((5, 1))
    p, q = (np.concatenate([sigmoid(z), 1 - sigmoid(z)], -1) for z in (a, b))
    expected = (kl(p, q) + kl(q, p)) / 2
    found = [symmetric_divergence(a, b, True), symmetric_divergence(sigmoid(a), sigmoid(b), False)]
    for divergence in found:
        np.testing.assert_allclose(divergence, expected, rtol=1e-4)


def test_several_labels_are_a_choice_of_two_each():
    a, b = two((5, 3))
    expected = np.mean(
        [symmetric_divergence(a[:, i:][:, :1], b[:, i:][:, :1], True) for i in range(3)], 0
    )
    for from_logits, (x, y) in {True: (a, b), False: (sigmoid(a), sigmoid(b))}.items():
        found = symmetric_divergence(x, y, from_logits, independent=True)
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_certainty_is_no_infinity():
    p, q = np.eye(2, dtype="float32")
    assert np.isfinite(symmetric_divergence(p[None], q[None], False))
    assert np.isfinite(symmetric_divergence(1000 * p[None], 1000 * q[None], True))
    half = tf.constant([[6e4, 0.0]], tf.float16)
    assert symmetric_divergence(half, half[:, ::-1], True).dtype == tf.float32


def noisy(library, *, activation=None, masked=False):
    """A model whose predictions for the second half of a batch are moved by `NOISE`, in training.

    So are those for every example's double, whatever the microbatch.
    """
    keras = keras_of(library)

    class Noise(keras.layers.Layer):
        supports_masking = True

        def call(self, z, training=None):
            if not training:
                return z
            half = tf.shape(z)[0] // 2
            second = tf.cast(tf.range(tf.shape(z)[0]) >= half, z.dtype)
            second = tf.reshape(second, [-1] + [1] * (len(z.shape) - 1))
            return z + second * NOISE[: z.shape[-1]]

    ids = keras.layers.Input((LENGTH,), dtype="int32")
    x = keras.layers.Embedding(VOCABULARY, 8, mask_zero=masked)(ids)
    if not masked:
        x = keras.layers.GlobalAveragePooling1D()(x)
    outputs = 1 if activation == "sigmoid" else CLASSES
    z = Noise()(keras.layers.Dense(outputs)(x))
    model = keras.Model(ids, keras.layers.Activation(activation)(z) if activation else z)
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.5, w.shape) for w in model.get_weights()])
    return model


def made(library, replicas=1, *, loss=None, rate=0.5, **kwargs):
    keras = keras_of(library)
    with mirrored(replicas).scope():
        model = noisy(library, **kwargs)
        loss = loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(rate), loss)
    return model


def train(model, x, y, weights=None, batch_size=6, **kwargs):
    data = batches(x, y, weights, batch_size=batch_size)
    return model.fit(data, shuffle=False, verbose=0, **kwargs).history


def by_hand(model, x, y, rate, *, total=False):
    """The loss of one batch, and one step on it, written down."""
    values = list(map(flavors.of(model).value, model.trainable_variables))
    with tf.GradientTape() as tape:
        one = model(x)
        other = one + NOISE
        losses = [tf.nn.sparse_softmax_cross_entropy_with_logits(y, z) for z in (one, other)]
        p, q = tf.nn.softmax(one), tf.nn.softmax(other)
        term = tf.reduce_sum((p - q) * (tf.math.log(p) - tf.math.log(q)), -1) / 2
        loss = tf.reduce_mean(tf.add_n(losses) / 2 + ALPHA * term)
        scaled = loss * len(y) if total else loss
    for value, gradient in zip(values, tape.gradient(scaled, values), strict=True):
        value.assign_sub(rate * tf.convert_to_tensor(gradient))
    return float(loss), float(scaled)


@sampled()
@pytest.mark.parametrize(
    "library, reduction, replicas", covering(SMALL, ["mean", "sum"], (2, 1), strength=1)
)
def test_loss_and_step_are_the_equation(library, reduction, replicas):
    """However the batch is split: 10 examples on two replicas, in microbatches of 2."""
    keras = keras_of(library)
    rate = 0.5 if reduction == "mean" else 0.05
    loss = {}
    if reduction == "sum":
        loss["loss"] = keras.losses.SparseCategoricalCrossentropy(True, reduction="sum")
    x, y = SMALL[library].batch(10)
    expected = made(library)
    mean, total = by_hand(expected, x, y, rate, total=reduction == "sum")
    model = ke.adversarial(made(library, replicas, rate=rate, **loss), "rdrop", alpha=ALPHA)
    history = train(ke.accumulate(model, microbatch_size=2), x, y, batch_size=10)
    assert_same(model, expected, 1e-6)
    if reduction == "mean":
        np.testing.assert_allclose(history["loss"], [mean], rtol=1e-5)
    elif replicas == 1:
        np.testing.assert_allclose(history["loss"], [total], rtol=1e-5)


@pytest.mark.full
@sampled()
@rotated
def test_two_equal_predictions_train_as_before(library, replicas):
    """No dropout, no divergence: metrics and weights are the plain ones."""
    specimen = SMALL[library]
    x, y = specimen.batch(12)
    plain = compiled(library, specimen.make())
    with mirrored(replicas).scope():
        model = compiled(library, specimen.make())
    ke.adversarial(ke.accumulate(model, 2), "rdrop", alpha=5.0)
    assert_same_history(train(model, x, y), train(plain, x, y))
    assert_same(model, plain)


@sampled()
@libraries
def test_dropout_draws_two_masks(library):
    """The loss grows by α times the same divergence."""
    keras = keras_of(library)
    x, y = SMALL[library].batch(12)

    def loss(alpha):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.layers.Input((LENGTH,), dtype="int32"),
                keras.layers.Embedding(VOCABULARY, 8, embeddings_initializer="ones"),
                keras.layers.Flatten(),
                keras.layers.Dropout(0.5, seed=1),
                keras.layers.Dense(CLASSES),
            ]
        )
        compiled(library, model, keras.optimizers.SGD(0.0))
        ke.adversarial(model, "rdrop", alpha=alpha)
        return train(model, x, y, batch_size=12)["loss"][0]

    least, one, two = loss(1e-9), loss(1.0), loss(2.0)
    assert one - least > 1e-2
    np.testing.assert_allclose(two - one, one - least, rtol=1e-3)


@pytest.mark.full
@sampled()
@libraries
def test_logits_are_known_by_the_compiled_loss(library):
    keras = keras_of(library)
    x, y = SMALL[library].batch(6)
    losses = keras.losses.SparseCategoricalCrossentropy

    def trained(loss, activation=None, **kwargs):
        model = made(library, loss=loss, activation=activation)
        return model, train(ke.adversarial(model, "rdrop", **kwargs), x, y)["loss"][0]

    logits, expected = trained(losses(from_logits=True))
    for loss in (losses(), "sparse_categorical_crossentropy"):
        probabilities, found = trained(loss, "softmax")
        assert_same(probabilities, logits)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    told, found = trained(losses(from_logits=True), from_logits=True)
    assert_same(told, logits, 0)
    _, wrong = trained(losses(from_logits=True), from_logits=False)
    assert abs(wrong - expected) > 1e-3


@sampled()
@libraries
def test_one_logit_and_one_probability(library):
    keras = keras_of(library)
    x, y = SMALL[library].batch(6)
    y = (y > 1).astype("float32")[:, None]

    def trained(loss, activation):
        model = made(library, loss=loss, activation=activation)
        return model, train(ke.adversarial(model, "rdrop"), x, y)["loss"]

    losses = keras.losses.BinaryCrossentropy
    probability, found = trained(losses(), "sigmoid")
    z = probability.layers[-3]
    assert z.units == 1
    with_logit = keras.Model(probability.input, probability.layers[-2].output)
    rng = np.random.default_rng(0)
    with_logit.set_weights([rng.normal(0, 0.5, w.shape) for w in with_logit.get_weights()])
    with_logit.compile(keras.optimizers.SGD(0.5), losses(from_logits=True))
    expected = train(ke.adversarial(with_logit, "rdrop"), x, y)["loss"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@sampled()
@pytest.mark.parametrize("library, replicas", covering(SMALL, (2, 1), strength=1))
def test_masked_tokens_count_neither_in_the_loss_nor_in_the_divergence(library, replicas):
    """So k microbatches of sentences of any length are one batch; the last has no token at all."""
    rng = np.random.default_rng(0)
    x = rng.integers(1, VOCABULARY, (8, LENGTH)) * (np.arange(LENGTH) < rng.integers(1, 7, (8, 1)))
    x, y = x.astype("int32"), rng.integers(0, CLASSES, (8, LENGTH)).astype("int32")
    x[-1] = 0

    def run(count, k):
        model = ke.adversarial(made(library, count, masked=True), "rdrop", alpha=ALPHA)
        history = train(ke.accumulate(model, k), x, y, batch_size=8)
        return model, history["loss"]

    (one, expected), (split, found) = run(1, 1), run(replicas, 4)
    assert np.isfinite(expected).all()
    assert_same(one, split, 1e-6)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.full
def test_hugging_face_trains_with_its_own_step():
    """The loss that it logs includes the divergence."""
    specimen = BY_NAME["hugging-face-bert"]
    x, y = specimen.batch(6)

    def run(dropout, alpha=None):
        model = specimen.make()
        for layer in model._flatten_layers():
            if hasattr(layer, "rate"):
                layer.rate = dropout
        model.compile(keras_of("tf_keras").optimizers.SGD(0.1))
        before = model.get_weights()
        if alpha:
            ke.adversarial(ke.accumulate(model, 2), "rdrop", alpha=alpha)
        return train(model, x, y)["loss"], model, moved(before, model)

    (expected, plain, _), (found, same, little) = run(0.0), run(0.0, alpha=1e4)
    assert_same(plain, same)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    logged, _, much = run(0.5, alpha=1e4)
    assert much > 100 * little and logged[0] > 10 * expected[0]


@sampled()
@libraries
def test_a_step_that_applies_gradients_itself_is_refused(library):
    keras = keras_of(library)

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1)

        def call(self, x):
            return self.dense(x)

        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((self(x, training=True) - y) ** 2)
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
            return {"loss": loss}

    model = Own()
    model(np.zeros((1, 2), "float32"))
    model.compile(keras.optimizers.SGD(0.1), "mse")
    ke.adversarial(model, "rdrop")
    with pytest.raises(NotImplementedError, match=r"R-Drop .* Received one that applies gradients"):
        train(model, np.ones((4, 2), "float32"), np.ones((4, 1), "float32"))


@sampled()
@libraries
def test_numbers_of_a_regression_are_refused(library):
    model = made(library, loss="mse")
    ke.adversarial(model, "rdrop")
    x = np.ones((4, *model.input_shape[1:]), "float32")
    with pytest.raises(ValueError, match="R-Drop compares probabilities"):
        train(model, x, np.ones((4, model.output_shape[-1]), "float32"))


@sampled()
@libraries
def test_none_takes_it_away(library):
    specimen = SMALL[library]
    model, plain = (made(library) for _ in range(2))
    before = plain.get_weights()
    ke.adversarial(ke.adversarial(model, "rdrop"), None)
    assert "train_step" not in vars(model)
    for each in (model, plain):
        train(each, *specimen.batch(6))
    assert_same(model, plain, 0)
    assert moved(before, model) > 0
