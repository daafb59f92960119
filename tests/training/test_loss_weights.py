"""`weight` and `normalise` of `ke.accumulate`: weights of microbatches and their divisor."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from covering import covering, sampled
from fit_helpers import assert_same, batches, compiled, fit, mirrored, moved
from zoo import CLASSES, LENGTH, VOCABULARY, keras_of

import keras_efficient as ke
from keras_efficient.training._batch_split import tokens

LIBRARIES = ("keras", "tf_keras")
libraries = pytest.mark.parametrize("library", LIBRARIES)
TEXTS = 11
#: Real tokens per text; the second microbatch of three (texts 4 to 7) has none.
COUNTS = np.array([6, 1, 2, 5, 0, 0, 0, 0, 4, 3, 6])
REAL = np.arange(LENGTH) < COUNTS[:, None]


@functools.cache
def averager(library):
    """A model class whose loss is the mean over labelled tokens, which Keras does not know of."""

    class Averager(keras_of(library).Model):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            counted = tf.cast(y != -100, tf.float32)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.maximum(y, 0), y_pred)
            return tf.math.divide_no_nan(tf.reduce_sum(losses * counted), tf.reduce_sum(counted))

    return Averager


def tagger(library, own_loss=True):
    keras = keras_of(library)
    layers = keras.layers
    inputs = {
        name: layers.Input((None,), dtype="int32", name=name) for name in ("ids", "attention_mask")
    }
    logits = layers.Dense(CLASSES)(layers.Embedding(VOCABULARY, 8)(inputs["ids"]))
    model = (averager(library) if own_loss else keras.Model)(inputs, logits)
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.5, w.shape) for w in model.get_weights()])
    return model


def texts():
    """Features and labels; padding is labelled -100, and masked."""
    rng = np.random.default_rng(1)
    ids = rng.integers(1, VOCABULARY, (TEXTS, LENGTH)).astype("int32")
    labels = rng.integers(0, CLASSES, (TEXTS, LENGTH)).astype("int32")
    features = {"ids": ids, "attention_mask": REAL.astype("int32")}
    return features, np.where(REAL, labels, -100).astype("int32")


def trained(library, replicas=1, *, rate=0.5, **setting):
    with mirrored(replicas).scope():
        model = tagger(library)
        before = model.get_weights()
        model.compile(keras_of(library).optimizers.SGD(rate))
    if setting:
        ke.accumulate(model, **setting)
    # A step on all texts, and one on the first.
    x, y = texts()
    for n in (TEXTS, 1):
        part = {name: value[:n] for name, value in x.items()}
        model.fit(batches(part, y[:n], batch_size=TEXTS), epochs=2, shuffle=False, verbose=0)
    assert moved(before, model) > 1e-2
    return model


def counted(x, y, sample_weight):
    return tf.math.count_nonzero(x["attention_mask"])


@functools.cache
def plain_run(library):
    return trained(library)


@sampled()
@pytest.mark.parametrize(
    "library, weight, split",
    covering(LIBRARIES, ["tokens", counted], [(1, 3), (2, 2), (1, 11)], strength=1),
)
def test_microbatches_of_a_loss_that_averages_over_tokens(library, weight, split):
    replicas, k = split
    model = trained(library, replicas, microbatches=k, weight=weight)
    assert_same(model, plain_run(library))


@sampled()
@libraries
def test_without_a_weight_a_custom_loss_averages_over_examples(library):
    plain = plain_run(library)
    by_examples = trained(library, microbatches=3, weight="examples")
    assert_same(trained(library, microbatches=3), by_examples)
    assert moved(plain.get_weights(), by_examples) > 1e-3


@sampled()
@pytest.mark.parametrize("library, replicas", covering(LIBRARIES, (1, 2), strength=1))
def test_a_number_divides_instead_of_the_weights(library, replicas):
    """A token budget of twice the batch's tokens halves the gradient: half the step."""
    x, y = texts()

    def step(**setting):
        with mirrored(replicas).scope():
            model = tagger(library)
            model.compile(keras_of(library).optimizers.SGD(0.5))
        before = model.get_weights()
        ke.accumulate(model, 2, weight="tokens", **setting)
        model.fit(batches(x, y, batch_size=TEXTS), shuffle=False, verbose=0)
        return [a - b for a, b in zip(model.get_weights(), before, strict=True)]

    whole, half = step(), step(normalise=2 * int(COUNTS.sum()))
    sums = step(normalise=1)
    for mean, halved, total in zip(whole, half, sums, strict=True):
        np.testing.assert_allclose(halved, mean / 2, atol=1e-6)
        np.testing.assert_allclose(total, mean * COUNTS.sum(), rtol=1e-4, atol=1e-5)


