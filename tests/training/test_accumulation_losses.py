"""k microbatches of unequal weight equal one batch, whatever the loss divides by.

The other split of each library runs under `make test-all`, so does the other half of products.
"""

import functools

import numpy as np
import pytest
import tensorflow as tf
from covering import covering, sampled
from fit_helpers import assert_same, assert_same_history, compiled, fit, moved, sample_weights
from zoo import CLASSES, LENGTH, VOCABULARY, keras_of

import keras_efficient as ke

LIBRARIES = ("keras", "tf_keras")
SPLITS = ({"microbatches": 3}, {"microbatch_size": 1})
both = pytest.mark.parametrize("library", LIBRARIES)
#: One split per library, and the other one under `make test-all`.
rotated = pytest.mark.parametrize("library, split", covering(LIBRARIES, SPLITS, strength=1))


@functools.cache
def adder(library):
    """A layer that adds a loss of its own."""

    class Adder(keras_of(library).layers.Layer):
        def call(self, x):
            self.add_loss(0.1 * tf.reduce_mean(x**2))
            return x

    return Adder


def tokens_to_logits(library, *, tokens, masked=False, regularised=False, adds=False):
    """A small model with one output per text or per token."""
    keras = keras_of(library)
    layers = keras.layers
    ids = layers.Input((None,), dtype="int32")
    x = layers.Embedding(VOCABULARY, 8, mask_zero=masked)(ids)
    x = x if tokens else layers.GlobalAveragePooling1D()(x)
    x = adder(library)()(x) if adds else x
    penalty = keras.regularizers.L2(0.05) if regularised else None
    model = keras.Model(ids, layers.Dense(CLASSES, kernel_regularizer=penalty)(x))
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.5, w.shape) for w in model.get_weights()])
    return model


def ragged_ids(n=10):
    """Texts of unequal length, one of them empty, padded with 0."""
    rng = np.random.default_rng(3)
    ids = rng.integers(1, VOCABULARY, (n, LENGTH)).astype("int32")
    lengths = np.array([6, 1, 2, 0, 5, 1, 1, 6, 4, 3])[:n]
    return np.where(np.arange(LENGTH) < lengths[:, None], ids, 0)


def labels(shape):
    return np.random.default_rng(4).integers(0, CLASSES, shape).astype("int32")


def check(library, make, x, y, weights=None, *, split, loss=None, rate=0.3, **kwargs):
    """Assert that three epochs with a split agree with plain training."""
    keras = keras_of(library)

    def run(split):
        model = make()
        before = model.get_weights()
        if loss is not None:
            kwargs["loss"] = loss(keras.losses)
        compiled(library, model, keras.optimizers.SGD(rate), **kwargs)
        if split:
            ke.accumulate(model, **split)
        history = fit(model, x, y, weights, batch_size=10, epochs=3)
        assert moved(before, model) > 1e-2
        return model, history

    plain, history = run(None)
    model, accumulated = run(split)
    assert_same(model, plain)
    assert_same_history(accumulated, history)


def crossentropy(reduction):
    return lambda losses: losses.SparseCategoricalCrossentropy(True, reduction=reduction)


@sampled()
@pytest.mark.parametrize(
    "loss, weighted, split",
    covering(
        [("keras", "mean_with_sample_weight"), ("keras", "sum"), ("tf_keras", "sum")],
        [True, False],
        SPLITS,
        strength=1,
    ),
)
def test_reductions(loss, weighted, split):
    library, reduction = loss

    def make():
        return tokens_to_logits(library, tokens=False)

    weights = sample_weights(10) if weighted else None
    x, y = ragged_ids(), labels(10)
    loss = crossentropy(reduction)
    check(library, make, x, y, weights, split=split, loss=loss, rate=0.05)


@pytest.mark.full
@sampled()
@rotated
def test_keras_masks_with_unequal_numbers_of_tokens(library, split):
    def make():
        return tokens_to_logits(library, tokens=True, masked=True, regularised=True)

    check(library, make, ragged_ids(), labels((10, LENGTH)), split=split)


