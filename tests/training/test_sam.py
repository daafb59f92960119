"""SAM and FGM: two passes over a batch, one update, and exactly restored weights."""

import re

import numpy as np
import pytest
import tensorflow as tf
from covering import contract, covering, sampled
from fit_helpers import (
    SMALL,
    assert_same,
    assert_same_history,
    batches,
    compiled,
    mirrored,
    moved,
    sample_weights,
)
from zoo import ZOO, keras_of

import keras_efficient as ke
from keras_efficient import flavor as flavors
from keras_efficient.training._adversarial import WORD_EMBEDDINGS

BY_NAME = {specimen.name: specimen for specimen in ZOO}
libraries = pytest.mark.parametrize("library", list(SMALL))
#: Path of the word embedding in each model of the zoo.
WORDS = {
    "keras-functional": "embedding/embeddings",
    "keras-sequential": "embedding/embeddings",
    "keras-subclassed": "embedding/embeddings",
    "kerashub-bert": "token_embedding/embeddings",
    "tf_keras-functional": "embedding/embeddings",
    "tf_keras-subclassed": "embedding/embeddings",
    "hugging-face-bert": "bert/embeddings/word_embeddings/weight",
    "model-garden-bert": "word_embeddings/embeddings",
}
SWITCHES = {
    "sam": lambda model: ke.sam(model, 0.5),
    "fgm": lambda model: ke.adversarial(model, "fgm", epsilon=0.5),
}
#: One method per library, in two ways; the products run under `make test-all`.
pairs = pytest.mark.parametrize(
    "library, method, replicas", covering(SMALL, SWITCHES, (2, 1), strength=1)
)
rotated = pytest.mark.parametrize("library, method", covering(SMALL, SWITCHES, strength=1))
crosswise = pytest.mark.parametrize(
    "library, method, replicas", covering(SMALL, ["fgm", "sam"], (1, 2), strength=1)
)


def made(library, replicas=1, rate=0.5, scale=None):
    keras = keras_of(library)
    with mirrored(replicas).scope():
        model = SMALL[library].make()
        optimizer = keras.optimizers.SGD(rate)
        if scale:
            optimizer = keras.mixed_precision.LossScaleOptimizer(optimizer, initial_scale=scale)
        return compiled(library, model, optimizer)


def train(model, x, y, weights=None, batch_size=6, epochs=1):
    data = batches(x, y, weights, batch_size=batch_size)
    return model.fit(data, epochs=epochs, shuffle=False, verbose=0).history


def gradients(model, x, y, weights):
    """Return the gradients of the mean weighted loss at the present weights."""
    with tf.GradientTape() as tape:
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, model(x, training=True))
        loss = tf.reduce_mean(losses * weights)
    found = tape.gradient(loss, values(model))
    return [tf.convert_to_tensor(gradient).numpy() for gradient in found]


def values(model):
    return list(map(flavors.of(model).value, model.trainable_variables))


def length(arrays):
    return np.sqrt(sum(np.sum(np.square(a.astype("float64"))) for a in arrays))


def by_hand(model, x, y, weights, *, method, radius, rate):
    """Make one step by the equation."""
    before = model.get_weights()
    first = gradients(model, x, y, weights)
    # The table of embeddings comes first.
    chosen = range(len(first)) if method == "sam" else [0]
    size = length([first[i] for i in chosen])
    there = [w + radius * g / size if i in chosen else w
             for i, (w, g) in enumerate(zip(before, first, strict=True))]  # fmt: skip
    model.set_weights(there)
    second = gradients(model, x, y, weights)
    total = second if method == "sam" else [a + b for a, b in zip(first, second, strict=True)]
    model.set_weights([w - rate * g for w, g in zip(before, total, strict=True)])


@sampled()
@pytest.mark.parametrize("library, method", covering(SMALL, SWITCHES))
def test_a_step_is_the_equation(library, method):
    x, y = SMALL[library].batch(12)
    weights = sample_weights(12)
    model = SWITCHES[method](made(library))
    train(model, x, y, weights)
    expected, plain = made(library), made(library)
    for part in (slice(0, 6), slice(6, 12)):
        by_hand(expected, x[part], y[part], weights[part], method=method, radius=0.5, rate=0.5)
    assert_same(model, expected, 1e-6)
    train(plain, x, y, weights)
    assert moved(plain.get_weights(), model) > 1e-3


@contract("microbatches", "replicas")
@sampled()
@pairs
def test_microbatches_and_replicas_make_the_same_step(library, method, replicas):
    """The length of the move is that of the whole batch's gradient; 7 examples do not divide."""
    x, y = SMALL[library].batch(14)
    one, split = made(library), made(library, replicas)
    for model, k in ((one, 1), (split, 3)):
        SWITCHES[method](ke.accumulate(model, k))
    history = train(one, x, y, sample_weights(14), batch_size=7)
    assert_same_history(train(split, x, y, sample_weights(14), batch_size=7), history)
    assert_same(one, split, 1e-6)


@sampled()
@crosswise
def test_weights_come_back_to_the_last_bit(library, method, replicas):
    """What was added is not subtracted again: w + e - e is another number."""
    model = made(library, replicas, rate=0.0)
    before = model.get_weights()
    if method == "sam":
        ke.sam(model, 100.0)
    else:
        ke.adversarial(model, epsilon=100.0)
    train(ke.accumulate(model, 2), *SMALL[library].batch(12))
    assert moved(before, model) == 0
    assert model.optimizer.iterations.numpy() == 2


