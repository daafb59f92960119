"""`ke.prune`: exact sparsity after every update, in files, after merging and in exports."""

import os
import re

import numpy as np
import pytest
import tensorflow as tf
from compression_helpers import BOTH, FUNCTIONAL, functional, libraries, mostly, quick, ready
from covering import contract, covering, sampled
from fit_helpers import assert_same, fit, mirrored, sample_weights
from in_process_export import in_process as in_process
from zoo import ZOO, full_except, keras_of

import keras_efficient as ke
from keras_efficient.compression._masks import Mask
from keras_efficient.parametrize._attach import updaters
from keras_efficient.parametrize._parametrized_layer import transforms


def prune(model, sparsity=0.6, **kwargs):
    """`ke.prune`, including the head of a model that has no other kernel."""
    alone = len(ke.parametrize.select(model, caller="")) == 1
    return ke.prune(model, sparsity, **{"layers": "kernel"} if alone else {}, **kwargs)


def zeros(model):
    """`{path: (zeros in the weight's variable, expected zeros)}` of the pruned weights."""
    return {
        t.weight.path: (
            int(np.count_nonzero(t.weight.value.numpy() == 0)),
            t.weight.size - round(t.weight.size * (1 - t.target)),
        )
        for t in transforms(model, Mask)
    }


def assert_exact(model):
    found = zeros(model)
    assert found and all(now == wanted for now, wanted in found.values()), found


class Each(ke.flavor.Callback):
    """Record the zeros of each pruned weight after every update."""

    def __init__(self):
        self.zeros = []

    def on_train_batch_end(self, batch, logs=None):
        self.zeros.append(zeros(self.model))


def step_of(model):
    return int(updaters(model)[0].step.numpy())


@sampled()
@pytest.mark.parametrize(
    "specimen", full_except("keras-functional", "kerashub-bert", "tf_keras-subclassed")
)
def test_sparsity_is_the_target_after_every_update_from_the_end_step_on(specimen, tmp_path):
    model, each = ready(specimen), Each()
    plain_class = type(model.layers[-1])
    report = prune(model, end_step=3, frequency=2)
    features, labels = specimen.batch(24)
    saver = keras_of(specimen.library).callbacks.ModelCheckpoint(
        str(tmp_path / "{batch}.weights.h5"), save_weights_only=True, save_freq=4
    )
    fit(model, features, labels, batch_size=4, callbacks=[each, saver])
    growth = [sum(now for now, _ in step.values()) for step in each.zeros]
    assert growth == sorted(growth) and growth[0] < growth[2]
    for step in each.zeros[2:]:
        assert all(now == wanted for now, wanted in step.values()), step
    assert set(report.targets) == set(each.zeros[0])
    assert step_of(model) == 6
    # A file saved within `fit` has the zeros too, and a plain model reads it.
    (file,) = os.listdir(tmp_path)
    other = specimen.make()
    other.load_weights(str(tmp_path / file))
    pairs = zip(*(ke.parametrize.select(m, caller="") for m in (model, other)), strict=True)
    same = {mine.path: theirs for mine, theirs in pairs}
    for path, (_, wanted) in each.zeros[3].items():
        assert np.count_nonzero(same[path].value.numpy() == 0) == wanted
    # Merged, it is a plain model with the same zeros.
    before = {t.weight.path: t.weight for t in transforms(model, Mask)}
    outputs = ke.flavor.of(model).call(model, features, training=False)
    ke.merge(model)
    for path, weight in before.items():
        assert np.count_nonzero(weight.value.numpy() == 0) == each.zeros[-1][path][1]
    again = ke.flavor.of(model).call(model, features, training=False)
    tf.nest.map_structure(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6) if hasattr(a, "shape") else None,
        tf.nest.flatten(outputs),
        tf.nest.flatten(again),
    )
    assert type(model.layers[-1]) is plain_class


@contract("export")
@sampled()
@pytest.mark.usefixtures("in_process")
@functional
def test_an_export_has_the_zeros(specimen, tmp_path):
    model = ready(specimen)
    prune(model, 0.75)
    features, labels = specimen.batch(8)
    fit(model, features, labels, batch_size=4)
    ke.export(model, str(tmp_path / "out"), sample=features)
    (index,) = (tmp_path / "out").rglob("variables.index")
    reader = tf.train.load_checkpoint(str(index).removesuffix(".index"))
    found = [
        np.count_nonzero(reader.get_tensor(name) == 0)
        for name, shape in reader.get_variable_to_shape_map().items()
        if tuple(shape) in {(8, 8), (8, 2, 4), (2, 4, 8)}
    ]
    assert found == [48] * 5
    # It holds no masks.
    assert not [n for n in reader.get_variable_to_shape_map() if "mask" in n]
    assert_exact(model)


