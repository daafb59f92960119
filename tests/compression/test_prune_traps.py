"""Traps 22 to 26: ours is right where TF-MOT is wrong or refuses, and TF-MOT still is."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from compression_helpers import libraries, ready
from covering import covering, sampled
from fit_helpers import fit
from test_prune import Each, assert_exact
from zoo import FEW_FIRST, ZOO, keras_of

import keras_efficient as ke
from keras_efficient.compression._masks import Mask
from keras_efficient.compression._tf_mot import tf_mot
from keras_efficient.parametrize._attach import updaters
from keras_efficient.parametrize._parametrized_layer import transforms


def wrapped(layer_or_model, *args, **kwargs):
    return tf_mot("sparsity.keras.prune").prune_low_magnitude(layer_or_model, *args, **kwargs)


def dense(library, units=64):
    keras = keras_of(library)
    return keras.Sequential([keras.layers.Input((8,)), keras.layers.Dense(units)])


def data(n=48):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 8)).astype("float32"), rng.normal(size=(n, 64)).astype("float32")


@functools.cache
def trained_upstream():
    """Masks and zeros after each of 12 steps of TF-MOT's wrapper: 80% at step 10, every 4."""
    import tf_keras

    schedule = tf_mot("sparsity.keras.pruning_schedule").PolynomialDecay(0.0, 0.8, 0, 10, 3, 4)
    model = wrapped(dense("tf_keras"), schedule)
    model.compile(tf_keras.optimizers.SGD(0.1), "mse")
    layer, seen = model.layers[0], []
    note = tf_keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda *_: seen.append(
            (
                int(np.count_nonzero(layer.pruning_vars[0][1].numpy() == 0)),
                int(np.count_nonzero(layer.layer.kernel.numpy() == 0)),
            )
        )
    )
    update = tf_mot("sparsity.keras.pruning_callbacks").UpdatePruningStep()
    model.fit(*data(), batch_size=4, shuffle=False, verbose=0, callbacks=[update, note])
    return seen


def zeros_of_ours(library):
    """The zeros after each of 12 steps of `ke.prune`: 80% at step 10, every 4."""
    model, each = dense(library), Each()
    model.compile(keras_of(library).optimizers.SGD(0.1), "mse", jit_compile=False)
    ke.prune(model, 0.8, end_step=10, frequency=4, layers="kernel")
    model.fit(*data(), batch_size=4, shuffle=False, verbose=0, callbacks=[each])
    return [next(iter(step.values()))[0] for step in each.zeros]


@sampled()
@libraries
def test_the_last_update_comes_and_weights_are_masked_after_each(library):
    counts = zeros_of_ours(library)
    # Zeros at updates 4 and 8, and at 10, which 4 does not hit.
    assert len(counts) == 12 and counts[2] == 0 < counts[3] < counts[7] < counts[9]
    assert counts[9:] == [512 - round(512 * 0.2)] * 3
    assert counts[3] == counts[6] and counts[7] == counts[8]


@pytest.mark.full
def test_traps_22_and_23_the_last_update_never_comes_and_no_weight_is_masked_upstream():
    """Update 10 never comes (trap 22), and no weight is zero at the end of a step (23)."""
    theirs = trained_upstream()
    assert theirs[-1][0] == theirs[8][0] == zeros_of_ours("tf_keras")[8]
    assert all(zeros == 0 for _, zeros in theirs)


@pytest.mark.full
def test_trap_22_upstream_never_prunes_at_step_0():
    """TF-MOT increments the counter before it checks it."""
    import tf_keras

    model = wrapped(
        dense("tf_keras"), tf_mot("sparsity.keras.pruning_schedule").ConstantSparsity(0.5, 0, 0)
    )
    model.compile(tf_keras.optimizers.SGD(0.1), "mse")
    update = tf_mot("sparsity.keras.pruning_callbacks").UpdatePruningStep()
    model.fit(*data(), batch_size=4, verbose=0, callbacks=[update])
    assert model.layers[0].pruning_vars[0][1].numpy().all()
    ours = dense("tf_keras")
    ke.prune(ours, 0.5, schedule="constant", begin_step=0, end_step=0, layers="kernel")
    assert_exact(ours)