@pytest.mark.full
@sampled()
@pytest.mark.parametrize(
    "reduction, split",
    covering(["sum_over_batch_size", "mean_with_sample_weight"], SPLITS, strength=1),
)
def test_keras3_masks_with_sample_weights(reduction, split):
    def make():
        return tokens_to_logits("keras", tokens=True, masked=True)

    weights = np.random.default_rng(5).uniform(0.1, 2.0, (10, LENGTH)).astype("float32")
    x, y = ragged_ids(), labels((10, LENGTH))
    check("keras", make, x, y, weights, split=split, loss=crossentropy(reduction))


@pytest.mark.full
def test_keras3_masks_with_one_weight_per_text():
    def make():
        return tokens_to_logits("keras", tokens=True, masked=True)

    x, y = ragged_ids(), labels((10, LENGTH))
    loss = crossentropy("mean_with_sample_weight")
    weights = sample_weights(10)[:, None]
    check("keras", make, x, y, weights, split=SPLITS[0], loss=loss, weighted_metrics=None)


@pytest.mark.full
@sampled()
@pytest.mark.parametrize(
    "library, reduction, split",
    covering(LIBRARIES, ["sum_over_batch_size", "sum"], SPLITS, strength=1),
)
def test_regularisers(library, reduction, split):
    def make():
        return tokens_to_logits(library, tokens=False, regularised=True)

    loss = crossentropy(reduction)
    check(library, make, ragged_ids(), labels(10), split=split, loss=loss, rate=0.05)


@sampled()
@rotated
def test_added_losses_without_metrics(library, split):
    def make():
        return tokens_to_logits(library, tokens=False, adds=True)

    settings = {"metrics": None, "weighted_metrics": None}
    check(library, make, ragged_ids(), labels(10), split=split, **settings)


@sampled()
@both
def test_a_model_with_no_loss_but_added_ones(library):
    def make():
        return tokens_to_logits(library, tokens=False, adds=True)

    def run(split):
        model = make()
        model.compile(keras_of(library).optimizers.SGD(5.0), None)
        if split:
            ke.accumulate(model, split)
        return model, fit(model, ragged_ids(), batch_size=10)

    (plain, history), (model, accumulated) = run(None), run(3)
    assert moved(make().get_weights(), plain) > 1e-2
    assert_same(model, plain)
    assert_same_history(accumulated, history)


def two_outputs(library):
    layers = keras_of(library).layers
    ids = layers.Input((None,), dtype="int32")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(VOCABULARY, 8)(ids))
    outputs = {name: layers.Dense(CLASSES, name=name)(x) for name in ("one", "two")}
    model = keras_of(library).Model(ids, outputs)
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.5, w.shape) for w in model.get_weights()])
    return model


@pytest.mark.full
@sampled()
@rotated
def test_several_losses_averaged_alike(library, split):
    check(
        library,
        lambda: two_outputs(library),
        ragged_ids(),
        {"one": labels(10), "two": labels(10)[::-1].copy()},
        loss=lambda losses: {n: losses.SparseCategoricalCrossentropy(True) for n in ("one", "two")},
        loss_weights={"one": 1.0, "two": 0.3},
        split=split,
        metrics=None,
        weighted_metrics=None,
    )


@sampled()
@both
def test_losses_averaged_differently_are_refused(library):
    model = ke.accumulate(two_outputs(library), 2)
    losses = keras_of(library).losses
    model.compile(
        "sgd",
        {
            "one": losses.SparseCategoricalCrossentropy(True),
            "two": losses.SparseCategoricalCrossentropy(True, reduction="sum"),
        },
    )
    with pytest.raises(ValueError, match="needs one way of averaging for all of them"):
        fit(model, ragged_ids(), {"one": labels(10), "two": labels(10)})


@pytest.mark.full
@sampled()
@rotated
def test_a_model_with_its_own_compute_loss(library, split):
    keras = keras_of(library)

    class Doubled(keras.Model):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, **kwargs):
            kwargs = {"sample_weight": sample_weight, **kwargs}
            return 2.0 * super().compute_loss(x=x, y=y, y_pred=y_pred, **kwargs)

    def make():
        inner = tokens_to_logits(library, tokens=False)
        return Doubled(inner.inputs, inner.outputs)

    check(library, make, ragged_ids(), labels(10), sample_weights(10), split=split)
