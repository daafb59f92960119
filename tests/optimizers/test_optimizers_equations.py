"""Each optimizer computes the equation in its docstring, in both libraries."""

import numpy as np
import pytest
import tensorflow as tf
from covering import covering, sampled
from formulas import EQUATIONS, adafactor, sgd
from zoo import keras_of

import keras_efficient as ke

LIBRARIES = ["keras", "tf_keras"]
libraries = pytest.mark.parametrize("library", LIBRARIES)
kinds = pytest.mark.parametrize("kind", EQUATIONS)

SHAPES = {"kernel": (3, 4), "query/kernel": (3, 2, 4), "bias": (4,), "embeddings": (6, 4)}
#: The rows of the embedding that each step touches: one several times, some never.
ROWS = [1, 3, 1, 1]
STEPS = 5


def variables(library, dtype, seed=0):
    """Return variables of four kinds, with paths."""
    rng = np.random.default_rng(seed)
    made = []
    for name, shape in SHAPES.items():
        value = rng.normal(0, 1, shape).astype(dtype)
        if library == "keras":
            made.append(keras_of(library).Variable(value, dtype=dtype, name=name.replace("/", "_")))
        else:
            made.append(tf.Variable(value, name=name))
    return made


def gradients(dtype, seed=1):
    """Return gradients as TensorFlow gives them, and dense: lists of steps, per variable."""
    rng = np.random.default_rng(seed)
    given, dense = [], []
    for _ in range(STEPS):
        whole = [rng.normal(0, 1, shape).astype(dtype) for shape in SHAPES.values()]
        values = whole[-1][: len(ROWS)]
        whole[-1] = np.zeros_like(whole[-1])
        np.add.at(whole[-1], ROWS, values)
        slices = tf.IndexedSlices(tf.constant(values), tf.constant(ROWS), SHAPES["embeddings"])
        given.append([*map(tf.constant, whole[:-1]), slices])
        dense.append([g.astype("float64") for g in whole])
    return given, dense


def run(optimizer, library, dtype):
    """Return the values before and after the steps, and each variable's dense gradients."""
    made, (given, dense) = variables(library, dtype), gradients(dtype)
    before = [np.array(v).astype("float64") for v in made]
    for step in given:
        optimizer.apply_gradients(zip(step, made, strict=True))
    return before, [np.array(v) for v in made], list(zip(*dense, strict=True))


@sampled(3)
@pytest.mark.parametrize(
    ("kind", "library", "dtype"), covering(EQUATIONS, LIBRARIES, ["float64", "float32"])
)
def test_five_updates_are_the_equation(kind, library, dtype):
    tolerance = {"float64": 1e-10, "float32": 1e-5}[dtype]
    equation, arguments = EQUATIONS[kind]
    optimizer = getattr(ke.optimizers, kind)(
        2**-6, weight_decay=0.5, exclude=r"bias$", library=library, **arguments
    )
    before, after, steps = run(optimizer, library, dtype)
    for name, start, end, gs in zip(SHAPES, before, after, steps, strict=True):
        excluded = name == "bias"
        expected = equation(start, gs, 2**-6, 0.0 if excluded else 0.5, excluded)
        np.testing.assert_allclose(end, expected, rtol=0, atol=tolerance, err_msg=name)
        assert np.abs(end - start).max() > 1e-3


@pytest.mark.parametrize(("kind", "library"), covering(EQUATIONS, LIBRARIES, strength=1))
def test_a_group_has_a_rate_and_a_decay_of_its_own(kind, library):
    equation, arguments = EQUATIONS[kind]
    groups = {
        "query": ke.optimizers.ParamGroup(rate_multiplier=0.5, weight_decay=0.25),
        "kernel": ke.optimizers.ParamGroup(rate_multiplier=0.0),
        "bias": ke.optimizers.ParamGroup(exclude=True),
    }
    optimizer = getattr(ke.optimizers, kind)(
        2**-6, weight_decay=0.5, groups=groups, library=library, **arguments
    )
    before, after, steps = run(optimizer, library, "float64")
    expected = [
        before[0],
        equation(before[1], steps[1], 2**-7, 0.25),
        equation(before[2], steps[2], 2**-6, 0.0, True),
        equation(before[3], steps[3], 2**-6, 0.5),
    ]
    for ours, value in zip(after, expected, strict=True):
        np.testing.assert_allclose(ours, value, rtol=0, atol=1e-10)


