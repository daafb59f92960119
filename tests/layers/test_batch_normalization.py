"""Batch normalization over unmasked tokens: arithmetic, both libraries, loops, two replicas."""

import subprocess

import forked_python
import numpy as np
import pytest
import tensorflow as tf
from covering import covering, sampled
from zoo import keras_of

import keras_efficient as ke
from keras_efficient.layers._moments import masked_moments, masked_sums, moments_of_sums

both = pytest.mark.parametrize("library", ["keras", "tf_keras"])


def batch(seed=0, shape=(4, 5, 3)):
    rng = np.random.default_rng(seed)
    mask = rng.random(shape[:-1]) < 0.6
    mask[0, 0] = True
    return rng.normal(2, 3, shape).astype("float32"), mask


def weights_of(layer):
    return {w.name.split("/")[-1].removesuffix(":0"): w.numpy() for w in layer.weights}


# --- the arithmetic ------------------------------------------------------------------------------


def test_moments_are_those_of_the_real_tokens():
    x, mask = batch()
    mean, variance, count = masked_moments(x, mask)
    np.testing.assert_allclose(mean, x[mask].mean(0), rtol=1e-5)
    np.testing.assert_allclose(variance, x[mask].var(0), rtol=1e-5)
    assert count == mask.sum()


def test_moments_without_a_mask():
    x, _ = batch()
    mean, variance, count = masked_moments(x)
    np.testing.assert_allclose(mean, x.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(variance, x.var((0, 1)), rtol=1e-5)
    assert count == 20


def test_moments_of_sums_of_parts():
    x, mask = batch()
    sums = masked_sums(x[:1], mask[:1]) + masked_sums(x[1:], mask[1:])
    for a, b in zip(moments_of_sums(sums), masked_moments(x, mask), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)


@pytest.mark.parametrize(
    "function", [masked_moments, lambda x, m: moments_of_sums(masked_sums(x, m))]
)
def test_moments_of_nothing_are_zero(function):
    x, _ = batch()
    for value in function(x * np.nan, np.zeros(x.shape[:2])):
        assert not np.any(value)


def test_moments_of_half_precision_are_float32():
    x = tf.cast(tf.fill([1, 4000, 1], 30.0), tf.float16)
    mean, variance, count = masked_moments(x, tf.ones([1, 4000]))
    assert {mean.dtype, variance.dtype, count.dtype} == {tf.float32}
    assert (mean.numpy(), variance.numpy(), count.numpy()) == ([30.0], [0.0], 4000)


def test_a_mask_of_another_rank_is_refused():
    with pytest.raises(ValueError, match=r"`mask` must say for each position.*attention mask"):
        masked_moments(np.ones((2, 3, 4)), np.ones((2, 3, 3)))


# --- the layer -----------------------------------------------------------------------------------


@both
def test_layer_is_the_formula(library):
    x, mask = batch()
    layer = ke.layers.MaskedBatchNormalization(library=library, momentum=0.9, epsilon=1e-3)
    out = layer(x, mask=mask, training=True)
    mean, variance = x[mask].mean(0), x[mask].var(0)
    np.testing.assert_allclose(out, (x - mean) / np.sqrt(variance + 1e-3), rtol=1e-4, atol=1e-5)
    moved = weights_of(layer)
    np.testing.assert_allclose(moved["moving_mean"], mean, rtol=1e-4)
    np.testing.assert_allclose(moved["moving_variance"], variance, rtol=1e-4)
    np.testing.assert_allclose(moved["moving_weight"], 0.1, rtol=1e-5)
    expected = (x - moved["moving_mean"]) / np.sqrt(moved["moving_variance"] + 1e-3)
    np.testing.assert_allclose(layer(x, mask=mask, training=False), expected, rtol=1e-4, atol=1e-5)
    names = {"gamma", "beta", "moving_mean", "moving_variance", "moving_weight"}
    assert set(moved) == names


@both
def test_averages_after_a_few_updates_are_those_of_the_data(library):
    """They were pulled towards 0 and 1: validation .649 by averages, .952 by batch statistics."""
    rng = np.random.default_rng(0)
    x = [rng.normal(5, 3, (16, 6, 2)).astype("float32") for _ in range(10)]
    layer = ke.layers.MaskedBatchNormalization(library=library)
    own = keras_of(library).layers.BatchNormalization()
    for part in x:
        layer(part, training=True)
        own(part, training=True)
    out = np.asarray(layer(np.concatenate(x), training=False))
    np.testing.assert_allclose(out.mean((0, 1)), 0, atol=0.05)
    np.testing.assert_allclose(out.std((0, 1)), 1, atol=0.05)
    # The library's own maps the same numbers to a mean of 3 and a deviation of 2.
    theirs = np.asarray(own(np.concatenate(x), training=False))
    assert theirs.mean() > 2 and theirs.std() > 1.5


@both
def test_averages_weigh_updates_by_the_momentum(library):
    """The last of t updates has the share (1 - μ) / (1 - μᵗ), those before μ times the next."""
    values = [4.0, -2.0, 7.0]
    for momentum in (0.0, 0.5, 0.99):
        layer = ke.layers.MaskedBatchNormalization(library=library, momentum=momentum)
        for value in values:
            layer(np.full((1, 2, 1), value, "float32"), training=True)
            # Without a token: no update.
            layer(np.ones((1, 2, 1), "float32"), mask=np.zeros((1, 2)), training=True)
        shares = momentum ** np.arange(len(values))[::-1]
        expected = (shares * values).sum() / shares.sum()
        moved = weights_of(layer)
        np.testing.assert_allclose(moved["moving_mean"], [expected], rtol=1e-4)
        np.testing.assert_allclose(moved["moving_variance"], [0], atol=1e-6)
        np.testing.assert_allclose(moved["moving_weight"], 1 - momentum**3, rtol=1e-4)


def normalized(library):
    """Tokens, a mask and two normalizations with an activation between them."""
    keras = keras_of(library)
    ids = keras.layers.Input((None,), dtype="int32")
    x = keras.layers.Embedding(20, 4, mask_zero=True)(ids)
    x = ke.layers.MaskedBatchNormalization(library=library, name="first")(x)
    x = keras.layers.Dropout(0.5)(keras.layers.Dense(4, "relu")(x))
    x = ke.layers.MaskedBatchNormalization(library=library, name="second")(x)
    model = keras.Model(ids, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling1D()(x)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.5), loss, metrics=["accuracy"], jit_compile=False)
    return model


