"""Contrastive learning: microbatches and replicas are one batch, with the same dropout masks."""

import numpy as np
import pytest
import tensorflow as tf
from covering import covering, sampled
from fit_helpers import assert_same, assert_same_history, mirrored, sample_weights
from zoo import LENGTH, VOCABULARY, keras_of

import keras_efficient as ke
from keras_efficient import flavor as flavors

LIBRARIES = ("keras", "tf_keras")
METHODS = ("multiple_negatives", "simcse", "supervised")
libraries = pytest.mark.parametrize("library", LIBRARIES)
rotated = pytest.mark.parametrize("library, method", covering(LIBRARIES, METHODS, strength=1))
EXAMPLES, RATE = 11, 0.2


def encoder(library, *, dropout=0.0, jit=False, replicas=1, dtype="float32", **kwargs):
    """A model of text embeddings with a sparse gradient, dropout and moving statistics."""
    keras = keras_of(library)
    layers = keras.layers
    with mirrored(replicas).scope():
        ids = layers.Input((LENGTH,), dtype="int32")
        x = layers.GlobalAveragePooling1D(dtype=dtype)(
            layers.Embedding(VOCABULARY, 8, dtype=dtype)(ids)
        )
        x = layers.Dropout(dropout, dtype=dtype)(layers.Dense(8, activation="tanh", dtype=dtype)(x))
        if dropout:
            x = layers.BatchNormalization(momentum=0.5, dtype=dtype)(x)
        model = keras.Model(ids, layers.Dense(5, dtype=dtype, **kwargs)(x))
        rng = np.random.default_rng(0)
        weights = [
            rng.uniform(0.1, 1.0, w.shape) * rng.choice([-1, 1], w.shape[-1:])
            for w in model.get_weights()
        ]
        # Variances are positive.
        model.set_weights([w if w.ndim > 1 else np.abs(w) for w in weights])
        model.compile(keras.optimizers.SGD(RATE), jit_compile=jit)
    return model


def data(method, weighted=True, examples=EXAMPLES, batch_size=EXAMPLES):
    """Examples of a method; anchors have a positive and a hard negative."""
    rng = np.random.default_rng(1)
    shape = (examples, 3, LENGTH) if method == "multiple_negatives" else (examples, LENGTH)
    ids = rng.integers(1, VOCABULARY, shape).astype("int32")
    parts = ids, rng.integers(0, 3, examples).astype("int32"), sample_weights(examples)
    return tf.data.Dataset.from_tensor_slices(parts[: 2 + weighted]).batch(batch_size)


def fit(model, dataset, epochs=2):
    return model.fit(dataset, epochs=epochs, verbose=0, shuffle=False).history


def losses(method, embeddings, labels, temperature=None):
    """The loss of each example, of rows of embeddings, as the documentation defines it."""
    if method == "supervised":
        return ke.losses.supervised_contrastive(embeddings, labels, temperature=temperature or 0.1)
    texts = 3 if method == "multiple_negatives" else 2
    z = tf.reshape(embeddings, [-1, texts, embeddings.shape[-1]])
    hard = z[:, 2] if texts == 3 else None
    return ke.losses.multiple_negatives(z[:, 0], z[:, 1], hard, temperature=temperature or 0.05)


def rows(method, ids):
    """What the model is called with."""
    if method == "simcse":
        return tf.repeat(ids, 2, axis=0)
    return tf.reshape(ids, [-1, LENGTH])


def by_hand(model, method, dataset, size):
    """Steps of SGD: microbatches run forward one by one, under one tape. Returns the losses."""
    found = []
    for ids, labels, weights in dataset:
        with tf.GradientTape() as tape:
            starts = range(0, len(ids), size)
            parts = [model(rows(method, ids[i : i + size]), training=True) for i in starts]
            each = losses(method, tf.concat(parts, 0), labels)
            weights = tf.cast(weights, each.dtype)
            loss = tf.reduce_sum(each * weights) / tf.reduce_sum(weights)
        values = [flavors.of(model).value(v) for v in model.trainable_variables]
        for variable, gradient in zip(values, tape.gradient(loss, values), strict=True):
            variable.assign_sub(RATE * tf.convert_to_tensor(gradient))
        found.append(float(loss))
    return found


