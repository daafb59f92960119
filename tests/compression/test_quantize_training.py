"""`ke.quantize_aware`: train, save, load and merge, alone and with other methods."""

import numpy as np
import pytest
import tensorflow as tf
from compression_helpers import (
    FUNCTIONAL,
    SMALL,
    activation_quantizers,
    functional,
    libraries,
    outputs,
    quick,
    ready,
    small,
)
from covering import contract, covering, sampled
from fit_helpers import batches, fit, mirrored
from zoo import ZOO, full_except, keras_of

import keras_efficient as ke
from keras_efficient.architecture._weights import all_weights
from keras_efficient.compression._activation_quantization import DECAY
from keras_efficient.compression._fake_quant import FakeQuant
from keras_efficient.compression._integers import from_integers, to_integers
from keras_efficient.compression._tf_mot import tf_mot
from keras_efficient.parametrize._attach import updaters
from keras_efficient.parametrize._parametrized_layer import transforms


def ranges(model):
    return np.stack([part.range.numpy() for part in activation_quantizers(model)])


def trained(specimen, methods, *, steps=3, jit_compile=False):
    """A model of the zoo, changed by `methods` and trained for a few updates on one batch."""
    data = specimen.batch(12)
    model = ready(specimen, jit_compile=jit_compile)
    for apply in methods:
        apply(model)
    fit(model, *data, epochs=steps)
    return model


def int8(model, **kwargs):
    ke.quantize_aware(model, **kwargs)


# --- over the zoo --------------------------------------------------------------------------------


@contract("files")
@sampled()
@pytest.mark.parametrize("specimen", full_except("keras-functional", "tf_keras-subclassed"))
def test_train_save_load_and_merge(specimen, tmp_path):
    x, _ = specimen.batch(12)
    before = specimen.make()
    classes = [type(layer) for layer in before._flatten_layers()]
    model = trained(specimen, [int8])
    chosen = {t.weight.path for t in transforms(model, FakeQuant)}
    assert chosen == {w.path for w in all_weights(model) if w.kind in ("kernel", "embedding")}
    # It has trained, and every range is known and wider than a point.
    assert np.abs(outputs(model, x) - outputs(before, x)).max() > 1e-3
    found = ranges(model)
    assert len(found) == sum(w.kind == "kernel" for w in all_weights(before))
    assert (found[:, 0] <= 0).all()
    assert (found[:, 1] > 0).all()
    np.testing.assert_allclose(found[:, 2], 1 - DECAY**3, rtol=1e-5)
    rows = {row.path: row for row in ke.summary(model).weights}
    for transform in transforms(model, FakeQuant):
        weight, row = transform.weight, rows[transform.weight.path]
        assert (row.bits, row.transforms) == (8, ("int8",))
        assert row.bytes == weight.size + 4 * weight.matrix_shape[1]
    path = tmp_path / "model.weights.h5"
    model.save_weights(path)
    again = specimen.make()
    int8(again)
    again.load_weights(path)
    np.testing.assert_array_equal(outputs(again, x), outputs(model, x))
    # Inference does not move the ranges.
    np.testing.assert_array_equal(ranges(again), found)
    # Merged, the weights are on the grid, and inputs are floats again.
    seen = outputs(model, x)
    report = ke.merge(model)
    assert len(report.dropped) == len(found)
    assert "inputs in 8 bits" in str(report)
    assert [type(layer) for layer in model._flatten_layers()] == classes
    for weight in all_weights(model):
        if weight.path in chosen:
            matrix = np.asarray(weight.matrix(weight.value.numpy()))
            integers, scales = to_integers(matrix)
            np.testing.assert_allclose(matrix, from_integers(integers, scales), rtol=1e-6)
    np.testing.assert_allclose(outputs(model, x), seen, atol=0.1)
    plain = specimen.make()
    plain.set_weights(model.get_weights())
    np.testing.assert_array_equal(outputs(plain, x), outputs(model, x))


