"""`add_loss` terms and activity regularisers are means over examples, whatever the loss divides by.

keras-hub/keras#22018.
"""

import functools

import numpy as np
import pytest
import tensorflow as tf
from covering import sampled
from fit_helpers import assert_same, assert_same_history, compiled, fit, mirrored, moved
from training.test_accumulation_losses import labels, ragged_ids
from zoo import CLASSES, VOCABULARY, keras_of

import keras_efficient as ke
from keras_efficient.training._gradient_accumulator import plus

LIBRARIES = ("keras", "tf_keras")
both = pytest.mark.parametrize("library", LIBRARIES)
N = 10
X = np.random.default_rng(0).normal(size=(N, 4)).astype("float32")
Y = (np.arange(N) % CLASSES).astype("int32")
WEIGHTS = np.array([3, 0, 0.2, 1, 0, 0, 0, 2, 0.5, 1], "float32")


@functools.cache
def adder(library, total):
    reduce = tf.reduce_sum if total else tf.reduce_mean

    class Adder(keras_of(library).layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.supports_masking = True

        def call(self, x):
            self.add_loss(0.3 * reduce(tf.reduce_sum(x**2, -1)))
            return x

    return Adder


def dense(library, *, adds=None, activity=False, loss=None, replicas=1, **settings):
    """A model of two layers with an added loss between them."""
    keras = keras_of(library)
    with mirrored(replicas).scope():
        layers = [keras.layers.Input((4,)), keras.layers.Dense(5, kernel_regularizer="l2")]
        if activity:
            regularizer = keras.regularizers.L2(0.1)
            layers.append(keras.layers.Dense(5, activity_regularizer=regularizer))
        if adds is not None:
            layers.append(adder(library, adds == "sum")())
        model = keras.Sequential([*layers, keras.layers.Dense(CLASSES)])
        rng = np.random.default_rng(1)
        model.set_weights([rng.normal(0, 0.5, w.shape) for w in model.get_weights()])
        if loss == "none":
            model.compile(keras.optimizers.SGD(0.01), None)
            return model
        crossentropy = keras.losses.SparseCategoricalCrossentropy
        settings = {"metrics": None, "weighted_metrics": None, **settings}
        compiled(
            library,
            model,
            keras.optimizers.SGD(0.03),
            loss=crossentropy(from_logits=True, reduction=loss or "sum_over_batch_size"),
            **settings,
        )
    return model


def check(make, weights=None, *, x=X, y=Y, replicas=1, k=4, history=True, **settings):
    """Assert that k microbatches on some replicas train as one batch of one device does."""

    def run(replicas, k):
        model = make(replicas=replicas)
        before = model.get_weights()
        if k:
            ke.accumulate(model, k, **settings)
        found = fit(model, x, y, weights, batch_size=N, epochs=2)
        assert moved(before, model) > 1e-2
        return model, found

    (plain, expected), (model, found) = run(1, None), run(replicas, k)
    assert_same(model, plain)
    if history:
        assert_same_history(found, expected)


@sampled()
@pytest.mark.parametrize(
    ("library", "replicas"), [("keras", 1), ("tf_keras", 1), ("keras", 2), ("tf_keras", 2)]
)
def test_22018_an_added_mean_beside_a_masked_loss(library, replicas):
    """One microbatch has no token that counts, but its examples do."""
    ids = ragged_ids()
    ids[3:6] = 0

    def make(replicas=1):
        layers = keras_of(library).layers
        with mirrored(replicas).scope():
            tokens = layers.Input((None,), dtype="int32")
            x = adder(library, False)()(layers.Embedding(VOCABULARY, 8, mask_zero=True)(tokens))
            model = keras_of(library).Model(tokens, layers.Dense(CLASSES)(x))
            rng = np.random.default_rng(1)
            model.set_weights([rng.normal(0, 0.5, w.shape) for w in model.get_weights()])
            settings = {"metrics": None, "weighted_metrics": None}
            compiled(library, model, keras_of(library).optimizers.SGD(0.1), **settings)
        return model

    check(make, x=ids, y=labels(ids.shape), replicas=replicas, history=replicas == 1)


def test_22018_an_added_mean_beside_a_weighted_mean():
    def make(**kwargs):
        return dense("keras", adds="mean", loss="mean_with_sample_weight", **kwargs)

    check(make, WEIGHTS)


@sampled()
@pytest.mark.parametrize(
    ("library", "replicas"), [("keras", 2), ("tf_keras", 1), ("keras", 1), ("tf_keras", 2)]
)
def test_22018_an_added_mean_beside_a_sum(library, replicas):
    def make(**kwargs):
        return dense(library, adds="mean", loss="sum", **kwargs)

    check(make, replicas=replicas, k=2, history=replicas == 1)


@sampled()
@both
def test_activity_regularisers_beside_a_sum(library):
    def make(**kwargs):
        return dense(library, activity=True, loss="sum", **kwargs)

    check(make, k=3)


@sampled()
@both
def test_activity_regularisers_beside_given_weights(library):
    """Given weights that are the examples in another unit change nothing."""

    def make(**kwargs):
        return dense(library, activity=True, **kwargs)

    check(make, k=3, weight=lambda x, y, sample_weight: 7 * tf.shape(x)[0])


@sampled(2)
@pytest.mark.parametrize(
    ("library", "loss", "replicas"),
    [
        ("keras", None, 1),
        ("tf_keras", "sum", 2),
        ("tf_keras", None, 1),
        ("keras", "sum", 1),
        ("keras", None, 2),
    ],
)
def test_added_sums_are_summed(library, loss, replicas):
    def make(**kwargs):
        return dense(library, adds="sum", loss=loss, **kwargs)

    history = replicas == 1
    check(make, replicas=replicas, k=2, added_losses="sum", history=history)


@sampled()
@both
def test_added_sums_without_another_loss(library):
    def make(**kwargs):
        return dense(library, adds="sum", loss="none", **kwargs)

    check(make, y=None, k=3, added_losses="sum")


def test_an_added_mean_in_an_update_of_several_batches():
    """A window of batches of 4, 4 and 2 examples, of unequal weight."""

    def make(**kwargs):
        return dense("keras", adds="mean", loss="mean_with_sample_weight", **kwargs)

    plain, model = make(), make()
    fit(plain, X, Y, WEIGHTS, batch_size=N)
    growth = ke.callbacks.BatchSizeSchedule({0: 3})
    fit(ke.accumulate(model, microbatch_size=3), X, Y, WEIGHTS, batch_size=4, callbacks=[growth])
    assert int(model.optimizer.iterations) == 1
    assert_same(model, plain)


@sampled()
@pytest.mark.parametrize("case", ["xla", "eager", "loss scale", "auto", "sam"])
def test_an_added_mean_beside_a_sum_with(case):
    keras = keras_of("keras")
    settings = {"xla": {"jit_compile": True}, "eager": {"run_eagerly": True}}.get(case, {})

    def run(k):
        model = dense("keras", adds="mean", loss="sum", **(settings if k else {}))
        if case == "loss scale":
            optimizer = keras.optimizers.SGD(0.03)
            model.optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=64.0)
        if case == "sam":
            ke.sam(model, 0.05)
        if k:
            ke.accumulate(model, **({"microbatch_size": "auto"} if case == "auto" else k))
        return model, fit(model, X, Y, batch_size=N, epochs=2)

    (plain, expected), (model, found) = run(None), run({"microbatches": 3})
    assert_same(model, plain)
    assert_same_history(found, expected)