def tokens(batches=4):
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 20, (batches, 8, 6)) * (rng.random((batches, 8, 6)) < 0.8)
    ids[..., 0] = 1
    return [(part.astype("int32"), (part[:, 0] > 10).astype("int32")) for part in ids]


@sampled()
@both
def test_statistics_estimated_over_data_are_its_moments(library):
    """Averages that lag behind the weights: .857 by averages, .926 by batch statistics."""
    model, data = normalized(library), tokens()
    weight = [
        w for w in model.trainable_weights if "first" not in w.name and "second" not in w.name
    ]
    before = [w.numpy() for w in weight]
    assert ke.layers.estimate_batch_statistics(model, iter(data), batches=3) == 3
    table = model.layers[1].get_weights()[0]
    ids = np.concatenate([x for x, _ in data[:3]])
    moved = weights_of(model.get_layer("first"))
    np.testing.assert_allclose(
        moved["moving_mean"], table[ids[ids > 0]].mean(0), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(moved["moving_variance"], table[ids[ids > 0]].var(0), rtol=1e-4)
    # The second layer sees what the first gives in training, without dropout.
    dense = model.layers[3].get_weights()
    parts = []
    for x, _ in data[:3]:
        real = table[x[x > 0]]
        y = (real - real.mean(0)) / np.sqrt(real.var(0) + 1e-3)
        parts.append(np.maximum(y @ dense[0] + dense[1], 0))
    moved = weights_of(model.get_layer("second"))
    np.testing.assert_allclose(
        moved["moving_mean"], np.concatenate(parts).mean(0), rtol=1e-3, atol=1e-5
    )
    np.testing.assert_allclose(moved["moving_variance"], np.concatenate(parts).var(0), rtol=1e-3)
    assert moved["moving_weight"] == 1
    for a, b in zip(before, weight, strict=True):
        np.testing.assert_array_equal(a, b.numpy())
    # Afterwards it is an ordinary layer, and one that is frozen keeps its averages.
    first = model.get_layer("first")
    assert first.observed is None
    first.trainable, kept = False, first.get_weights()
    assert ke.layers.estimate_batch_statistics(model, data[3:]) == 1
    for a, b in zip(kept, first.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@sampled()
@both
def test_statistics_are_estimated_before_validation_and_at_the_end(library):
    model, data = normalized(library), tokens()
    x, y = (np.concatenate(part) for part in zip(*data, strict=True))
    seen = []

    class Spy(ke.flavor.Callback):
        def on_test_begin(self, logs=None):
            seen.append(model.get_layer("second").get_weights())

    statistics = ke.callbacks.BatchStatistics(data)
    callbacks = [statistics, Spy()]
    model.fit(x, y, batch_size=8, epochs=2, verbose=0, validation_data=(x, y), callbacks=callbacks)
    assert len(seen) == 2
    assert {float(weights[-1]) for weights in seen} == {1.0}
    after = model.get_layer("second").get_weights()
    for a, b in zip(seen[1], after, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    model.fit(x, y, batch_size=8, verbose=0, callbacks=[statistics])
    trained = model.get_layer("second").get_weights()
    ke.layers.estimate_batch_statistics(model, data)
    for a, b in zip(trained, model.get_layer("second").get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@both
def test_statistics_that_cannot_be_estimated(library):
    keras = keras_of(library)
    model = normalized(library)
    kept = model.get_layer("first").get_weights()
    with pytest.raises(ke.InputError, match=r"Batch statistics need data\. Received: no batch"):
        ke.layers.estimate_batch_statistics(model, [])
    # Padding alone.
    ke.layers.estimate_batch_statistics(model, [np.zeros((2, 3), "int32")])
    for a, b in zip(kept, model.get_layer("first").get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match=r"`batches` must be a positive int\. Received: 0"):
        ke.layers.estimate_batch_statistics(model, tokens(), 0)
    with pytest.raises(ValueError, match=r"`batches` must be a positive int\. Received: 1\.5"):
        ke.callbacks.BatchStatistics(tokens(), 1.5)
    plain = keras.Sequential([keras.layers.Input((2,)), keras.layers.BatchNormalization()])
    with pytest.raises(
        ke.InputError, match=r"MaskedBatchNormalization layers\. Received: .*has none"
    ):
        ke.layers.estimate_batch_statistics(plain, [np.ones((2, 2))])


@sampled()
@both
def test_validation_after_a_short_training_is_that_of_batch_statistics(library):
    keras = keras_of(library)
    rng = np.random.default_rng(0)
    x = rng.normal(4, 2, (640, 3)).astype("float32")
    y = (x[:, 0] > 4).astype("int32")
    model = keras.Sequential(
        [
            keras.layers.Input((3,)),
            ke.layers.MaskedBatchNormalization(library=library),
            keras.layers.Dense(2),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(1.0), loss, metrics=["accuracy"], jit_compile=False)
    model.fit(x[:320], y[:320], batch_size=32, verbose=0)
    by_averages = model.evaluate(x[320:], y[320:], verbose=0)[1]
    answers = np.argmax(np.asarray(model(x[320:], training=True)), -1)
    assert by_averages > 0.9
    assert abs(by_averages - np.mean(answers == y[320:])) < 0.02


@both
def test_padding_does_not_matter(library):
    x, mask = batch()
    other = np.where(mask[..., None], x, np.inf).astype("float32")
    layer = ke.layers.MaskedBatchNormalization(library=library)
    twin = ke.layers.MaskedBatchNormalization(library=library)
    out, same = (one(v, mask=mask, training=True) for one, v in ((layer, x), (twin, other)))
    np.testing.assert_allclose(np.asarray(out)[mask], np.asarray(same)[mask], rtol=1e-5)
    for a, b in zip(layer.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@both
def test_padding_gets_no_gradient_through_the_statistics(library):
    x, mask = batch()
    layer = ke.layers.MaskedBatchNormalization(library=library)
    value = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(value)
        out = layer(value, mask=mask, training=True)
        loss = tf.reduce_sum(tf.where(mask[..., None], out**3, 0.0))
    gradient = tape.gradient(loss, value).numpy()
    assert np.abs(gradient[mask]).min() > 0
    assert not gradient[~mask].any()


@both
def test_without_a_mask_it_is_keras_own(library):
    keras = keras_of(library)
    x, _ = batch()
    options = {"momentum": 0.8, "epsilon": 1e-2}
    ours = ke.layers.MaskedBatchNormalization(library=library, **options)
    own = keras.layers.BatchNormalization(**options)
    results = []
    for layer in (ours, own):
        value = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(value)
            out = layer(value, training=True)
            loss = tf.reduce_sum(out**3)
        results.append([out, tape.gradient(loss, value), layer(value, training=False)])
        *rest, mean, variance = layer.get_weights()[:4]
        # Its averages keep 0.8 of 0 and 1.
        results[-1] += [*rest, mean if layer is ours else mean / 0.2]
        results[-1] += [variance if layer is ours else (variance - 0.8) / 0.2]
    # Therefore the libraries' layer answers differently in inference.
    (out, gradient, inference, *averages), (own_out, own_gradient, own_inference, *theirs) = results
    assert np.abs(np.asarray(inference) - np.asarray(own_inference)).max() > 0.1
    pairs = zip([out, gradient, *averages], [own_out, own_gradient, *theirs], strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@both
def test_the_mask_comes_with_the_input(library):
    layers = keras_of(library).layers
    ids = np.array([[1, 2, 0], [3, 0, 0]])
    embed = layers.Embedding(5, 2, mask_zero=True)
    x = embed(tf.constant(ids))
    implicit = ke.layers.MaskedBatchNormalization(library=library)
    explicit = ke.layers.MaskedBatchNormalization(library=library)
    out = implicit(x, training=True)
    np.testing.assert_allclose(
        out, explicit(tf.identity(x), mask=tf.constant(ids > 0), training=True), rtol=1e-5
    )
    # The output carries it on.
    np.testing.assert_array_equal(out._keras_mask, ids > 0)


@both
def test_a_batch_without_a_real_token(library):
    x, mask = batch()
    layer = ke.layers.MaskedBatchNormalization(library=library)
    layer(x, mask=mask, training=True)
    before = layer.get_weights()
    value = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(value)
        out = layer(value, mask=np.zeros_like(mask), training=True)
    np.testing.assert_allclose(out, layer(x, training=False), rtol=1e-5)
    assert np.isfinite(tape.gradient(out, value)).all()
    for a, b in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@both
def test_upstream_a_batch_without_a_real_token_moves_the_averages(library):
    x, mask = batch()
    own = keras_of(library).layers.BatchNormalization(center=False, scale=False)
    own(x, mask=np.zeros_like(mask), training=True)
    mean, variance = own.get_weights()
    assert not mean.any()
    assert (variance < 1).all()


@both
@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision(library, dtype):
    x, mask = batch()
    x = (x * 1000).astype("float32")
    layer = ke.layers.MaskedBatchNormalization(library=library, dtype=dtype)
    out = layer(x, mask=mask, training=True)
    assert out.dtype == layer.compute_dtype != "float32"
    assert np.isfinite(np.asarray(tf.cast(out, tf.float32))).all()
    assert {weight.dtype for weight in layer.get_weights()} == {np.dtype("float32")}


@both
def test_frozen_is_inference(library):
    x, mask = batch()
    layer = ke.layers.MaskedBatchNormalization(library=library, center=False, scale=False)
    layer.trainable = False
    out = layer(x, mask=mask, training=True)
    np.testing.assert_allclose(out, layer(x, training=False))
    assert set(weights_of(layer)) == {"moving_mean", "moving_variance", "moving_weight"}


@both
def test_errors(library):
    with pytest.raises(ValueError, match=r"`momentum` must be in \[0, 1\)"):
        ke.layers.MaskedBatchNormalization(library=library, momentum=1.0)
    with pytest.raises(ValueError, match=r"`epsilon` greater than 0"):
        ke.layers.MaskedBatchNormalization(library=library, epsilon=0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'momentun'"):
        ke.layers.MaskedBatchNormalization(library=library, momentun=0.9)
    layer = ke.layers.MaskedBatchNormalization(library=library)
    with pytest.raises(ValueError, match="`mask` must say"):
        layer(np.ones((2, 3, 4), "float32"), mask=np.ones((2, 3, 3)), training=True)


# --- in models -----------------------------------------------------------------------------------


def model_of(library, **options):
    keras = keras_of(library)
    layers = keras.layers
    ids = layers.Input((None,), dtype="int32")
    x = layers.Embedding(9, 4, mask_zero=True)(ids)
    x = ke.layers.MaskedBatchNormalization(library=library, momentum=0.5, name="bn", **options)(x)
    model = keras.Model(ids, layers.Dense(2)(layers.GlobalMaxPooling1D()(x)))
    rng = np.random.default_rng(0)
    model.layers[1].set_weights([rng.normal(0, 1, (9, 4))])
    model.compile(
        keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    return model


IDS = np.array([[1, 2, 3], [4, 5, 0], [0, 0, 0], [0, 0, 0], [6, 0, 0], [7, 8, 0]], "int32")


@sampled()
@pytest.mark.parametrize(
    "library, jit_compile", covering(["keras", "tf_keras"], [False, True], strength=1)
)
def test_save_load_and_fit(library, jit_compile, tmp_path):
    keras = keras_of(library)
    model = model_of(library, scale=False)
    model.compile(keras.optimizers.SGD(0.1), model.loss, jit_compile=jit_compile)
    model.fit(IDS[[0, 1, 4]], np.array([0, 1, 1]), batch_size=3, epochs=3, verbose=0)
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.models.load_model(path, custom_objects=ke.layers.custom_objects(library))
    np.testing.assert_allclose(loaded.predict(IDS, verbose=0), model.predict(IDS, verbose=0))
    config = loaded.get_layer("bn").get_config()
    assert (config["momentum"], config["scale"], config["synchronized"]) == (0.5, False, True)


@sampled()
@both
def test_under_accumulation_it_is_ghost_normalization(library):
    """Each microbatch updates the averages once, except one without unmasked tokens."""
    model = model_of(library)
    table = model.layers[1].get_weights()[0]
    mean, variance = np.zeros(4), np.zeros(4)
    for rows in (IDS[:2], IDS[4:]):
        tokens = table[rows[rows > 0]]
        mean = 0.5 * mean + 0.5 * tokens.mean(0)
        variance = 0.5 * variance + 0.5 * tokens.var(0)
    ke.accumulate(model, 3)
    history = model.fit(IDS, np.array([0, 1, 0, 1, 0, 1]), batch_size=6, shuffle=False, verbose=0)
    moved = weights_of(model.get_layer("bn"))
    np.testing.assert_allclose(moved["moving_mean"], mean / 0.75, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(moved["moving_variance"], variance / 0.75, rtol=1e-4)
    assert np.isfinite(history.history["loss"]).all()


@pytest.mark.full
@sampled()
@both
def test_with_remat_the_averages_move_once(library):
    models = []
    for remat in (False, True):
        model = model_of(library)
        if remat:
            ke.remat(model, "^bn$")
        model.layers[-1].set_weights([np.ones((4, 2)), np.ones(2)])
        model.fit(IDS, np.array([0, 1, 0, 1, 0, 1]), batch_size=3, shuffle=False, verbose=0)
        models.append(model.get_layer("bn").get_weights())
    for a, b in zip(*models, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


# --- another process, two replicas ----------------------------------------------------------------

OTHER_PROCESS = """
import sys
import keras, numpy as np, tensorflow as tf
import keras_efficient as ke

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
keras.models.load_model(sys.argv[1], custom_objects=ke.layers.custom_objects())
print("loaded")
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
rng = np.random.default_rng(0)
x = rng.normal(2, 3, (6, 5, 3)).astype("float32")
# Very different numbers of unmasked tokens on the two replicas.
mask = np.arange(5) < np.array([5, 5, 5, 1, 1, 2])[:, None]
target = rng.normal(size=x.shape).astype("float32")
halves = [slice(0, 3), slice(3, 6)]


def run(layer, x, mask, target):
    with tf.GradientTape() as tape:
        tape.watch(x)
        out = layer(x, mask=mask, training=True)
        loss = tf.reduce_sum(tf.where(mask[..., None], out * target, 0.0))
    return out, tape.gradient(loss, x)


def value(array):
    def of(context):
        part = halves[context.replica_id_in_sync_group]
        return tf.constant(array[part])
    return strategy.experimental_distribute_values_from_function(of)


def in_loop(layer, x, mask, target):
    # One example at a time, like a training step with microbatches.
    def body(i, outs):
        s = slice(i, i + 1)
        out, gradient = run(layer, x[s], mask[s], target[s])
        return i + 1, outs.write(i, out[0])
    outs = tf.TensorArray(tf.float32, 3)
    return tf.while_loop(lambda i, outs: i < 3, body, (0, outs))[1].stack(), x


def step(function, layer):
    @tf.function
    def traced(x, mask, target):
        return strategy.run(function, (layer, x, mask, target))

    return [
        np.concatenate([v.numpy() for v in strategy.experimental_local_results(result)])
        for result in traced(*map(value, (x, mask, target)))
    ]


def built(make):
    with strategy.scope():
        layer = make()
        layer.build((None, None, 3))
    return layer


def averages_of(layer):
    weights = {w.name.split("/")[-1].removesuffix(":0"): w for w in layer.weights}
    return [np.asarray(weights[n].numpy()) for n in ("moving_mean", "moving_variance")]


def check(library):
    def make():
        return ke.layers.MaskedBatchNormalization(library=library, momentum=0.5)

    # In a step, two replicas are one big batch.
    single = make()
    expected = run(single, *map(tf.constant, (x, mask, target)))
    layer = built(make)
    out, gradient = step(run, layer)
    np.testing.assert_allclose(out, expected[0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(gradient, expected[1], rtol=1e-3, atol=1e-4)
    averages = averages_of(layer)
    for received, known in zip(averages, averages_of(single)):
        np.testing.assert_allclose(received, known, rtol=1e-3)
    # get_weights, as checkpoints and exports read it.
    np.testing.assert_allclose(layer.get_weights()[-2], averages[1], rtol=1e-6)

    # In a loop, each replica normalizes its own microbatches.
    layer = built(make)
    out, _ = step(in_loop, layer)
    means = []
    for half in halves:
        mean, variance = np.zeros(3), np.zeros(3)
        for i in range(half.start, half.stop):
            tokens = x[i][mask[i]]
            y = (x[i] - tokens.mean(0)) / np.sqrt(tokens.var(0) + 1e-3)
            np.testing.assert_allclose(out[i], y, rtol=1e-3, atol=1e-4)
            mean = 0.5 * mean + 0.5 * tokens.mean(0)
            variance = 0.5 * variance + 0.5 * tokens.var(0)
        # Three updates have a weight of 1 - 0.5³.
        means.append([mean / 0.875, variance / 0.875])
    averages = averages_of(layer)
    np.testing.assert_allclose(averages, np.mean(means, 0), rtol=1e-3)
    np.testing.assert_allclose(layer.get_weights()[-2], averages[1], rtol=1e-6)

    # Upstream.
    keras = ke.flavor.get(library).keras
    layer = built(lambda: keras.layers.BatchNormalization(synchronized=True))
    if library == "keras":
        out, _ = step(run, layer)
        # Each replica's own statistics.
        half = x[:3] - x[:3][mask[:3]].mean(0)
        np.testing.assert_allclose(out[:3] * half > 0, True)
        assert np.abs(out - expected[0].numpy()).max() > 0.1
    else:
        try:
            step(in_loop, layer)
        except RuntimeError as error:
            assert "merge_call" in str(error), error
        else:
            raise AssertionError("tf_keras synchronizes in a loop now")


for library in ("keras", "tf_keras"):
    check(library)
    print(library, "ok")
"""


@pytest.fixture(scope="module")
def other_process(tmp_path_factory):
    """The output of `OTHER_PROCESS`, which loads a model and trains on two replicas."""
    path = tmp_path_factory.mktemp("saved") / "model.keras"
    model_of("keras").save(path)
    python = forked_python.command(*forked_python.TRAINING)
    command = [*python, "-c", OTHER_PROCESS, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    return done.stdout.splitlines(), done.stderr[-3000:]


def test_a_fresh_process_loads_with_custom_objects(other_process):
    lines, errors = other_process
    assert lines[:1] == ["loaded"], errors


def test_two_replicas(other_process):
    """In a step they are one big batch; in a loop each normalizes its own microbatches.

    Upstream: with a mask, Keras 3's BatchNormalization is not synchronized, and tf_keras' fails in
    the loop.
    """
    lines, errors = other_process
    assert lines[1:] == ["keras ok", "tf_keras ok"], errors