@libraries
@pytest.mark.parametrize("relative_step", [True, False])
def test_adafactors_constant_rate_falls_only_with_relative_step(library, relative_step):
    groups = {"kernel": ke.optimizers.ParamGroup(0.5)}
    optimizer = ke.optimizers.Adafactor(
        1.0, relative_step=relative_step, groups=groups, library=library
    )
    before, after, steps = run(optimizer, library, "float64")
    for name, start, end, gs in zip(SHAPES, before, after, steps, strict=True):
        multiplier = 0.5 if "kernel" in name else 1.0
        expected = adafactor(
            start, gs, 1.0, 0.0, relative_step=relative_step, multiplier=multiplier
        )
        np.testing.assert_allclose(end, expected, rtol=0, atol=1e-10, err_msg=name)


@libraries
def test_adafactor_follows_a_schedule_beyond_the_relative_step(library):
    rate = ke.schedules.warmup_linear(1.0, warmup_steps=0, total_steps=10**6)
    optimizer = ke.optimizers.Adafactor(rate, library=library)
    before, after, steps = run(optimizer, library, "float64")
    expected = adafactor(before[0], steps[0], 1.0, 0.0, relative_step=False)
    np.testing.assert_allclose(after[0], expected, rtol=0, atol=1e-4)


@libraries
def test_sgd_with_nesterovs_momentum(library):
    optimizer = ke.optimizers.SGD(2**-6, momentum=0.875, nesterov=True, library=library)
    before, after, steps = run(optimizer, library, "float64")
    for start, end, gs in zip(before, after, steps, strict=True):
        np.testing.assert_allclose(
            end, sgd(start, gs, 2**-6, 0.0, nesterov=True), rtol=0, atol=1e-10
        )


@libraries
def test_a_trust_ratio_is_1_where_a_norm_is_0(library):
    keras = keras_of(library)
    layer = keras.layers.Dense(2)
    layer.build((None, 2))
    layer.set_weights([np.ones((2, 2)), np.zeros(2)])
    optimizer = ke.optimizers.LAMB(0.25, weight_decay=0.0, library=library)
    step = [tf.zeros((2, 2)), tf.ones(2)]
    optimizer.apply_gradients(zip(step, layer.trainable_variables, strict=True))
    kernel, bias = layer.get_weights()
    np.testing.assert_array_equal(kernel, np.ones((2, 2)))
    np.testing.assert_allclose(bias, [-0.25, -0.25], atol=1e-5)


@libraries
@kinds
def test_a_repeated_embedding_row_gets_the_square_of_its_sum(library, kind):
    """In the update, and in the global norm."""
    tables = []
    for gradient in (
        tf.IndexedSlices(tf.ones((2, 1)), tf.constant([0, 0]), (2, 1)),
        tf.constant([[2.0], [0.0]]),
    ):
        layer = keras_of(library).layers.Embedding(2, 1)
        layer.build((None,))
        layer.set_weights([np.ones((2, 1), "float32")])
        optimizer = getattr(ke.optimizers, kind)(0.1, global_clipnorm=1.0, library=library)
        for scale in (0.25, 3.0):
            optimizer.apply_gradients([(times(gradient, scale), layer.trainable_variables[0])])
        tables.append(layer.get_weights()[0])
    np.testing.assert_allclose(*tables, rtol=0, atol=1e-7)


def times(gradient, scale):
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(gradient.values * scale, gradient.indices, gradient.dense_shape)
    return gradient * scale


@libraries
def test_global_clipnorm_is_passed_on(library):
    made, (given, dense) = variables(library, "float64"), gradients("float64")
    before = [np.array(v) for v in made]
    optimizer = ke.optimizers.SGD(1.0, momentum=0.0, global_clipnorm=0.5, library=library)
    optimizer.apply_gradients(zip(given[0], made, strict=True))
    moves = [b - np.array(v) for b, v in zip(before, made, strict=True)]
    norm = np.sqrt(sum((g**2).sum() for g in dense[0]))
    for move, gradient in zip(moves, dense[0], strict=True):
        np.testing.assert_allclose(move, gradient * 0.5 / norm, atol=1e-7)


@libraries
def test_a_rate_set_in_training_holds_for_all_groups(library):
    """As `ReduceLROnPlateau` does."""
    groups = {"bias": ke.optimizers.ParamGroup(rate_multiplier=0.5)}
    optimizer = ke.optimizers.SGD(1.0, momentum=0.0, groups=groups, library=library)
    made, (given, dense) = variables(library, "float64"), gradients("float64")
    before = [np.array(v) for v in made]
    optimizer.build(made)
    optimizer.learning_rate = 2.0**-6
    optimizer.apply_gradients(zip(given[0], made, strict=True))
    for name, b, v, g in zip(SHAPES, before, made, dense[0], strict=True):
        multiplier = 0.5 if name == "bias" else 1.0
        np.testing.assert_allclose(b - np.array(v), g * multiplier * 2.0**-6, atol=1e-12)
    assert float(optimizer.learning_rate) == 2.0**-6