@contract("microbatches")
@sampled()
@pytest.mark.parametrize("library, scope", covering(BOTH, ["layer", "global"], strength=1))
def test_k_microbatches_are_one_batch(library, scope):
    specimen = BOTH[library]
    features, labels = specimen.batch(12)
    models = []
    for microbatches in (1, 3):
        model = ready(specimen)
        prune(model, end_step=4, frequency=1, scope=scope)
        ke.accumulate(model, microbatches=microbatches)
        fit(model, features, labels, sample_weights(12), batch_size=4, epochs=2)
        models.append(model)
    assert step_of(models[1]) == 6
    assert_same(*models)


@contract("replicas")
@sampled()
@libraries
def test_two_replicas_are_one(library):
    specimen = BOTH[library]
    features, labels = specimen.batch(16)
    models = []
    for replicas in (1, 2):
        with mirrored(replicas).scope():
            model = ready(specimen)
        prune(model, end_step=3, frequency=1)
        fit(model, features, labels, batch_size=4)
        models.append(model)
    assert_same(*models)
    assert_exact(models[1])
    # The masks of both replicas are equal.
    for t in transforms(models[1], Mask):
        parts = mirrored(2).experimental_local_results(t.mask)
        np.testing.assert_array_equal(*(part.numpy() for part in parts))


@contract("xla")
@sampled()
@libraries
def test_xla_prunes_the_same(library):
    specimen = BOTH[library]
    features, labels = specimen.batch(12)
    models = []
    for jit in (False, True):
        model = ready(specimen, jit_compile=jit)
        prune(model, end_step=3, frequency=1)
        fit(model, features, labels, batch_size=4)
        models.append(model)
    assert_same(*models)
    assert_exact(models[1])


@contract("mixed_precision")
@sampled()
@libraries
def test_in_bfloat16_the_zeros_are_exact(library):
    ke.mixed_precision("mixed_bfloat16", library=library)
    model = ready(BOTH[library])
    prune(model, end_step=2)
    features, labels = BOTH[library].batch(12)
    fit(model, features, labels, batch_size=4)
    assert_exact(model)


@sampled()
@libraries
def test_an_update_that_overflows_does_not_count(library):
    """The first update overflows: the counter and the masks stay as they are."""
    keras = keras_of(library)
    ke.mixed_precision("mixed_float16", library=library)
    model = BOTH[library].make()
    scaled = keras.mixed_precision.LossScaleOptimizer
    optimizer = scaled(keras.optimizers.SGD(0.01), initial_scale=2.0**40)
    quick(library, model, optimizer)
    prune(model, end_step=100, frequency=1)
    features, labels = BOTH[library].batch(4)
    fit(model, features, labels, batch_size=4)
    assert step_of(model) == 0 and all(now == 0 for now, _ in zeros(model).values())
    fit(model, features, labels, batch_size=4, epochs=40)
    assert 0 < step_of(model) < 40


@mostly("tf_keras")
def test_before_compile_and_after_are_the_same_and_fits_go_on(library):
    specimen = BOTH[library]
    features, labels = specimen.batch(12)
    keras = keras_of(library)
    models = []
    for early in (True, False):
        model = specimen.make()
        if early:
            prune(model, end_step=5, frequency=1)
        quick(library, model, keras.optimizers.Adam(0.01))
        if not early:
            prune(model, end_step=5, frequency=1)
        fit(model, features, labels, batch_size=4)
        assert step_of(model) == 3 and all(now < wanted for now, wanted in zeros(model).values())
        fit(model, features, labels, batch_size=4)
        assert step_of(model) == 6
        assert_exact(model)
        models.append(model)
    assert_same(*models)


