"""What is wrong upstream, by its number in docs/architecture.md, and that ours is right.

When the upstream half of a test fails, a workaround can go. The other traps of training:

- 9, 11, 12 (loss scale): test_loss_scale_replicas.py
- 13 (LAMB): tests/optimizers/test_optimizers_upstream.py
"""

import numpy as np
import pytest
import tensorflow as tf
from covering import sampled
from fit_helpers import assert_same, batches, compiled, fit, mirrored, moved, sample_weights
from zoo import ZOO, keras_of

import keras_efficient as ke

BY_NAME = {specimen.name: specimen for specimen in ZOO}
SPECIMEN = BY_NAME["keras-sequential"]
libraries = pytest.mark.parametrize("library", ["keras", "tf_keras"])


def linear(library, inputs=2, value=0.0, bias=False):
    keras = keras_of(library)
    layers = [keras.layers.Input((inputs,)), keras.layers.Dense(1, use_bias=bias)]
    model = keras.Sequential(layers)
    model.set_weights([np.full_like(w, value) for w in model.get_weights()])
    return model


def rising_loss(library):
    """A loss whose gradient is the mean of the features, whatever the weights."""
    # Keras 3 wants a Loss: a function's mean over the last axis is the same here.
    return lambda y_true, y_pred: y_pred


@pytest.mark.full
def test_trap_1_keras_averages_microbatch_means():
    """Microbatches of 6 and 2 examples: Keras 3 takes them for equal, a batch of 8 does not."""
    keras = keras_of("keras")
    x, y = SPECIMEN.batch(8)
    large = compiled("keras", SPECIMEN.make())
    fit(large, x, y, batch_size=8)

    upstream = keras.optimizers.SGD(0.5, gradient_accumulation_steps=2)
    theirs = compiled("keras", SPECIMEN.make(), upstream)
    fit(theirs, x, y, batch_size=6)
    assert moved(large.get_weights(), theirs) > 1e-3

    ours = ke.accumulate(compiled("keras", SPECIMEN.make()), microbatch_size=6)
    fit(ours, x, y, batch_size=8)
    assert_same(ours, large)


@pytest.mark.full
def test_trap_2_weights_of_zero_count_in_sum_over_batch_size():
    """Two thirds of the examples weigh nothing: the loss is a third of their mean's."""
    keras = keras_of("keras")
    x, y = SPECIMEN.batch(9)
    weights = np.array([1, 0, 0, 0, 0, 0, 1, 1, 0], "float32")

    def run(reduction, k):
        loss = keras.losses.SparseCategoricalCrossentropy(True, reduction=reduction)
        model = ke.accumulate(compiled("keras", SPECIMEN.make(), loss=loss), k)
        return model, fit(model, x, y, weights)["loss"][0]

    diluted, mean = (run(r, None) for r in ("sum_over_batch_size", "mean_with_sample_weight"))
    np.testing.assert_allclose(diluted[1], mean[1] / 3, rtol=1e-5)
    # Ours divides as the loss does; microbatches of weights 1, 0 and 2 make no difference.
    for reduction, (plain, loss) in (
        ("sum_over_batch_size", diluted),
        ("mean_with_sample_weight", mean),
    ):
        model, accumulated = run(reduction, 3)
        assert_same(model, plain)
        np.testing.assert_allclose(accumulated, loss, rtol=1e-5)


@pytest.mark.full
def test_trap_3_keras_cannot_accumulate_on_replicas():
    keras = keras_of("keras")
    x, y = SPECIMEN.batch(8)
    with mirrored(2).scope():
        upstream = keras.optimizers.SGD(0.5, gradient_accumulation_steps=2)
        theirs = compiled("keras", SPECIMEN.make(), upstream)
        ours = compiled("keras", SPECIMEN.make())
    with pytest.raises(RuntimeError, match="merge_call"):
        theirs.fit(batches(x, y, batch_size=4), verbose=0)
    plain = compiled("keras", SPECIMEN.make())
    ke.accumulate(ours, 2)
    for model in (ours, plain):
        model.fit(batches(x, y, batch_size=8), verbose=0)
    assert_same(ours, plain)