@sampled()
@rotated
def test_metrics_are_those_of_the_first_pass(library, method):
    x, y = SMALL[library].batch(12)
    plain, twice = made(library), SWITCHES[method](made(library))
    histories = [train(m, x, y, sample_weights(12), batch_size=12) for m in (plain, twice)]
    assert_same_history(*histories, atol=1e-6)


@sampled()
@crosswise
def test_after_an_overflow_the_weights_are_back_and_nothing_is_applied(library, method, replicas):
    keras = keras_of(library)
    with mirrored(replicas).scope():
        model = keras.Sequential(
            [keras.layers.Input((2,)), keras.layers.Dense(1, name="embedding")]
        )
        optimizer = keras.mixed_precision.LossScaleOptimizer(keras.optimizers.SGD(0.1, 0.9))
        model.compile(optimizer, "mse")
    pattern = {"variables": "embedding"} if method == "fgm" else {}
    ke.accumulate(model, 2)
    ke.sam(model) if method == "sam" else ke.adversarial(model, **pattern)
    x = np.ones((4, 2), "float32")
    train(model, x, x[:, :1], batch_size=4)
    before, scaling = model.get_weights(), flavors.of(model).loss_scale(model)
    scale = float(scaling.scale.numpy())
    bad = x.copy()
    bad[-1] = np.inf
    train(model, bad, x[:, :1], batch_size=4)
    assert moved(before, model) == 0
    assert scaling.inner.iterations.numpy() == 1
    assert float(scaling.scale.numpy()) == scale / 2
    train(model, x, x[:, :1], batch_size=4)
    assert np.isfinite(model.get_weights()[0]).all()
    assert moved(before, model) > 0


@sampled()
@rotated
def test_the_loss_scale_changes_no_step(library, method):
    x, y = SMALL[library].batch(12)
    plain, scaled = SWITCHES[method](made(library)), SWITCHES[method](made(library, scale=1024.0))
    train(plain, x, y)
    train(scaled, x, y)
    assert_same(plain, scaled, 1e-6)


@sampled()
@rotated
def test_none_takes_it_away(library, method):
    x, y = SMALL[library].batch(12)
    plain, model = made(library), SWITCHES[method](made(library))
    ke.sam(model, None) if method == "sam" else ke.adversarial(model, None)
    assert "train_step" not in vars(model)
    train(plain, x, y)
    train(model, x, y)
    assert_same(plain, model, 0)


def test_none_leaves_the_other_one_alone():
    for method, take_away in (("sam", ke.adversarial), ("fgm", ke.sam)):
        model = SWITCHES[method](made("keras"))
        take_away(model, None)
        assert "train_step" in vars(model)
        with pytest.raises(ValueError, match=f"A step has one second pass. .* with '{method}'"):
            SWITCHES["sam" if method == "fgm" else "fgm"](model)


def test_numbers_must_be_positive():
    model = made("keras")
    for rho in (0, -0.1, "large", float("nan")):
        with pytest.raises(ValueError, match=rf"`rho` must be a number > 0\. Received: {rho!r}"):
            ke.sam(model, rho)
    for name in ("epsilon", "alpha"):
        with pytest.raises(ValueError, match=rf"`{name}` must be a number > 0\. Received: 0"):
            ke.adversarial(model, **{name: 0})


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match=r"`method` must be one of .* Received: 'pgd'"):
        ke.adversarial(made("keras"), "pgd")


def test_anything_but_a_keras_model_is_refused():
    with pytest.raises(TypeError, match="Expected a Keras object"):
        ke.sam(tf.Module())


@sampled()
@libraries
def test_a_pattern_that_matches_nothing_is_refused(library):
    model = ke.adversarial(made(library), variables="^nothing$")
    with pytest.raises(
        ValueError, match=r"(?s)`variables` must match .*'\^nothing\$' for .*kernel"
    ):
        train(model, *SMALL[library].batch(6))


@rotated
def test_an_update_of_several_batches_is_refused(library, method):
    model = SWITCHES[method](made(library))
    growth = ke.callbacks.BatchSizeSchedule({0: 2})
    with pytest.raises(ValueError, match=r"look at them again\. Received: BatchSizeSchedule"):
        data = batches(*SMALL[library].batch(6), batch_size=3)
        model.fit(data, callbacks=[growth], shuffle=False, verbose=0)


@sampled()
@pytest.mark.parametrize("specimen", ZOO, ids=repr)
def test_fgm_finds_the_table_of_words_and_no_other(specimen):
    model = specimen.make()
    paths = list(map(flavors.of(model).path, model.trainable_variables))
    (found,) = [path for path in paths if re.search(WORD_EMBEDDINGS, path)]
    # Keras numbers its layers: embedding_7.
    assert re.sub(r"_\d+", "", found).endswith(WORDS[specimen.name])


@pytest.mark.full
def test_hugging_face_makes_the_same_step_in_microbatches():
    """With its own `train_step`."""
    specimen = BY_NAME["hugging-face-bert"]

    def run(k):
        model = specimen.make()
        model.compile(keras_of("tf_keras").optimizers.SGD(0.5))
        before = model.get_weights()
        SWITCHES["fgm"](ke.accumulate(model, k))
        train(model, *specimen.batch(6))
        assert moved(before, model) > 1e-2
        return model

    assert_same(run(1), run(3))