@sampled()
@pytest.mark.parametrize(
    "specimen", full_except(*FUNCTIONAL, among=[ZOO[0], ZOO[3], ZOO[4], ZOO[6]])
)
def test_four_bits_in_groups(specimen):
    model = trained(specimen, [lambda m: int8(m, weight_bits=4, group_size=4)])
    for transform in transforms(model, FakeQuant):
        integers, scales, _ = transform.integers()
        assert scales.shape == (transform.weight.matrix_shape[0] // 4, integers.shape[1])
        assert np.abs(integers).max() == 7
    row = next(r for r in ke.summary(model).weights if r.transforms)
    assert (row.bits, row.transforms) == (4, ("int4 groups of 4",))
    size = int(np.prod(row.shape))
    assert row.bytes == size // 2 + 4 * size // 4


@sampled()
@functional
def test_weights_alone(specimen):
    """Without activations there are no ranges to update, and merging keeps the outputs."""
    model = specimen.make()
    report = ke.quantize_aware(model, activation_bits=None, embeddings=False)
    assert not updaters(model)
    assert report.inputs == ()
    assert "embedding" not in "".join(report.weights)
    x, y = specimen.batch(12)
    fit(quick(specimen.library, model), x, y)
    seen = outputs(model, x)
    assert ke.merge(model).dropped == ()
    np.testing.assert_allclose(outputs(model, x), seen, atol=1e-6)


# --- with others ---------------------------------------------------------------------------------


@pytest.mark.full
@sampled()
@pytest.mark.parametrize("specimen, order", covering(SMALL, (0, 1), strength=1))
def test_sparsity_survives(specimen, order):
    methods = [int8, lambda m: ke.prune(m, 0.5)]
    model = trained(specimen, methods[:: 1 - 2 * order])
    masked = [t for t in transforms(model) if t.name == "mask"]
    assert masked
    for mask in masked:
        quantized = next(
            t for t in transforms(model, FakeQuant) if t.weight.path == mask.weight.path
        )
        integers, _, _ = quantized.integers()
        zeros = np.asarray(mask.weight.matrix(mask.mask.numpy())) == 0
        assert zeros.mean() == 0.5
        assert (integers[zeros] == 0).all()
    ke.merge(model)
    for mask in masked:
        assert (mask.weight.value.numpy()[mask.mask.numpy() == 0] == 0).all()


@pytest.mark.full
@sampled()
@pytest.mark.parametrize("specimen, order", covering(SMALL, (0, 1), strength=1))
def test_lora_is_rounded_with_its_base(specimen, order):
    methods = [int8, lambda m: ke.lora(m, rank=2)]
    model = trained(specimen, methods[:: 1 - 2 * order], steps=6)
    deltas = [t for t in transforms(model) if t.name == "lora"]
    assert all(np.abs(t.b.numpy()).max() > 0 for t in deltas)
    expected = {
        t.weight.path: from_integers(*t.integers()[:2]) for t in transforms(model, FakeQuant)
    }
    assert {t.weight.path for t in deltas} < set(expected)
    ke.merge(model)
    for weight in all_weights(model):
        if weight.path in expected:
            matrix = np.asarray(weight.matrix(weight.value.numpy()))
            np.testing.assert_allclose(matrix, expected[weight.path], rtol=1e-5, atol=1e-7)


@contract("xla")
@sampled()
@small
def test_xla_gives_the_same(specimen):
    methods = [int8, lambda m: ke.accumulate(m, microbatch_size=4)]
    plain = trained(specimen, methods)
    compiled_ = trained(specimen, methods, jit_compile=True)
    np.testing.assert_allclose(ranges(compiled_), ranges(plain), atol=1e-2)
    x, _ = specimen.batch(12)
    np.testing.assert_allclose(outputs(compiled_, x), outputs(plain, x), atol=3e-2)
    np.testing.assert_allclose(ranges(compiled_)[:, 2], 1 - DECAY**3, rtol=1e-5)


@pytest.mark.full
@sampled()
@small
def test_rematerialised_layers_have_the_same_ranges(specimen):
    """Rematerialised layers are called twice, the second time for their gradients."""
    plain = trained(specimen, [int8])
    twice = trained(specimen, [int8, lambda m: ke.remat(m, "dense|attention$|first|second")])
    np.testing.assert_allclose(ranges(twice), ranges(plain), atol=1e-4)
    np.testing.assert_allclose(twice.get_weights()[0], plain.get_weights()[0], atol=1e-4)


@contract("mixed_precision")
@sampled()
@pytest.mark.parametrize(
    "specimen, policy",
    covering(SMALL, ["mixed_bfloat16", "mixed_float16"], strength=1),
)
def test_mixed_precision(specimen, policy):
    ke.mixed_precision(policy, library=specimen.library)
    model = trained(specimen, [int8, lambda m: ke.accumulate(m, microbatch_size=5)])
    found = ranges(model)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[:, 2], 1 - DECAY**3, rtol=1e-5)
    for transform in transforms(model, FakeQuant):
        seen = np.asarray(transform.weight.matrix(transform(transform.weight.value)))
        np.testing.assert_array_equal(seen, from_integers(*transform.integers()[:2]))
    ke.merge(model)


