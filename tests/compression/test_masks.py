"""Masks: which numbers they keep, checked one by one and against TF-MOT."""

import numpy as np
import pytest
import tensorflow as tf
from covering import sampled
from fit_helpers import compiled
from zoo import ZOO

import keras_efficient as ke
from keras_efficient.compression._masks import Mask, kth_largest, sparsity_of
from keras_efficient.compression._tf_mot import tf_mot
from keras_efficient.parametrize._parametrized_layer import transform_chains, transforms

MAGNITUDES = {
    "distinct": np.random.default_rng(0).permutation(1000).astype("float32") / 7,
    "equal": np.full(64, 0.5, "float32"),
    "zeros": np.r_[np.zeros(40), 1e-38, 1e-45, 3e38, np.inf, 1.0, 1.0].astype("float32"),
    "one": np.array([3.0], "float32"),
}


@sampled(2)
@pytest.mark.parametrize("compiled_by_xla", [False, True])
@pytest.mark.parametrize("name", MAGNITUDES)
def test_the_kth_largest_is_the_one_of_a_sort(name, compiled_by_xla):
    values = MAGNITUDES[name]
    find = tf.function(kth_largest, jit_compile=compiled_by_xla)
    for k in {1, 2, len(values) // 2, len(values) - 1, len(values)} - {0}:
        if k <= len(values):
            assert find(tf.constant(values), tf.constant(k)) == np.sort(values)[-k]


def layer_of(values):
    """A tf_keras model of one Dense layer with this kernel."""
    import tf_keras

    inputs, outputs = values.shape
    model = tf_keras.Sequential(
        [tf_keras.Input((inputs,)), tf_keras.layers.Dense(outputs, use_bias=False)]
    )
    model.layers[0].kernel.assign(values)
    return model


def distinct(inputs=8, outputs=12):
    rng = np.random.default_rng(1)
    values = (1 + rng.permutation(inputs * outputs)) * rng.choice([-1, 1], inputs * outputs)
    return values.reshape(inputs, outputs).astype("float32")


SCHEDULES = {
    "polynomial": lambda module: module.PolynomialDecay(0.1, 0.8, 2, 12, 3, 2),
    "constant": lambda module: module.ConstantSparsity(0.6, 3, 9, 2),
}


@sampled()
@pytest.mark.parametrize("name", SCHEDULES)
def test_masks_are_those_of_tf_mots_wrapper_at_every_step(name):
    """The learning rate is 0, so that both have the same weights at the same step."""
    import tf_keras

    schedule = SCHEDULES[name](tf_mot("sparsity.keras.pruning_schedule"))
    wrap = tf_mot("sparsity.keras.prune").prune_low_magnitude
    callbacks = tf_mot("sparsity.keras.pruning_callbacks")
    theirs = wrap(layer_of(distinct()), schedule)
    ours = layer_of(distinct())
    ke.prune(ours, schedule=schedule, layers="kernel")
    seen = {"ours": [], "theirs": []}
    masks = {
        "ours": transforms(ours, Mask)[0].mask,
        "theirs": theirs.layers[0].pruning_vars[0][1],
    }
    # At a rate of 0 no weight changes in training; only the masks do.
    x, y = np.ones((30, 8), "float32"), np.ones((30, 12), "float32")
    for who, model in (("ours", ours), ("theirs", theirs)):
        note = tf_keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda *_, who=who: seen[who].append(masks[who].numpy())
        )
        model.compile(tf_keras.optimizers.SGD(0.0), "mse")
        watched = [note] if who == "ours" else [callbacks.UpdatePruningStep(), note]
        model.fit(x, y, batch_size=2, shuffle=False, verbose=0, callbacks=watched)
    assert len({int(mask.sum()) for mask in seen["ours"]}) > (2 if name == "polynomial" else 1)
    for a, b in zip(seen["ours"], seen["theirs"], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("size", [(7, 9), (16, 16)])
@pytest.mark.parametrize("sparsity", [0.01, 0.5, 0.9, 0.999])
def test_the_number_of_zeros_is_exact_for_equal_numbers(size, sparsity):
    model = layer_of(np.ones(size, "float32"))
    ke.prune(model, sparsity, layers="kernel")
    kept = np.count_nonzero(model.layers[0].kernel.numpy())
    assert kept == max(1, round(size[0] * size[1] * (1 - sparsity)))


def test_tf_mot_keeps_too_many_of_equal_numbers():
    """The reason for our own tie-breaking, which can go once TF-MOT has it."""
    impl, schedules = (
        tf_mot(f"sparsity.keras.{name}") for name in ("pruning_impl", "pruning_schedule")
    )
    pruning = impl.Pruning(
        lambda: tf.constant(0), [], schedules.ConstantSparsity(0.5, 0), (1, 1), "AVG"
    )
    _, mask = pruning._update_mask(tf.ones((4, 4)))
    assert np.count_nonzero(mask) == 16


def test_the_smallest_are_pruned_and_kept_numbers_do_not_change():
    values = distinct()
    model = layer_of(values)
    ke.prune(model, 0.75, layers="kernel")
    pruned = model.layers[0].kernel.numpy()
    smallest = np.sort(np.abs(values), axis=None)[: round(0.75 * values.size)]
    np.testing.assert_array_equal(pruned == 0, np.isin(np.abs(values), smallest))
    np.testing.assert_array_equal(pruned[pruned != 0], values[pruned != 0])


def test_a_global_target_is_that_of_all_weights_together():
    specimen = ZOO[0]
    model = specimen.make()
    report = ke.prune(model, 0.6, scope="global")
    seen = {w.path: w for w in ke.summary(model).weights}
    all_of = [seen[path] for path in report.targets]
    sizes = [np.prod(w.shape) for w in all_of]
    zeros = [round(w.sparsity * size) for w, size in zip(all_of, sizes, strict=True)]
    assert sum(zeros) == sum(sizes) - round(sum(sizes) * 0.4)
    assert len({w.sparsity for w in all_of}) > 1
    # The largest pruned number of any weight is at most the smallest one that is kept.
    values = [np.abs(w.value.numpy()) for w in ke.parametrize.select(specimen.make(), caller="")]
    kept = [t.mask.numpy() > 0 for t in transforms(model, Mask)]
    pairs = list(zip(values, kept, strict=False))
    largest_pruned = max(value[~mask].max(initial=0) for value, mask in pairs)
    smallest_kept = min(value[mask].min(initial=9) for value, mask in pairs)
    assert largest_pruned <= smallest_kept


def test_the_mask_is_chosen_by_the_value_before_it():
    """With a low-rank delta, masks are chosen by the sum of weight and delta."""
    model = ZOO[0].make()
    dense = [layer for layer in model.layers if type(layer).__name__ == "Dense"][:1]
    ke.lora(model, rank=1, layers=dense)
    (chain,) = transform_chains(model)
    for variable in model.trainable_variables:
        if tuple(variable.shape) == (1, 8):
            variable.assign(3 * tf.ones((1, 8)))
    value, base = chain.value().numpy(), chain.weight.value.numpy()
    assert np.abs(value - base).max() > 0.1
    ke.prune(model, 0.5, layers=dense)
    mask = transforms(model, Mask)[0].mask.numpy()
    order = np.sort(np.abs(value), axis=None)
    np.testing.assert_array_equal(mask > 0, np.abs(value) >= order[value.size // 2])


def test_sparsity_of_counts_exact_zeros():
    assert sparsity_of(np.array([0, 1e-30, -0.0, 2])) == 0.5
    assert sparsity_of(np.zeros((0, 3))) == 1.0


def test_pruned_numbers_get_no_gradient():
    import tf_keras

    model = layer_of(distinct())
    ke.prune(model, 0.5, layers="kernel")
    compiled(
        "tf_keras",
        model,
        tf_keras.optimizers.SGD(0.1, momentum=0.9),
        loss="mse",
        metrics=[],
        weighted_metrics=[],
    )
    model.fit(np.ones((4, 8)), np.ones((4, 12)), verbose=0)
    moments = [v.numpy() for v in model.optimizer.variables if v.shape == (8, 12)]
    mask = transforms(model, Mask)[0].mask.numpy()
    assert moments and all((m[mask == 0] == 0).all() and (m[mask > 0] != 0).all() for m in moments)
