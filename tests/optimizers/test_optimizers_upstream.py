"""Faults of the libraries' own optimizers are still there, and not in this package's."""

import numpy as np
import pytest
import tensorflow as tf
from covering import sampled
from formulas import adafactor, lamb
from test_optimizers_equations import SHAPES, run, variables
from zoo import keras_of

import keras_efficient as ke

libraries = pytest.mark.parametrize("library", ["keras", "tf_keras"])
LAMB = {"beta_1": 0.875, "beta_2": 0.96875, "epsilon": 2**-20}


def test_lamb_of_keras_3_decays_outside_the_trust_ratio_and_adapts_biases():
    """Trap 13."""
    keras = keras_of("keras")
    upstream = keras.optimizers.Lamb(2**-6, weight_decay=0.5, **LAMB)
    # The only exclusion it has.
    upstream.exclude_from_weight_decay(var_names=["bias"])
    before, after, steps = run(upstream, "keras", "float64")
    kernel, bias = list(SHAPES).index("kernel"), list(SHAPES).index("bias")
    paper = lamb(before[kernel], steps[kernel], 2**-6, 0.5)
    assert np.abs(after[kernel] - paper).max() > 1e-3
    paper = lamb(before[bias], steps[bias], 2**-6, 0.0, excluded=True)
    assert np.abs(after[bias] - paper).max() > 1e-3
    adapted = lamb(before[bias], steps[bias], 2**-6, 0.0)
    np.testing.assert_allclose(after[bias], adapted, atol=1e-10)


@libraries
def test_lamb_agrees_with_model_garden(library):
    reason = "needs Model Garden: pip install tf-models-official"
    theirs = pytest.importorskip("official.modeling.optimization.lamb", reason=reason)
    upstream = theirs.LAMB(2**-6, weight_decay_rate=0.5, exclude_from_weight_decay=["bias"], **LAMB)
    ours = ke.optimizers.LAMB(2**-6, weight_decay=0.5, exclude="bias", library=library, **LAMB)
    _, expected, _ = run(upstream, "tf_keras", "float32")
    _, after, _ = run(ours, library, "float32")
    for a, b in zip(after, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


@sampled()
@libraries
def test_adafactor_of_the_libraries_cuts_the_rate_of_a_schedule(library):
    keras = keras_of(library)
    rate = keras.optimizers.schedules.PiecewiseConstantDecay([100], [1.0, 0.5])
    upstream = keras.optimizers.Adafactor(rate, relative_step=False)
    before, after, steps = run(upstream, library, "float64")
    asked = adafactor(before[0], steps[0], 1.0, 0.0, relative_step=False)
    cut = adafactor(before[0], steps[0], 1.0, 0.0, relative_step=True)
    assert np.abs(after[0] - asked).max() > 0.1
    np.testing.assert_allclose(after[0], cut, atol=1e-6)


@libraries
def test_adafactor_of_the_libraries_holds_a_second_moment_of_full_size(library):
    sizes = []
    for optimizer in (
        keras_of(library).optimizers.Adafactor(),
        ke.optimizers.Adafactor(library=library),
    ):
        optimizer.build(variables(library, "float32"))
        # But for the counter and the rate.
        slots = [v for v in optimizer.variables if len(v.shape)]
        sizes.append(sum(int(np.prod(v.shape)) for v in slots))
    whole = sum(int(np.prod(shape)) for shape in SHAPES.values())
    factored = (3 + 4) + (3 * 2 + 3 * 4) + 4 + (6 + 4)
    assert sizes == [whole + factored - 4, factored]


@sampled()
@libraries
def test_adafactor_of_the_libraries_is_nan_at_a_row_and_a_column_of_zeros(library):
    gradient = np.ones((3, 3), "float32")
    gradient[0] = gradient[:, 0] = 0
    kernels = []
    for optimizer in (
        keras_of(library).optimizers.Adafactor(0.1),
        ke.optimizers.Adafactor(0.1, library=library),
    ):
        layer = keras_of(library).layers.Dense(3, use_bias=False)
        layer.build((None, 3))
        layer.set_weights([np.ones((3, 3), "float32")])
        optimizer.apply_gradients([(tf.constant(gradient), layer.trainable_variables[0])])
        kernels.append(layer.get_weights()[0])
    theirs, ours = kernels
    assert np.isnan(theirs[0, 0])
    np.testing.assert_array_equal(ours == 1, gradient == 0)
    assert np.isfinite(ours).all()


@libraries
def test_the_libraries_count_repeated_rows_apart_in_the_global_norm(library):
    rows = tf.IndexedSlices(tf.ones((2, 1)), tf.constant([0, 0]), (2, 1))
    moves = []
    for optimizer in (
        keras_of(library).optimizers.SGD(1.0, global_clipnorm=1.0),
        ke.optimizers.SGD(1.0, momentum=0.0, global_clipnorm=1.0, library=library),
    ):
        layer = keras_of(library).layers.Embedding(2, 1)
        layer.build((None,))
        layer.set_weights([np.zeros((2, 1), "float32")])
        optimizer.apply_gradients([(rows, layer.trainable_variables[0])])
        moves.append(-layer.get_weights()[0][0, 0])
    # The gradient of row 0 is 2: clipped to a norm of 1 it is 1, and not 2 / √2.
    np.testing.assert_allclose(moves, [2**0.5, 1.0], atol=1e-6)


def test_keras_3_squares_repeated_rows_apart():
    library = "keras"
    rows = tf.IndexedSlices(tf.ones((2, 1)), tf.constant([0, 0]), (2, 1))
    tables = []
    for optimizer in (
        keras_of(library).optimizers.AdamW(0.1, weight_decay=0.0, beta_2=0.5),
        ke.optimizers.AdamW(0.1, weight_decay=0.0, beta_2=0.5, library=library),
    ):
        layer = keras_of(library).layers.Embedding(2, 1)
        layer.build((None,))
        for _ in range(2):
            optimizer.apply_gradients([(rows, layer.trainable_variables[0])])
        tables.append(float(np.array(optimizer._velocities[0])[0, 0]))
    # v = (1 - 0.5²) 2²
    np.testing.assert_allclose(tables, [1.5, 3.0], atol=1e-6)