@sampled()
@small
def test_two_passes_make_one_update(specimen):
    model = trained(specimen, [int8, lambda m: ke.sam(m, 0.01)])
    assert int(updaters(model)[0].updates.numpy()) == 3
    np.testing.assert_allclose(ranges(model)[:, 2], 1 - DECAY**3, rtol=1e-5)


# --- ranges --------------------------------------------------------------------------------------


def first_range(model):
    """The range of the layer that reads the model's input."""
    return activation_quantizers(model)[0].range.numpy()


def dense(library, units=3, features=4):
    keras = keras_of(library)
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Input((features,)), keras.layers.Dense(units)])
    model.compile(keras.optimizers.SGD(0.01), "mse", jit_compile=False)
    return model


@sampled()
@libraries
def test_trap_27_ranges_of_tf_mot_still_start_at_six_and_ours_at_the_first_batch(library):
    ops = tf_mot("quantization.keras.quant_ops")
    low, high = tf.Variable(-6.0), tf.Variable(6.0)
    x = np.random.default_rng(0).uniform(-1, 1, (64, 4)).astype("float32")
    x[0, :2] = -1, 1
    for _ in range(500):
        ops.MovingAvgQuantize(tf.constant(x), low, high)
    assert high.numpy() > 4
    model = dense(library)
    int8(model)
    np.testing.assert_array_equal(first_range(model), [0, 0, 0])
    fit(model, x, np.ones((64, 3)), batch_size=64)
    np.testing.assert_allclose(first_range(model)[:2], [-1, 1], rtol=1e-6)
    # A calibration pass before any training gives the same range.
    model = dense(library)
    report = ke.quantize_aware(model, calibration=tf.data.Dataset.from_tensors((x, x)))
    np.testing.assert_allclose(first_range(model), [-1, 1, 1], rtol=1e-6)
    assert "measured on 1 batches" in str(report)


@sampled()
@libraries
def test_ranges_are_debiased_averages_of_what_updates_saw(library):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 4)).astype("float32")
    model = dense(library)
    int8(model)
    ke.accumulate(model, microbatch_size=3)
    fit(model, x, np.ones((40, 3)), batch_size=8)
    raw, weight = np.zeros(2), 0.0
    for batch in np.split(x, 5):
        seen = np.array([min(batch.min(), 0), max(batch.max(), 0)])
        raw, weight = DECAY * raw + (1 - DECAY) * seen, DECAY * weight + (1 - DECAY)
    np.testing.assert_allclose(first_range(model), [*(raw / weight), weight], rtol=1e-5)
    # Evaluation and prediction do not change them.
    before = ranges(model)
    model.evaluate(100 * x, np.ones((40, 3)), verbose=0)
    model.predict(100 * x, verbose=0)
    np.testing.assert_array_equal(ranges(model), before)


@sampled()
@libraries
def test_ranges_stay_from_the_freeze_step_on(library):
    x = np.ones((8, 4), "float32")
    model = dense(library)
    int8(model, freeze_step=2)
    fit(model, np.concatenate([x, x, 9 * x, 9 * x]), np.ones((32, 3)), batch_size=8)
    np.testing.assert_allclose(first_range(model)[:2], [0, 1])


@sampled()
@libraries
def test_an_overflow_is_no_range(library):
    x = np.ones((8, 4), "float32")
    model = dense(library)
    int8(model)
    fit(model, x, np.ones((8, 3)), batch_size=8)
    fit(model, x * np.inf, np.ones((8, 3)), batch_size=8)
    np.testing.assert_allclose(first_range(model)[:2], [0, 1])