@pytest.mark.full
def test_trap_4_keras_takes_a_schedule_step_per_microbatch():
    """A rate of 0 after 10 updates: Keras 3 is there after 2 updates of 5 microbatches."""
    keras = keras_of("keras")

    def decay():
        return keras.optimizers.schedules.PolynomialDecay(0.5, 10, end_learning_rate=0.0)

    x, y = SPECIMEN.batch(40)
    upstream = keras.optimizers.SGD(decay(), gradient_accumulation_steps=5)
    theirs = compiled("keras", SPECIMEN.make(), upstream)
    fit(theirs, x, y, batch_size=4)
    assert int(theirs.optimizer.iterations) == 2
    assert float(theirs.optimizer.learning_rate) == 0.0

    ours = compiled("keras", SPECIMEN.make(), keras.optimizers.SGD(decay()))
    ke.accumulate(ours, 5)
    fit(ours, x, y, batch_size=20)
    assert int(ours.optimizer.iterations) == 2
    np.testing.assert_allclose(float(ours.optimizer.learning_rate), 0.5 * 0.8, rtol=1e-6)


@pytest.mark.full
def test_trap_5_keras_moves_its_average_of_weights_at_every_microbatch():
    """Three updates, after which `fit` puts the average in the weights' place."""
    keras = keras_of("keras")
    x = np.ones((12, 2), "float32")

    def run(batch_size, k=None, **kwargs):
        model = linear("keras")
        optimizer = keras.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.5, **kwargs)
        model.compile(optimizer, rising_loss("keras"))
        ke.accumulate(model, k)
        fit(model, x, x[:, :1], batch_size=batch_size)
        return float(model.get_weights()[0][0, 0])

    plain, ours = run(4), run(4, k=4)
    theirs = run(1, gradient_accumulation_steps=4)
    # The average of -1, -2 and -3: ((-1 - 2) / 2 - 3) / 2.
    assert ours == plain == -2.25
    assert abs(theirs - plain) > 0.1


@pytest.mark.full
def test_trap_6_a_partial_window_of_keras_leaks_into_the_next_fit():
    """Three microbatches of a window of four: no update; then one more batch makes it."""
    keras = keras_of("keras")
    model = linear("keras")
    optimizer = keras.optimizers.SGD(1.0, gradient_accumulation_steps=4)
    model.compile(optimizer, rising_loss("keras"))
    fit(model, np.ones((3, 2), "float32"), np.zeros((3, 1)), batch_size=1)
    assert not model.get_weights()[0].any()
    fit(model, np.zeros((1, 2), "float32"), np.zeros((1, 1)), batch_size=1)
    np.testing.assert_allclose(model.get_weights()[0], -3 / 4)


@sampled()
@libraries
def test_trap_6_every_batch_of_ours_is_an_update(library):
    """Also the one that is too small for four microbatches."""
    model = linear(library)
    model.compile(keras_of(library).optimizers.SGD(1.0), rising_loss(library))
    ke.accumulate(model, microbatch_size=1)
    fit(model, np.ones((7, 2), "float32"), np.zeros((7, 1)), batch_size=4)
    np.testing.assert_allclose(model.get_weights()[0], -2)
    fit(model, np.zeros((1, 2), "float32"), np.zeros((1, 1)), batch_size=4)
    np.testing.assert_allclose(model.get_weights()[0], -2)


@sampled()
@libraries
def test_trap_7_zero_gradients_move_adam(library):
    """What the package gradient-accumulator feeds the optimizer between updates."""
    adam = keras_of(library).optimizers.Adam(0.1)
    layer = keras_of(library).layers.Dense(1, use_bias=False)
    layer.build((None, 1))
    layer.set_weights([np.zeros((1, 1), "float32")])
    (kernel,) = layer.trainable_variables
    adam.apply_gradients([(tf.ones((1, 1)), kernel)])
    once = layer.get_weights()[0].copy()
    for _ in range(3):
        adam.apply_gradients([(tf.zeros((1, 1)), kernel)])
    assert np.abs(layer.get_weights()[0] - once).max() > 0.1

    model = linear(library)
    model.compile(keras_of(library).optimizers.Adam(0.1), rising_loss(library))
    ke.accumulate(model, 4)
    fit(model, np.ones((4, 2), "float32"), np.zeros((4, 1)), batch_size=4)
    # One update, of the size of the rate.
    np.testing.assert_allclose(model.get_weights()[0], once[0, 0], rtol=1e-5)