def test_gradient_sums_of_added_losses_are_created_before_a_run_resumes():
    from keras_efficient.checkpoint._snapshot import _restore_sums, _step_state
    from keras_efficient.checkpoint._variables import create_variables
    from keras_efficient.training import _train_step_hook as train_step_hook

    run, resumed = (ke.accumulate(dense("keras", adds="mean", loss="sum"), 2) for _ in range(2))
    fit(run, X, Y, batch_size=N)
    specs = tf.TensorSpec([None, 4]), tf.TensorSpec([None], tf.int32)
    create_variables(resumed, specs)
    steps = [train_step_hook.of(model).training_step for model in (run, resumed)]
    assert len(steps[0].accumulator.sums) == 4 + 2
    assert len(steps[1].accumulator.sums) == 4
    _restore_sums(resumed, _step_state(run)["added"])
    shapes = [[v.shape for v in step.accumulator.sums] for step in steps]
    assert shapes[0] == shapes[1]


@sampled()
@both
def test_a_replica_without_examples_adds_nothing(library):
    """Ten texts, then one, whose batch leaves a replica without any."""

    def make(replicas):
        return dense(library, adds="mean", loss="sum", replicas=replicas)

    def run(replicas, k):
        model = make(replicas)
        if k:
            ke.accumulate(model, k)
        data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(9)
        model.fit(data, epochs=1, shuffle=False, verbose=0)
        return model

    assert_same(run(2, 2), run(1, None))


def test_the_noise_scale_sees_both_gradients_of_a_microbatch():
    """The squared norm of a microbatch's gradient, and that of one of the same examples alone."""
    from keras_efficient.training import _train_step_hook as train_step_hook

    class Norms:
        square_norms = True

        def __init__(self):
            self.seen = tf.Variable(0.0)

        def build(self, model):
            pass

        def __call__(self, gradients):
            self.seen.assign(tf.cast(gradients.totals["square_norms"], tf.float32))

    found = []
    for loss, weights in (("mean_with_sample_weight", np.full(N, 2.0, "float32")), (None, None)):
        model, norms = ke.accumulate(dense("keras", adds="mean", loss=loss), 2), Norms()
        hook = train_step_hook.attach(model)
        hook.join(norms, hook.gradient_observers)
        fit(model, X, Y, weights, batch_size=N)
        found.append(float(norms.seen))
    assert found[0] > 0
    np.testing.assert_allclose(*found, rtol=1e-5)


def test_gradients_are_added_whether_sparse_or_not():
    dense = tf.constant([[1.0], [2.0], [3.0]])
    sparse = tf.IndexedSlices(tf.constant([[1.0], [4.0]]), [2, 0], dense_shape=[3, 1])
    expected = np.array([[5.0], [2.0], [4.0]])
    np.testing.assert_array_equal(plus(dense, sparse), expected)
    np.testing.assert_array_equal(plus(sparse, dense), expected)
    both = plus(sparse, sparse)
    assert both.indices.shape == 2
    np.testing.assert_array_equal(tf.convert_to_tensor(both), [[8.0], [0.0], [2.0]])
    assert plus(None, dense) is dense
    assert plus(sparse, None) is sparse


def test_another_word_for_added_losses_is_refused():
    model = dense("keras")
    with pytest.raises(ValueError, match=r"'mean' over the examples or a 'sum'.*'average'"):
        ke.accumulate(model, 2, added_losses="average")