@sampled()
@libraries
def test_nothing_is_rounded_before_the_begin_step(library):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 4)).astype("float32"), rng.normal(size=(32, 3))
    plain, late = dense(library), dense(library)
    report = ke.quantize_aware(late, begin_step=4)
    assert "from update 4" in str(report)
    for model in (plain, late):
        fit(model, x[:24], y[:24], batch_size=8)
    np.testing.assert_allclose(outputs(late, x), outputs(plain, x), atol=1e-6)
    fit(late, x[24:], y[24:], batch_size=8)
    fit(plain, x[24:], y[24:], batch_size=8)
    # The fourth update is still made with floats; later ones are rounded.
    np.testing.assert_allclose(late.get_weights()[0], plain.get_weights()[0], atol=1e-6)
    assert np.abs(outputs(late, x) - outputs(plain, x)).max() > 1e-4


@sampled()
@libraries
def test_calibrating_takes_batches_as_fit_yields_them(library):
    x = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")
    expected = [x.min(), x.max(), 1]
    y = np.ones((12, 3))
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(5)
    for given in (x, tf.constant(x), (x, y), [x[:6], x[6:]], data, ((x, y) for _ in range(2))):
        model = dense(library)
        ke.quantize_aware(model, calibration=given)
        np.testing.assert_allclose(first_range(model), expected, rtol=1e-6)


# --- replicas ------------------------------------------------------------------------------------


def test_trap_28_ranges_of_tf_mot_still_differ_between_replicas():
    ops = tf_mot("quantization.keras.quant_ops")
    strategy = mirrored()
    with strategy.scope():
        low, high = (
            tf.Variable(
                v,
                trainable=False,
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.MEAN,
            )
            for v in (0.0, 0.0)
        )

    def step():
        index = tf.distribute.get_replica_context().replica_id_in_sync_group
        x = tf.cast(index, tf.float32) * 99 + tf.constant([0.0, 1.0])
        ops.AllValuesQuantize(x, low, high)

    strategy.run(step)
    assert [float(v) for v in strategy.experimental_local_results(high)] == [1, 100]


@contract("replicas")
@sampled()
@small
def test_two_replicas_are_one(specimen):
    """Replicas share their ranges, which equal those of one, also with microbatches."""
    accumulating = [int8, lambda m: ke.accumulate(m, microbatch_size=3)]
    data = batches(*specimen.batch(12), batch_size=12)
    models = []
    for number in (1, 2):
        with mirrored(number).scope():
            model = ready(specimen)
        for apply in accumulating:
            apply(model)
        model.fit(data, epochs=3, verbose=0)
        models.append(model)
    one, two = models
    np.testing.assert_allclose(ranges(two), ranges(one), atol=1e-4)
    for part in activation_quantizers(two):
        first, second = mirrored().experimental_local_results(part.range)
        np.testing.assert_array_equal(first.numpy(), second.numpy())
    x, _ = specimen.batch(12)
    # A float's last bit may move a number to the next step of the grid.
    np.testing.assert_allclose(outputs(two, x), outputs(one, x), atol=1e-2)


@sampled()
@pytest.mark.parametrize("library, jit", covering(["keras", "tf_keras"], [False, True], strength=1))
def test_replicas_see_each_others_extremes(library, jit):
    keras = keras_of(library)
    with mirrored().scope():
        model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3)])
        model.compile(keras.optimizers.SGD(1e-3), "mse", jit_compile=jit)
    int8(model, begin_step=2)
    x = np.ones((8, 4), "float32")
    x[5] = -100
    model.fit(batches(x, np.ones((8, 3), "float32"), batch_size=8), epochs=3, verbose=0)
    for local in mirrored().experimental_local_results(activation_quantizers(model)[0].range):
        np.testing.assert_allclose(local[:2], [-100, 1])
    counter = updaters(model)[0].updates
    for local in mirrored().experimental_local_results(counter):
        assert int(local) == 3


@pytest.mark.full
def test_replicas_agree_though_a_loss_scale_skips_updates():
    ke.mixed_precision("mixed_float16", library="keras")
    keras = keras_of("keras")
    with mirrored().scope():
        model = keras.Sequential(
            [keras.layers.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(1)]
        )
        scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1e-3), 1e30)
        model.compile(scaled, "mse", jit_compile=False)
    int8(model)
    x = np.ones((8, 4), "float32")
    x[5] = -100
    model.fit(batches(x, np.ones((8, 1), "float32"), batch_size=8), epochs=2, verbose=0)
    assert int(updaters(model)[0].updates.numpy()) == 0
    for local in mirrored().experimental_local_results(activation_quantizers(model)[0].range):
        np.testing.assert_allclose(local[:2], [-100, 1])