@pytest.mark.full
@mostly("tf_keras")
def test_a_trained_model_is_pruned_between_two_fits(library):
    model = ready(BOTH[library], optimizer=keras_of(library).optimizers.Adam(0.01))
    features, labels = BOTH[library].batch(12)
    fit(model, features, labels, batch_size=4)
    prune(model, 0.5)
    assert_exact(model)
    fit(model, features, labels, batch_size=4)
    assert_exact(model)
    # Pruning to a higher sparsity starts from the zeros that were merged.
    ke.merge(model)
    prune(model, 0.9)
    fit(model, features, labels, batch_size=4)
    assert_exact(model)


@mostly("keras")
def test_two_prunes_of_different_weights_have_counters_of_their_own(library):
    model = ready(BOTH[library])
    ke.prune(model, 0.5, layers="first", end_step=2)
    features, labels = BOTH[library].batch(8)
    fit(model, features, labels, batch_size=4)
    ke.prune(model, 0.75, layers="second", end_step=3)
    fit(model, features, labels, batch_size=4, epochs=2)
    assert sorted(int(k.step.numpy()) for k in updaters(model)) == [4, 6]
    assert_exact(model)


@mostly("keras")
def test_with_low_rank_deltas_the_sum_has_the_zeros(library):
    model = ready(BOTH[library])
    ke.lora(model, rank=2)
    prune(model, 0.5, end_step=2)
    features, labels = BOTH[library].batch(12)
    fit(model, features, labels, batch_size=4)
    both = [w for w in ke.summary(model).weights if len(w.transforms) == 2]
    assert len(both) == 2 and all(w.sparsity == 0.5 for w in both)
    ke.merge(model)
    weights = ke.parametrize.select(model, caller="")[:-1]
    assert all(np.count_nonzero(w.value.numpy() == 0) * 2 == w.size for w in weights)


@libraries
def test_a_weight_that_two_layers_share_has_one_mask(library):
    keras = keras_of(library)
    x = keras.layers.Input((8,))
    one, two = keras.layers.Dense(8), keras.layers.Dense(8)
    model = keras.Model(x, keras.layers.Dense(3)(two(one(x))))
    # Both layers track the same variable.
    two.kernel.assign(one.kernel)
    if library == "keras":
        object.__setattr__(two, "_kernel", one._kernel)
    else:
        two.kernel = one.kernel
    shared = [w for w in ke.parametrize.select(model, caller="") if len(w.owners) == 2]
    assert len(shared) == 1
    ke.prune(model, 0.5, layers=[one, two])
    pruned = [t for t in transforms(model, Mask) if len(t.weight.owners) == 2]
    assert len(pruned) == 1
    for layer in (one, two):
        assert np.count_nonzero(np.asarray(layer.kernel)) == 32


@mostly("tf_keras")
def test_zeros_stay_zero_when_pruned_again(library):
    model = ready(BOTH[library])
    prune(model, 0.5)
    before = {t.weight.path: t.weight.value.numpy() != 0 for t in transforms(model, Mask)}
    ke.merge(model)
    prune(model, 0.75, begin_step=0, end_step=6, frequency=1)
    features, labels = BOTH[library].batch(20)
    fit(model, features, labels, batch_size=4)
    for transform in transforms(model, Mask):
        now = transform.weight.value.numpy() != 0
        assert np.count_nonzero(now) < np.count_nonzero(before[transform.weight.path])
        assert not (now & ~before[transform.weight.path]).any()


CONTINUED = {
    "layer": {"final_sparsity": 0.8},
    "global": {"final_sparsity": 0.8, "scope": "global"},
    "constant": {"final_sparsity": 0.8, "schedule": "constant"},
    "N:M": {"pattern": "2:4"},
    "blocks": {"final_sparsity": 0.8, "pattern": "block:1x2"},
}


@sampled()
@pytest.mark.parametrize("library, name", covering(BOTH, CONTINUED, strength=1))
def test_zeros_of_a_checkpoint_stay_zero_from_the_first_update_on(library, name):
    """tensorflow#59868: before `begin_step` all zeros grew back, after it those of one weight."""
    keras = keras_of(library)
    dense = [keras.layers.Dense(8, kernel_initializer="ones") for _ in range(3)]
    model = keras.Sequential([keras.layers.Input((8,)), *dense, keras.layers.Dense(3)])
    rng = np.random.default_rng(0)
    kernels = ke.parametrize.select(model, caller="")[:-1]
    for weight, share in zip(kernels, (0.0, 0.3, 0.6), strict=True):
        # Every weight of a checkpoint has its own sparsity.
        values = rng.uniform(0.1, 1.0, weight.shape) * (rng.uniform(size=weight.shape) >= share)
        weight.value.assign(values)
    before = {w.path: w.value.numpy() == 0 for w in kernels}
    ke.prune(model, begin_step=2, end_step=6, frequency=1, **CONTINUED[name])
    (updater,) = updaters(model)
    noise = np.random.default_rng(1)
    for _ in range(7):
        for weight in kernels:
            weight.value.assign_add(noise.normal(0, 0.1, weight.shape))
        updater.after_update()
        for weight in kernels:
            assert not weight.value.numpy()[before[weight.path]].any()
    if name != "global":
        least = {"N:M": 0.5}.get(name, 0.8)
        assert all(np.mean(w.value.numpy() == 0) >= least - 0.01 for w in kernels)


