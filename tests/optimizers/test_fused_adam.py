"""AdamW's fused update gives the numbers of the library's own, and the same slots."""

import numpy as np
import pytest
import tensorflow as tf
from fit_helpers import mirrored
from test_optimizers_equations import SHAPES, variables
from test_optimizers_training import scaled

import keras_efficient as ke
from keras_efficient.optimizers._mixins import make_optimizer_class

libraries = pytest.mark.parametrize("library", ["keras", "tf_keras"])
#: The rows of the embedding that each step touches: one several times, one first in the third step,
#: and row 4 never.
ROWS = [[1, 3, 1, 1], [0, 1, 3, 3], [2, 2, 0, 5], [5, 1, 2, 3], [0, 0, 0, 0]]
TABLE = list(SHAPES).index("embeddings")


def make(library, fused=True, **arguments):
    """Return an AdamW with a schedule, exclusions and multipliers; `fused` or by the library."""
    flavor = ke.flavor.get(library)
    rate = ke.schedules.warmup_linear(0.05, warmup_steps=2, total_steps=20).wrap(flavor)
    arguments = {
        "weight_decay": 0.1,
        "epsilon": 1e-6,
        "exclude": "bias$",
        "groups": {"query": ke.optimizers.ParamGroup(0.5, weight_decay=0.2)},
        **arguments,
    }
    if fused:
        cls = type(ke.optimizers.AdamW(library=library))
    else:
        cls = make_optimizer_class(flavor, "LibraryAdamW", "AdamW", None)
    return cls(rate, **arguments)


def gradients(step, dtype="float32", share=1.0):
    rng = np.random.default_rng(step)
    given = [tf.constant(rng.normal(0, 1, s) * share, dtype) for s in SHAPES.values()]
    rows, shape = tf.constant(ROWS[step % 5]), tf.constant(SHAPES["embeddings"])
    given[TABLE] = tf.IndexedSlices(given[TABLE][: len(ROWS[0])], rows, shape)
    return given


def updates(optimizer, made, **options):
    """Return a `tf.function` that applies the gradients of one step."""
    optimizer.build(made)

    @tf.function(reduce_retracing=True, **options)
    def update(given):
        optimizer.apply_gradients(zip(given, made, strict=True))

    return update


def train(optimizer, library, dtype="float32", steps=5, **options):
    """Return the variables and slots after some steps, and the types of the graph's operations."""
    made = variables(library, dtype)
    update = updates(optimizer, made, **options)
    for step in range(steps):
        update(gradients(step, dtype))
    graph = update.get_concrete_function(gradients(0, dtype)).graph
    return state(optimizer, made), [operation.type for operation in graph.get_operations()]


def state(optimizer, made):
    slots = [*optimizer._momentums, *optimizer._velocities]
    return [np.array(variable) for variable in (*made, *slots)]


def assert_equal_states(ours, theirs, tolerance=1e-6):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@libraries
@pytest.mark.parametrize(
    "arguments",
    [{}, {"global_clipnorm": 0.5}, {"clipnorm": 0.5}, {"clipvalue": 0.3}, {"beta_1": 0.0}],
    ids=str,
)
def test_fused_updates_are_the_librarys(library, arguments):
    ours, operations = train(make(library, **arguments), library)
    theirs, others = train(make(library, fused=False, **arguments), library)
    assert_equal_states(ours, theirs)
    assert operations.count("ResourceApplyAdam") == len(SHAPES)
    assert "ResourceApplyAdam" not in others
    # The rows of the embedding are added in place, unless the first moment has no memory.
    expected = 0 if "beta_1" in arguments else 2
    assert operations.count("ResourceScatterAdd") == expected
    # Without this, TensorFlow copies a slot that was scattered to at every dense update.
    assert operations.count("DisableCopyOnRead") == expected


@libraries
def test_float64_is_fused_too(library):
    ours, operations = train(make(library), library, "float64")
    theirs, _ = train(make(library, fused=False), library, "float64")
    assert_equal_states(ours, theirs, 1e-9)
    assert operations.count("ResourceApplyAdam") == len(SHAPES)