@sampled()
@libraries
def test_trap_8_batch_normalization_sees_microbatches(library):
    """As documented. (`ke.layers` has one that sees the whole batch.)"""
    keras = keras_of(library)

    def run(k):
        layers = [keras.layers.Input((1,)), keras.layers.BatchNormalization(momentum=0.5)]
        model = keras.Sequential([*layers, keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        ke.accumulate(model, k)
        x = np.array([[0], [0], [4], [4]], "float32")
        fit(model, x, x, batch_size=4)
        return [float(w[0]) for w in model.layers[0].get_weights()[2:]]

    # One batch of mean 2 and variance 4; or one of 0, 0 and then one of 4, 0.
    np.testing.assert_allclose(run(None), [1.0, 0.5 + 2.0])
    np.testing.assert_allclose(run(2), [2.0, 0.25])


@sampled()
@libraries
@pytest.mark.parametrize("clip", ["clipnorm", "global_clipnorm"])
def test_trap_10_keras_3_clips_before_it_sums_over_replicas(library, clip):
    """Gradients [10, 0] and [-10, 0.5] of two replicas, clipped to a norm of 1."""
    x = np.array([[10, 0], [-10, 0.5]], "float32")

    def run(k):
        with mirrored(2).scope():
            model = linear(library)
            sgd = keras_of(library).optimizers.SGD(1.0, **{clip: 1.0})
            model.compile(sgd, rising_loss(library))
        ke.accumulate(model, k)
        model.fit(batches(x, x[:, :1], batch_size=2), verbose=0)
        return model.get_weights()[0][:, 0]

    # The mean of both, [0, 0.25], needs no clipping.
    right = [0, -0.25]
    np.testing.assert_allclose(run(1), right, atol=1e-6)
    upstream = run(None)
    if library == "keras":
        assert np.abs(upstream - right).max() > 0.1
    else:
        np.testing.assert_allclose(upstream, right, atol=1e-6)


@libraries
def test_trap_14_variables_are_excluded_from_weight_decay_before_build(library):
    """tf_keras refuses later exclusions; Keras 3.15 takes them (its check looks in vain)."""
    adamw = keras_of(library).optimizers.AdamW(0.1, weight_decay=0.5)
    layer = keras_of(library).layers.Dense(1, use_bias=False)
    layer.build((None, 1))
    adamw.build(layer.trainable_variables)
    if library == "tf_keras":
        with pytest.raises(ValueError, match="before the optimizer is built"):
            adamw.exclude_from_weight_decay(var_names=["kernel"])
    else:
        adamw.exclude_from_weight_decay(var_names=["kernel"])

    # Ours are told at the start, by the path, which both libraries know.
    ours = ke.optimizers.AdamW(0.1, weight_decay=0.5, exclude="kernel", library=library)
    layer.set_weights([np.ones((1, 1), "float32")])
    ours.apply_gradients([(tf.zeros((1, 1)), layer.trainable_variables[0])])
    np.testing.assert_array_equal(layer.get_weights()[0], 1)


@pytest.mark.full
@sampled()
@pytest.mark.parametrize("n", [1, 3])
def test_trap_15_a_ragged_batch_of_tf_keras_on_two_replicas(n):
    """The mean over the batch is wrong upstream where the replicas' shares differ."""
    x = np.array([[2, 4], [8, 6], [-1, 3]], "float32")[:n]
    y = np.array([[1.0], [2.0], [5.0]])[:n]

    def run(replicas, k):
        with mirrored(replicas).scope():
            model = linear("tf_keras", value=1.0)
            model.compile(keras_of("tf_keras").optimizers.SGD(0.1), "mse")
        ke.accumulate(model, k)
        model.fit(batches(x, y, batch_size=4), verbose=0)
        return model.get_weights()[0][:, 0] - 1

    right = run(1, None)
    np.testing.assert_allclose(run(2, 1), right, rtol=1e-5)
    np.testing.assert_allclose(run(2, 2), right, rtol=1e-5)
    upstream = run(2, None)
    if n == 1:
        np.testing.assert_allclose(upstream, right / 2, rtol=1e-5)
    else:
        assert np.abs(upstream - right).max() > 0.01


@pytest.mark.full
def test_trap_16_a_first_batch_of_one_example_on_two_replicas():
    x, y = SPECIMEN.batch(1)
    with mirrored(2).scope():
        theirs, ours = (compiled("keras", SPECIMEN.make()) for _ in range(2))
    with pytest.raises(Exception, match=r"[Ss]hape|AddN|dimension"):
        theirs.fit(batches(x, y, batch_size=4), verbose=0)
    plain = compiled("keras", SPECIMEN.make())
    ke.accumulate(ours, 2)
    for model in (ours, plain):
        model.fit(batches(x, y, batch_size=4), verbose=0)
    assert_same(ours, plain)


@pytest.mark.full
def test_trap_19_averaged_weights_are_not_swapped_back_after_predict():
    keras = keras_of("keras")
    model = linear("keras")
    model.compile(keras.optimizers.SGD(1.0, use_ema=True), rising_loss("keras"))
    x = np.ones((4, 2), "float32")
    fit(model, x, x[:, :1], batch_size=2)
    # (`fit` ended with the average in the weights' place.)
    model.set_weights([np.ones((2, 1), "float32")])
    before = model.get_weights()[0]
    model.evaluate(x, x[:, :1], callbacks=[keras.callbacks.SwapEMAWeights()], verbose=0)
    np.testing.assert_array_equal(model.get_weights()[0], before)
    model.predict(x, callbacks=[keras.callbacks.SwapEMAWeights()], verbose=0)
    assert np.abs(model.get_weights()[0] - before).max() > 0.1


@pytest.mark.full
@sampled()
@libraries
def test_trap_20_automatic_xla_is_off_under_a_strategy(library):
    """Keras 3 decides in `compile`; asked for, XLA compiles our microbatches."""
    specimen = BY_NAME[f"{library}-{'sequential' if library == 'keras' else 'functional'}"]
    x, y = specimen.batch(8)
    with mirrored(2).scope():
        if library == "keras":
            automatic = specimen.make()
            automatic.compile("sgd", "mse", jit_compile="auto")
            assert not automatic.jit_compile
        ours = compiled(library, specimen.make(), jit_compile=True)
    plain = compiled(library, specimen.make())
    ke.accumulate(ours, 2)
    for model in (ours, plain):
        model.fit(batches(x, y, sample_weights(8), batch_size=8), verbose=0)
    assert ours.jit_compile
    assert_same(ours, plain)


@pytest.mark.full
@sampled()
@libraries
def test_trap_20_plain_fit_with_xla_on_replicas(library):
    """Upstream compiles the whole step, in which replicas cannot synchronise."""
    specimen = BY_NAME[f"{library}-{'sequential' if library == 'keras' else 'functional'}"]
    with mirrored(2).scope():
        theirs = compiled(library, specimen.make(), jit_compile=True)
    with pytest.raises(tf.errors.OpError):
        theirs.fit(batches(*specimen.batch(8), batch_size=8), verbose=0)


@pytest.mark.full
def test_keras_adam_squares_the_gradients_of_a_repeated_row_one_by_one():
    """An embedding's row that occurs twice: v gets g1² + g2² instead of (g1 + g2)²."""
    keras = keras_of("keras")
    table = keras.Variable(np.zeros((2, 1), "float32"))
    adam = keras.optimizers.Adam(0.1, beta_2=0.5)
    adam.build([table])
    adam.apply([tf.IndexedSlices(tf.ones((2, 1)), tf.constant([0, 0]), (2, 1))])
    second_moment = next(v for v in adam.variables if "velocity" in v.path)
    np.testing.assert_allclose(second_moment.numpy()[0], 0.5 * (1 + 1))