@sampled()
@libraries
def test_a_fixed_budget_lets_fuller_batches_count_more(library):
    """Under a fixed divisor two batches' steps sum up to that of their union (SGD, rate → 0)."""
    x, y = texts()

    def step(*parts):
        model = tagger(library)
        model.compile(keras_of(library).optimizers.SGD(1e-3))
        before = model.get_weights()
        ke.accumulate(model, microbatch_size=2, weight="tokens", normalise=10.0)
        for part in parts:
            features = {name: value[part] for name, value in x.items()}
            fit(model, features, y[part], batch_size=TEXTS)
        return [a - b for a, b in zip(model.get_weights(), before, strict=True)]

    apart, together = step(slice(0, 2), slice(2, None)), step(slice(None))
    for a, b in zip(apart, together, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_weight_of_a_compiled_loss():
    """The sums of weights may be the user's own: here, twice as much for the first half."""
    x, y = texts()
    y = np.maximum(y, 0)
    model = compiled("keras", tagger("keras", own_loss=False), metrics=None, weighted_metrics=None)
    ke.accumulate(model, microbatch_size=4, weight=lambda x, y, _: 2.0)
    same = compiled("keras", tagger("keras", own_loss=False), metrics=None, weighted_metrics=None)
    ke.accumulate(same, microbatch_size=4, weight="examples")
    # Slices of four: 2, 2 and 2 are as good as 4, 4 and 4.
    x = {name: value[:8] for name, value in x.items()}
    for each in (model, same):
        fit(each, x, y[:8], batch_size=8)
    assert_same(model, same)


# --- what counts as a token ----------------------------------------------------------------------


def test_tokens_are_labels_that_are_not_ignored():
    x, y = map(tf.constant, ([[1, 2, 3]], [[0, -100, 2]]))
    assert float(tokens(x, y)) == 2
    assert float(tokens({"labels": y})) == 2
    assert float(tokens(x, {"labels": y})) == 2
    assert float(tokens(x, y, tf.constant([[0.5, 9.0, 0.25]]))) == 0.75
    # One weight per text is not one per token.
    assert float(tokens(x, y, tf.constant([0.5]))) == 2


@pytest.mark.parametrize("name", ["padding_mask", "attention_mask", "input_mask"])
def test_tokens_are_what_the_mask_keeps_where_labels_are_per_text(name):
    mask = tf.constant([[1, 1, 0], [1, 0, 0]])
    assert float(tokens({name: mask}, tf.constant([0, 1]))) == 3


def test_tokens_of_a_bool_mask():
    assert float(tokens({"padding_mask": tf.constant([[True, False]])}, tf.constant([0]))) == 1


# --- errors --------------------------------------------------------------------------------------


def test_an_unknown_weight_is_refused():
    model = tagger("keras")
    rule = "`weight` must be None, 'examples', 'tokens' or a function"
    for value in ("words", 2, "none"):
        with pytest.raises(ValueError, match=rf"{rule} .* Received: {value!r}"):
            ke.accumulate(model, 2, weight=value)


def test_an_unknown_normalisation_is_refused():
    model = tagger("keras")
    rule = "`normalise` must be True .* or a positive number"
    for value in (False, None, 0, -1.0, "tokens", float("nan")):
        with pytest.raises(ValueError, match=rf"{rule} .* Received: {value!r}"):
            ke.accumulate(model, 2, normalise=value)


def test_a_misspelt_argument_is_a_type_error():
    with pytest.raises(TypeError, match="normalize"):
        ke.accumulate(tagger("keras"), 2, normalize=True)


@pytest.mark.parametrize("x", [tf.ones((2, 3)), {"ids": tf.ones((2, 3))}], ids=["array", "dict"])
def test_nothing_to_count_is_refused(x):
    message = r"(?s)weight='tokens' needs int labels \[examples, tokens\] .* Give a function"
    with pytest.raises(ValueError, match=message):
        tokens(x, tf.constant([0, 1]))


@sampled()
@libraries
def test_nothing_to_count_is_refused_in_fit(library):
    layers = keras_of(library).layers
    model = keras_of(library).Sequential([layers.Input((2,)), layers.Dense(1)])
    model.compile("sgd", "mse")
    ke.accumulate(model, 2, weight="tokens")
    with pytest.raises(ValueError, match="weight='tokens' needs int labels"):
        fit(model, np.ones((4, 2), "float32"), np.ones(4, "float32"))