@libraries
def test_trap_24_n_of_m_is_chosen_anew_at_every_move(library):
    model = dense(library)
    model.compile(keras_of(library).optimizers.SGD(0.0), "mse", jit_compile=False)
    ke.prune(model, pattern="2:4", end_step=4, frequency=2, layers="kernel")
    (mask,) = transforms(model, Mask)
    first = mask.mask.numpy()
    # The numbers that were pruned at update 0 become the largest.
    mask.weight.value.assign(np.where(first > 0, 1.0, 2.0))
    (updater,) = updaters(model)
    updater.update(tf.constant(2, tf.int64))
    # The mask is chosen by the variable, in which pruned numbers may have grown again.
    np.testing.assert_array_equal(mask.mask.numpy(), 1 - first)
    assert not (mask.mask.numpy() == first).all()


@pytest.mark.full
def test_trap_24_upstream_chooses_n_of_m_once_and_forgets_it():
    import tf_keras

    layer = wrapped(tf_keras.layers.Dense(4), sparsity_m_by_n=(2, 4))
    assert "m_by_n" not in str(layer.get_config())
    weight, mask, threshold = tf.Variable(tf.ones((4, 1))), tf.Variable(tf.ones((4, 1))), 0.0
    schedule = tf_mot("sparsity.keras.pruning_schedule").ConstantSparsity(0.5, 0, -1, 1)
    for step, asked in ((1, True), (2, False)):
        mask.assign(tf.ones((4, 1)))
        pruning = tf_mot("sparsity.keras.pruning_impl").Pruning(
            lambda step=step: tf.constant(step),
            [(weight, mask, tf.Variable(threshold))],
            schedule,
            (1, 1),
            "AVG",
            (2, 4),
        )
        pruning.conditional_mask_update()
        assert np.count_nonzero(mask.numpy()) == (2 if asked else 4)


@pytest.mark.full
@sampled()
@pytest.mark.parametrize(
    "specimen, pattern", covering([ZOO[0], ZOO[4]], ["2:4", "block:1x4"], strength=1)
)
def test_trap_25_rank_3_kernels_take_groups_and_blocks(specimen, pattern):
    model = ready(specimen)
    fixed = {"final_sparsity": 0.5} if pattern != "2:4" else {}
    ke.prune(model, pattern=pattern, layers="attention", **fixed)
    features, labels = specimen.batch(8)
    fit(model, features, labels, batch_size=4)
    assert {len(t.weight.shape) for t in transforms(model, Mask)} == {3}
    assert len(transforms(model, Mask)) == 4
    assert_exact(model)


@pytest.mark.full
@pytest.mark.parametrize("kwargs", [{"sparsity_m_by_n": (2, 4)}, {"block_size": (1, 4)}])
def test_trap_25_upstream_refuses_them(kwargs):
    import tf_keras

    inputs = tf_keras.Input((4, 8))
    with pytest.raises(AttributeError, match="_query_dense"):
        wrapped(tf_keras.layers.MultiHeadAttention(2, 4), **kwargs)(inputs, inputs)
    with pytest.raises(ValueError, match="supported layer"):
        wrapped(tf_keras.layers.EinsumDense("abc,cde->abde", (None, 2, 4)), **kwargs)


@pytest.mark.full
@pytest.mark.parametrize("specimen", FEW_FIRST, ids=repr)
def test_trap_26_upstream_refuses_what_we_prune(specimen):
    """test_prune.py shows that we prune it."""
    with pytest.raises(ValueError, match=r"can only prune|supported layer"):
        wrapped(specimen.make())