@libraries
def test_rows_that_no_batch_has_touched_only_decay(library):
    rate = ke.schedules.warmup_linear(0.05, warmup_steps=2, total_steps=20)
    (*values, _), _ = train(make(library), library)
    start = variables(library, "float32")[TABLE]
    expected = np.array(start)[4] * np.prod([1 - 0.1 * float(rate(step)) for step in range(5)])
    np.testing.assert_allclose(values[TABLE][4], expected, rtol=1e-6)
    np.testing.assert_array_equal(values[len(SHAPES) + TABLE][4], np.zeros(4))


@libraries
def test_settings_that_the_operation_lacks_are_left_to_the_library(library):
    for arguments, dtype in (({"amsgrad": True}, "float32"), ({}, "float16"), ({}, "bfloat16")):
        ours, operations = train(make(library, **arguments), library, dtype, steps=2)
        theirs, _ = train(make(library, fused=False, **arguments), library, dtype, steps=2)
        assert "ResourceApplyAdam" not in operations
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


@libraries
def test_xla_compiles_the_fused_update(library):
    """With a dense gradient of the embedding: XLA has no data-dependent shapes."""
    ours, _ = train(make(library, global_clipnorm=0.5), library, steps=3, jit_compile=True)
    theirs, _ = train(make(library, fused=False, global_clipnorm=0.5), library, steps=3)
    assert_equal_states(ours, theirs)


@libraries
def test_eager_updates_are_the_same(library):
    optimizer, made = make(library), variables(library, "float32")
    for step in range(3):
        optimizer.apply_gradients(zip(gradients(step), made, strict=True))
    theirs, _ = train(make(library, fused=False), library, steps=3)
    assert_equal_states(state(optimizer, made), theirs)


@libraries
def test_the_fused_update_runs_on_each_replica(library):
    strategy = mirrored()
    with strategy.scope():
        optimizer, made = make(library), variables(library, "float32")
        optimizer.build(made)

    @tf.function
    def update(step):
        # The libraries sum the gradients of the replicas.
        strategy.run(
            lambda: optimizer.apply_gradients(zip(gradients(step, share=0.5), made, strict=True))
        )

    for step in range(3):
        update(step)
    theirs, _ = train(make(library, fused=False), library, steps=3)
    assert_equal_states(state(optimizer, made), theirs)
    for variable in made:
        first, second = strategy.experimental_local_results(ke.flavor.get(library).value(variable))
        np.testing.assert_array_equal(first.numpy(), second.numpy())


@libraries
def test_a_resumed_optimizer_goes_on_to_the_last_bit(library):
    flavor = ke.flavor.get(library)
    whole, made = make(library), variables(library, "float32")
    update = updates(whole, made)
    for step in range(3):
        update(gradients(step))
    resumed, copies = make(library), variables(library, "float32", seed=5)
    again = updates(resumed, copies)
    for new, old in zip((*copies, *resumed.variables), (*made, *whole.variables), strict=True):
        flavor.value(new).assign(flavor.value(old))
    for step in (3, 4):
        update(gradients(step))
        again(gradients(step))
    for a, b in zip(state(whole, made), state(resumed, copies), strict=True):
        np.testing.assert_array_equal(a, b)


@libraries
def test_a_step_that_overflows_leaves_weights_and_slots(library):
    inner, made = make(library), variables(library, "float32")
    optimizer = scaled(inner, library)
    update = updates(optimizer, made)
    if library == "tf_keras":
        optimizer.get_scaled_loss(tf.constant(1.0))
    update(gradients(0))
    before = state(inner, made)
    broken = gradients(1)
    broken[TABLE] = tf.IndexedSlices(
        broken[TABLE].values * np.inf, broken[TABLE].indices, broken[TABLE].dense_shape
    )
    update(broken)
    for a, b in zip(before, state(inner, made), strict=True):
        np.testing.assert_array_equal(a, b)
    update(gradients(2))
    assert np.abs(made[0] - before[0]).max() > 0


@libraries
def test_reads_between_updates_are_not_changed_by_later_ones(library):
    """The slots are updated in place only while nothing else holds their memory."""
    optimizer, made = make(library), variables(library, "float32")
    update = updates(optimizer, made)
    update(gradients(0))
    slot = ke.flavor.get(library).value(optimizer._momentums[TABLE])
    held, copy = slot.read_value(), np.array(slot.read_value())
    update(gradients(1))
    np.testing.assert_array_equal(held, copy)
    assert np.abs(np.array(slot) - copy).max() > 0