def test_a_weight_that_is_all_zeros_trains_before_it_is_pruned():
    model = ready(BOTH["keras"])
    _, weight, *_ = ke.parametrize.select(model, caller="")
    weight.value.assign(tf.zeros(weight.shape))
    ke.prune(model, pattern="2:4", begin_step=2, end_step=2, layers=[weight.layer])
    (mask,) = transforms(model, Mask)
    assert mask.mask.numpy().all()


@sampled()
@pytest.mark.parametrize(
    "specimen",
    full_except(*FUNCTIONAL),
)
def test_embeddings_that_are_named(specimen):
    model = ready(specimen)
    plain = [w.path for w in ke.parametrize.select(model, kinds=("embedding",), caller="")]
    report = ke.prune(model, 0.5, layers=re.escape(plain[0]), end_step=2)
    assert list(report.targets) == plain[:1]
    features, labels = specimen.batch(12)
    fit(model, features, labels, batch_size=4)
    assert_exact(model)
    other = specimen.make()
    path = ke.parametrize.select(other, kinds=("embedding",), caller="")[0].path
    assert ke.prune(other, {path: 0.25}).targets == {path: 0.25}


@mostly("tf_keras")
def test_an_average_of_the_weights_sees_masked_ones(library):
    model = ready(BOTH[library])
    prune(model, 0.5)
    features, labels = BOTH[library].batch(12)
    average = ke.callbacks.EMA(0.5)
    fit(model, features, labels, batch_size=4, callbacks=[average])
    with average.averaged():
        assert_exact(model)
    assert_exact(model)


def test_reports_print():
    model = ZOO[0].make()
    dense = [layer for layer in model.layers if type(layer).__name__ == "Dense"]
    a = ke.prune(model, 0.5, layers="query")
    assert str(a) == "prune: 1 weights, 50.0% zeros, unstructured, at once"
    key, value = (w.path for w in ke.parametrize.select(model, "key|value", caller=""))
    b = ke.prune(model, {key: 0.25, value: 0.5}, begin_step=2, end_step=9, layers="key|value")
    assert str(b) == "prune: 2 weights, 25.0% to 50.0% zeros, unstructured, from update 2 to 9"
    soft = ke.compression.Movement(soft=True)
    c = ke.prune(model, criterion=soft, end_step=9, layers=dense[:1])
    assert str(c) == (
        "prune: 1 weights, as many zeros as their scores say, unstructured, from update 0 to 9"
    )
    assert "mask unstructured by scores" in str(ke.summary(model))


@pytest.mark.full
@mostly("keras")
def test_schedules_of_tf_mot_have_their_own_end(library):
    from keras_efficient.compression._tf_mot import tf_mot

    module = tf_mot("sparsity.keras.pruning_schedule")
    model = ready(BOTH[library])
    report = prune(model, None, schedule=module.PolynomialDecay(0.25, 0.5, 1, 4, frequency=2))
    assert (report.begin_step, report.end_step) == (1, 4)
    assert set(report.targets.values()) == {0.5}
    features, labels = BOTH[library].batch(20)
    each = Each()
    fit(model, features, labels, batch_size=4, callbacks=[each])
    assert next(iter(each.zeros[0].values()))[0] == 48 // 4
    assert_exact(model)
    endless = ready(BOTH[library])
    report = prune(endless, None, schedule=module.ConstantSparsity(0.5, 2, frequency=1))
    assert report.end_step is None and str(report).endswith("from update 2")
    fit(endless, features, labels, batch_size=4, callbacks=[each])
    assert_exact(endless)
    assert all(now == 0 for now, _ in each.zeros[5].values())