@rotated
def test_microbatches_are_the_loss_of_all_embeddings_with_the_same_dropout(library, method):
    model, dataset = encoder(library, dropout=0.4, dtype="float64"), data(method)
    flavor = flavors.of(model)
    state = [*flavor.state(model), *flavor.random_state(model)]
    before = [variable.numpy() for variable in state]
    wanted = by_hand(model, method, dataset.repeat(2), 4)
    after = model.get_weights()
    for variable, value in zip(state, before, strict=True):
        variable.assign(value)
    ke.accumulate(ke.contrastive(model, method), microbatch_size=4)
    history = [fit(model, dataset, epochs=1)["loss"][0] for _ in range(2)]
    np.testing.assert_allclose(history, wanted, rtol=1e-6)
    for found, expected in zip(model.get_weights(), after, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-12)
    # Each step draws other masks.
    assert wanted[0] != pytest.approx(by_hand(encoder(library), method, dataset, 11)[0], rel=1e-2)


@pytest.mark.parametrize(
    "library, method, jit, replicas, k",
    covering(LIBRARIES, METHODS, (False, True), (1, 2), (None, 1, 3, 5), strength=1),
)
def test_microbatches_and_replicas_are_one_batch(library, method, jit, replicas, k):
    """Negatives come from all microbatches of all replicas; the last batch is a smaller one."""
    dataset = data(method, batch_size=7)
    wanted = encoder(library)
    expected = by_hand(wanted, method, dataset.repeat(2), EXAMPLES)
    model = encoder(library, jit=jit, replicas=replicas)
    ke.contrastive(model, method)
    if k:
        ke.accumulate(model, k)
    history = fit(model, dataset)
    assert_same(model, wanted, atol=2e-6)
    # The mean over batches of 7 and 4 examples.
    means = np.average(np.reshape(expected, [2, 2]), axis=1, weights=[7, 4])
    np.testing.assert_allclose(history["loss"], means, rtol=1e-5)


@libraries
def test_a_replica_without_examples_adds_nothing(library):
    dataset = data("multiple_negatives", examples=3, batch_size=2)
    one, two = encoder(library), encoder(library, replicas=2)
    histories = [fit(ke.contrastive(model), dataset) for model in (one, two)]
    assert_same(one, two, atol=2e-6)
    assert_same_history(*histories)


@libraries
def test_weights_are_averaged_and_without_them_all_count_alike(library):
    model, wanted = encoder(library), encoder(library)
    dataset = data("simcse", weighted=False)
    ones = dataset.map(lambda x, y: (x, y, tf.ones_like(y, tf.float32)))
    expected = by_hand(wanted, "simcse", ones, EXAMPLES)
    history = fit(ke.contrastive(model, "simcse"), dataset, epochs=1)
    np.testing.assert_allclose(history["loss"], expected, rtol=1e-6)
    assert_same(model, wanted, atol=2e-6)


@libraries
def test_temperature_and_symmetry(library):
    dataset = data("simcse")
    ((ids, _, weights),) = dataset
    model = encoder(library)
    z = tf.reshape(model(rows("simcse", ids)), [EXAMPLES, 2, 5])
    each = ke.losses.multiple_negatives(z[:, 0], z[:, 1], temperature=0.5, symmetric=True)
    ke.contrastive(model, "simcse", temperature=0.5, symmetric=True)
    expected = np.average(each, weights=weights)
    np.testing.assert_allclose(fit(model, dataset, 1)["loss"][0], expected, rtol=1e-6)


@sampled()
@libraries
def test_regularisers_count_once(library):
    options = {"kernel_regularizer": "l2", "activity_regularizer": "l2"}
    models = [encoder(library, **options) for _ in range(2)]
    ke.accumulate(models[1], 3)
    # Activity regularisers are means over texts, here of microbatches of the same size.
    dataset = data("simcse", weighted=False, examples=12, batch_size=12)
    histories = [fit(ke.contrastive(model, "simcse"), dataset) for model in models]
    assert_same(*models, atol=2e-6)
    assert_same_history(*histories)
    plain = encoder(library)
    assert histories[0]["loss"][0] > fit(ke.contrastive(plain, "simcse"), dataset)["loss"][0]


@sampled()
@libraries
def test_sam_takes_both_gradients_of_the_whole_batch(library):
    models = [encoder(library) for _ in range(2)]
    ke.accumulate(models[1], 3)
    for model in models:
        fit(ke.sam(ke.contrastive(model), rho=0.1), data("multiple_negatives"))
    assert_same(*models, atol=2e-6)
    plain = encoder(library)
    fit(ke.contrastive(plain), data("multiple_negatives"))
    assert np.abs(plain.get_weights()[0] - models[0].get_weights()[0]).max() > 1e-3


