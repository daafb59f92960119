"""The training step on a TPU, on a strategy of CPUs that stands in for it.

There is no TPU here. The stand-in is a `MirroredStrategy` that the package takes for a
`TPUStrategy`. Its per-replica variables refuse sparse updates, as those of a TPU do.
"""

import contextlib

import pytest
import tensorflow as tf
from covering import covering, sampled
from fit_helpers import SMALL, assert_same, assert_same_history, compiled, fit
from zoo import keras_of

import keras_efficient as ke
from keras_efficient.training import _replicas as replicas


class StandIn(tf.distribute.MirroredStrategy):
    """Two CPUs, which sum without TensorFlow's collectives."""

    def __init__(self):
        super().__init__(["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice())


@pytest.fixture
def tpu(monkeypatch):
    monkeypatch.setattr(tf.distribute, "TPUStrategy", StandIn)
    return StandIn()


@contextlib.contextmanager
def static_shapes():
    """Forbid what has a result of a data-dependent shape; list the functions compiled by XLA."""
    compiled, function, where = [], tf.function, tf.where

    def no_unique(*args, **kwargs):
        raise AssertionError("tf.unique has a result of a data-dependent shape")

    def where_of_three(condition, *values, **kwargs):
        assert values or kwargs, "tf.where of one argument has a data-dependent shape"
        return where(condition, *values, **kwargs)

    def spy(*args, jit_compile=None, **kwargs):
        compiled.extend(["function"] * bool(jit_compile))
        return function(*args, jit_compile=jit_compile, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tf, "unique", no_unique)
        patch.setattr(tf, "where", where_of_three)
        patch.setattr(tf, "function", spy)
        yield compiled


def run(specimen, strategy=None, examples=12, *, jit_compile=False, callbacks=(), rho=None):
    """Train with microbatches; return the model, its history and the sizes of the microbatches."""
    keras, sizes = keras_of(specimen.library), set()

    class Loss(keras.losses.Loss):
        def call(self, y_true, y_pred):
            sizes.add(y_pred.shape[0])
            cross_entropy = keras.losses.sparse_categorical_crossentropy
            return cross_entropy(y_true, y_pred, from_logits=True)

    with (strategy or tf.distribute.get_strategy()).scope():
        model = compiled(
            specimen.library,
            specimen.make(),
            loss=Loss(),
            jit_compile=jit_compile,
            weighted_metrics=None,
        )
    ke.accumulate(model, 3)
    ke.sam(model, rho)
    x, y = specimen.batch(2 * examples)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(examples, drop_remainder=True)
    history = fit(model, data, batch_size=None, callbacks=list(callbacks))
    # The model is built on a whole batch.
    return model, history, sizes - {examples // model.distribute_strategy.num_replicas_in_sync}


def norms():
    return [ke.callbacks.GradientNorm(), ke.callbacks.GradientNoiseScale()]


@sampled()
@pytest.mark.parametrize("specimen, examples", covering(SMALL.values(), (12, 14), strength=1))
def test_microbatches_on_a_tpu_have_static_shapes_whatever_jit_compile_says(
    specimen, examples, tpu
):
    """With `jit_compile=False`, as in examples/tpu.py, XLA got slices of a dynamic size."""
    with static_shapes() as compiled_by_xla:
        model, history, sizes = run(specimen, tpu, examples)
    # 6 examples per replica are 2 + 2 + 2, and 7 are 3 + 3 and a rest of 1.
    assert sizes == ({2} if examples == 12 else {1, 3})
    assert compiled_by_xla == []
    plain, expected, _ = run(specimen, None, examples)
    assert_same(model, plain)
    assert_same_history(history, expected)


CASES = {
    "norms and windows": {"callbacks": lambda: [*norms(), ke.callbacks.BatchSizeSchedule({0: 2})]},
    "sam and jit_compile": {"rho": 0.1, "jit_compile": True},
}


@sampled()
@pytest.mark.parametrize("specimen, name", covering(SMALL.values(), list(CASES), strength=1))
def test_no_shape_on_a_tpu_depends_on_the_data(specimen, name, tpu):
    """Norms of an embedding's gradients, updates of several batches, and a second pass."""
    case = CASES[name]
    callbacks = case.get("callbacks", list)
    options = {key: value for key, value in case.items() if key != "callbacks"}
    with static_shapes() as compiled_by_xla:
        model, history, sizes = run(specimen, tpu, callbacks=callbacks(), **options)
    assert sizes == {2}
    # A TPU compiles the whole step; no function in it is to be compiled by itself.
    assert compiled_by_xla == []
    plain, expected, _ = run(specimen, None, callbacks=callbacks(), rho=case.get("rho"))
    assert_same(model, plain)
    # The noise scale depends on the size of the microbatches.
    names = history.keys() - {"gradient_noise_scale"}
    assert_same_history({n: history[n] for n in names}, {n: expected[n] for n in names}, atol=1e-4)


@pytest.mark.parametrize("library", ["keras", pytest.param("tf_keras", marks=pytest.mark.full)])
def test_under_xla_repeated_rows_are_summed_without_tf_unique(library):
    """A microbatch's gradient of an embedding has a row as often as the token occurs."""
    with static_shapes():
        model, history, sizes = run(SMALL[library], jit_compile=True, callbacks=norms())
    assert sizes == {4}
    plain, expected, _ = run(SMALL[library], callbacks=norms())
    assert_same(model, plain)
    assert_same_history(history, expected, atol=1e-3)


def test_the_experimental_strategy_is_a_tpu_too(monkeypatch):
    """TensorFlow has two classes of that name, of which neither is the other's subclass."""
    for module in (tf.distribute, tf.distribute.experimental):
        with monkeypatch.context() as patch:
            strategy = StandIn()
            assert not replicas.on_tpu(strategy)
            patch.setattr(module, "TPUStrategy", StandIn)
            assert replicas.on_tpu(strategy) and not replicas.on_tpu()
            with strategy.scope():
                assert replicas.on_tpu()
