"""Elastic weight consolidation: the Fisher information, the penalty, and what it keeps."""

import numpy as np
import pytest
import tensorflow as tf
from covering import covering
from fit_helpers import SMALL, assert_same, batches, compiled, fit, mirrored
from zoo import CLASSES, LENGTH, VOCABULARY, keras_of

import keras_efficient as ke
from keras_efficient import flavor as flavors

libraries = pytest.mark.parametrize("library", list(SMALL))


def data(seed=0, number=12):
    rng = np.random.default_rng(seed)
    x = rng.integers(1, VOCABULARY, (number, LENGTH)).astype("int32")
    return x, rng.integers(0, CLASSES, number).astype("int32")


def values(model):
    flavor = flavors.of(model)
    return [flavor.value(variable) for variable in model.trainable_variables]


def fisher_by_hand(model, x, y):
    variables = values(model)
    totals = [np.zeros(v.shape) for v in variables]
    for row, label in zip(x, y, strict=True):
        with tf.GradientTape() as tape:
            logits = model(row[None])
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits([label], logits)
        for total, gradient in zip(totals, tape.gradient(loss, variables), strict=True):
            total += tf.convert_to_tensor(gradient).numpy() ** 2
    return [total / len(x) for total in totals]


@pytest.mark.parametrize(
    "library, form", covering(SMALL, ("plain", "microbatches", "replicas", "sum"), strength=2)
)
def test_steps_are_those_of_the_written_loss(library, form):
    keras = keras_of(library)
    old, (x, y) = data(), data(1)
    model = SMALL[library].make()
    fisher = fisher_by_hand(model, *old)
    anchors = [v.numpy() for v in values(model)]
    variables, rate, strength = values(model), 0.5, 30.0
    # The penalty is zero in the first step.
    for _ in range(2):
        with tf.GradientTape() as tape:
            logits = model(x)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits))
            for variable, anchor, f in zip(variables, anchors, fisher, strict=True):
                f, gap = tf.cast(f, tf.float32), tf.convert_to_tensor(variable) - anchor
                loss += strength / 2 * tf.reduce_sum(f * gap**2)
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            variable.assign_sub(rate * tf.convert_to_tensor(gradient))

    with mirrored(2 if form == "replicas" else 1).scope():
        found = SMALL[library].make()
        kind = {"reduction": "sum"} if form == "sum" else {}
        cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True, **kind)
        divided = rate / len(x) if form == "sum" else rate
        compiled(library, found, keras.optimizers.SGD(divided), loss=cross_entropy)
        ke.ewc(found, batches(*old, batch_size=5), strength=strength)
    if form == "microbatches":
        ke.accumulate(found, microbatches=3)
    fit(found, x, y, epochs=2)
    assert_same(found, model)


@libraries
def test_the_earlier_task_is_kept(library):
    old, new = data(number=24), data(1, number=24)

    def run(strength):
        model = compiled(library, SMALL[library].make(), keras_of(library).optimizers.Adam(0.05))
        fit(model, *old, epochs=30)
        before = model.evaluate(*old, verbose=0, return_dict=True)["loss"]
        if strength:
            ke.ewc(model, batches(*old, batch_size=8), strength=strength)
        fit(model, *new, epochs=30)
        ke.ewc(model, None)
        after = model.evaluate(*old, verbose=0, return_dict=True)["loss"]
        return after - before, model.evaluate(*new, verbose=0, return_dict=True)["loss"]

    (lost, learned), (kept, slower) = run(0), run(1e4)
    assert kept < 0.5 * lost and learned < slower


def test_a_number_of_examples_and_frozen_weights():
    x, y = data()
    model = compiled("keras", SMALL["keras"].make())
    model.layers[0].trainable = False
    ke.ewc(model, batches(x, y, batch_size=5), examples=7)
    from keras_efficient.training import _train_step_hook as train_step_hook

    term = train_step_hook.attach(model).loss_terms["ewc"]
    expected = fisher_by_hand(model, x[:7], y[:7])
    assert len(term.parts) == len(expected) == 2
    for (_, _, found), wanted in zip(term.parts, expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_arguments_that_cannot_be_used():
    model, old = SMALL["keras"].make(), batches(*data(), batch_size=4)
    with pytest.raises(ValueError, match="needs the loss of the earlier task"):
        ke.ewc(model, old)
    compiled("keras", model)
    for settings, message in (
        ({"strength": 0}, "`strength` must be a finite number > 0"),
        ({"examples": 0}, "`examples` must be an int > 0"),
    ):
        with pytest.raises(ValueError, match=message):
            ke.ewc(model, old, **settings)
    with pytest.raises(ValueError, match="must be labelled batches"):
        ke.ewc(model, old.map(lambda x, y: x))
    with pytest.raises(ValueError, match="must have labelled examples"):
        ke.ewc(model, [])
    weights = model.get_weights()
    model.set_weights([np.full_like(w, np.nan) for w in weights])
    with pytest.raises(ValueError, match="loss of each example must be finite"):
        ke.ewc(model, old)
    model.trainable = False
    with pytest.raises(ValueError, match="must be weights to train"):
        ke.ewc(model, old)