def test_float16_gradients_are_scaled_and_unscaled():
    import keras

    models = [encoder("keras") for _ in range(2)]
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(RATE), initial_scale=256.0)
    models[1].compile(scaled, jit_compile=False)
    for model in models:
        fit(ke.accumulate(ke.contrastive(model), 3), data("multiple_negatives"))
    assert_same(*models, atol=2e-6)


@libraries
def test_removing_it_restores_the_models_own_step(library):
    model = encoder(library)
    own = model.train_step
    ke.contrastive(model)
    assert model.train_step is not own
    ke.contrastive(model, None)
    assert model.train_step == own


# --- errors ---------------------------------------------------------------------------------------


def test_arguments_are_checked():
    model = encoder("keras")
    with pytest.raises(ValueError, match=r"`method` must be one of .* Received: 'triplet'"):
        ke.contrastive(model, "triplet")
    with pytest.raises(ValueError, match=r"`temperature` must be a number > 0. Received: 0"):
        ke.contrastive(model, temperature=0)
    with pytest.raises(ValueError, match=r"treats all examples alike. Received: symmetric=True"):
        ke.contrastive(model, "supervised", symmetric=True)
    with pytest.raises(TypeError):
        ke.contrastive("model")


def refused(library, message, *, method="multiple_negatives", dataset=None, change=None, **kwargs):
    """Assert that `fit` raises before it changes a weight."""
    model = encoder(library, **kwargs)
    ke.contrastive(model, method)
    if change:
        change(model)
    before = model.get_weights()
    with pytest.raises(ValueError, match=message):
        fit(model, dataset or data(method))
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@sampled()
@libraries
def test_data_must_fit_the_method(library):
    single = data("simcse")
    refused(library, "two or more texts per example.*Received: features of shape", dataset=single)
    one = single.map(lambda x, y, w: (x[:, None], y, w))
    refused(library, r"Received: features of shape \(None, 1, 6\)", dataset=one)
    unlabelled = single.map(lambda x, y, w: (x,))
    refused(
        library,
        "one class per example. Received: labels None",
        method="supervised",
        dataset=unlabelled,
    )
    tokens = single.map(lambda x, y, w: (x, y, tf.ones_like(x, tf.float32)))
    refused(
        library, "one weight per example.*Received: sample_weight", method="simcse", dataset=tokens
    )


@libraries
def test_nothing_else_may_change_the_loss(library):
    def with_loss(model):
        model.compile("sgd", "mse", jit_compile=False)

    message = "compares the examples of one batch, and is the only loss. Received: "
    refused(library, message + "a loss in `compile`", change=with_loss)
    refused(
        library,
        message + r"ke.accumulate\(weight",
        change=lambda m: ke.accumulate(m, 2, weight="examples"),
    )
    refused(
        library,
        message + r"ke.accumulate\(added",
        change=lambda m: ke.accumulate(m, 2, added_losses="sum"),
    )
    refused(library, message + "another term", change=lambda m: ke.adversarial(m, "rdrop"))


@libraries
def test_outputs_must_be_embeddings(library):
    keras = keras_of(library)
    ids = keras.layers.Input((LENGTH,), dtype="int32")
    model = keras.Model(ids, keras.layers.Embedding(VOCABULARY, 4)(ids))
    model.compile("sgd", jit_compile=False)
    ke.contrastive(model, "simcse")
    with pytest.raises(
        ValueError, match=r"compares one embedding per text.*Received: a Functional"
    ):
        fit(model, data("simcse"))


@libraries
def test_the_model_must_be_built(library):
    keras = keras_of(library)
    model = keras.Sequential([keras.layers.Dense(3)])
    model.compile("sgd", jit_compile=False)
    ke.contrastive(model, "simcse")
    with pytest.raises(ValueError, match=r"must be built before.*Received: Sequential"):
        fit(model, data("simcse").map(lambda x, y, w: (tf.cast(x, tf.float32), y, w)))


@libraries
def test_random_numbers_that_cannot_be_repeated_are_refused(library):
    keras = keras_of(library)

    class Noise(keras.layers.Layer):
        def call(self, x):
            return x + tf.random.uniform(tf.shape(x))

    model = keras.Sequential([keras.layers.Input((4,)), Noise(), keras.layers.Dense(3)])
    model.compile("sgd", jit_compile=False)
    ke.accumulate(ke.contrastive(model, "simcse"), 2)
    with pytest.raises(ValueError, match=r"A model with a contrastive loss must draw its random"):
        model.fit(np.ones((6, 4), "float32"), verbose=0)
