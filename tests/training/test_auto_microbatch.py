"""`microbatch_size="auto"` on devices that run out of memory.

TensorFlow tries for 10 s before it reports that an allocation failed, so most of these tests let
an operation raise the same error in the same place at once.
"""

import warnings

import numpy as np
import pytest
import tensorflow as tf
from covering import covering, sampled
from fit_helpers import (
    SMALL,
    assert_same,
    assert_same_history,
    batches,
    compiled,
    mirrored,
    moved,
    sample_weights,
)
from zoo import CLASSES, LENGTH, VOCABULARY, ZOO, keras_of

import keras_efficient as ke
from keras_efficient import flavor as flavors
from keras_efficient.training import (
    _example_counter as example_counter,
    _train_step_hook as train_step_hook,
)

HUGGING_FACE = next(specimen for specimen in ZOO if specimen.name == "hugging-face-bert")
libraries = pytest.mark.parametrize("library", list(SMALL))
rotated = pytest.mark.parametrize("library, replicas", covering(SMALL, (1, 2), strength=1))
#: The id that makes a slice expensive.
LONG = VOCABULARY - 1


def needing(too_much, *inputs):
    """0.0, from an operation that has not enough memory if `too_much(*inputs)`."""

    eager = tf.executing_eagerly()

    def take(*inputs):
        if too_much(*inputs):
            if eager:
                raise tf.errors.ResourceExhaustedError(None, None, "no more memory")
            # TensorFlow makes a ResourceExhaustedError of it.
            raise MemoryError("no more memory")
        return np.float32(0)

    return tf.stop_gradient(tf.ensure_shape(tf.numpy_function(take, inputs, tf.float32), []))


def wasting(size):
    """0.0; and, for any size but 0, terabytes."""
    return tf.reduce_sum(tf.zeros([tf.cast(size, tf.int32) * 2**26, 2**14]))


def made(library, replicas=1, *, limit=None, normalised=False, dropout=0.0, rate=0.5, **kwargs):
    """A model that needs too much memory for a slice of more than `limit` examples, one LONG."""
    keras = keras_of(library)

    class Hungry(keras.layers.Layer):
        def call(self, inputs):
            z, ids = inputs
            if limit is None:
                return z
            return z + needing(lambda ids: len(ids) > limit() and (ids == LONG).any(), ids)

    with mirrored(replicas).scope():
        ids = keras.layers.Input((LENGTH,), dtype="int32")
        x = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(VOCABULARY, 8)(ids))
        if normalised:
            x = keras.layers.BatchNormalization(momentum=0.5)(x)
        if dropout:
            x = keras.layers.Dropout(dropout, seed=1)(x)
        model = keras.Model(ids, Hungry()([keras.layers.Dense(CLASSES)(x), ids]))
        rng = np.random.default_rng(0)
        values = [rng.uniform(0.1, 0.5, w.shape).astype(w.dtype) for w in model.get_weights()]
        # (Keras 3 has the seed's state among a model's weights, an int.)
        values = [v if v.dtype == "float32" else w
                  for v, w in zip(values, model.get_weights(), strict=True)]  # fmt: skip
        model.set_weights(values)
        return compiled(library, model, keras.optimizers.SGD(rate), **kwargs)


def data(n=24, replicas=1):
    x, y = SMALL["keras"].batch(n)
    x %= LONG
    # Late in the first batch of 12: the first slices are done when memory runs out.
    x[9:, 0] = LONG
    if replicas == 2:
        # On both: one that waits for the other in an all-reduce cannot be had back.
        x[4:6, 0] = LONG
    return x, y


def train(model, n=24, batch_size=12, replicas=1, **kwargs):
    dataset = batches(*data(n, replicas), sample_weights(n), batch_size=batch_size)
    return model.fit(dataset, shuffle=False, verbose=0, **kwargs).history


def said(record):
    return [str(w.message) for w in record if "Out of memory" in str(w.message)]


@sampled()
@pytest.mark.parametrize(
    "library, case",
    covering(
        SMALL,
        [(1, {"steps_per_execution": 2}), (2, {}), (1, {}), (1, {"run_eagerly": True})],
        strength=1,
    ),
)
def test_the_run_is_the_one_that_had_the_memory(library, case):
    """20 examples: the last batch is smaller. One warning names both sizes."""
    replicas, setting = case
    plain = made(library)
    expected = train(plain, 20, replicas=replicas)
    model = ke.accumulate(
        made(library, replicas, limit=lambda: 3, **setting), microbatch_size="auto"
    )
    with pytest.warns(UserWarning, match="Out of memory") as record:
        found = train(model, 20, replicas=replicas)
    assert_same(plain, model, 1e-6)
    assert_same_history(found, expected)
    assert model.optimizer.iterations.numpy() == 2
    first = 12 // replicas
    sizes = f"of {first} examples did not fit, from now on they have 3."
    (message,) = said(record)
    assert sizes in message
    assert "no result changes" in message


@sampled()
@libraries
def test_nothing_is_counted_twice(library):
    """Moving statistics, metrics, examples and random seeds: all as with the size from the start.

    The first slices of 6 had changed them, when the second failed.
    """
    # (tf_keras draws dropout from the device's own state, which nobody can put back.)
    dropout = 0.5 if library == "keras" else 0.0

    def run(size, limit=None):
        keras_of(library).utils.set_random_seed(0)
        model = made(library, limit=limit, normalised=True, dropout=dropout)
        ke.accumulate(model, microbatch_size=size)
        counts = example_counter.attach(model)
        history = train(model)
        return model, history, list(counts.read())

    expected, history, counts = run(3)
    with pytest.warns(UserWarning, match="of 12 examples did not fit, from now on they have 3"):
        model, found, counted = run("auto", lambda: 3)
    assert counted == counts == [24, 0, 0]
    assert_same_history(found, history, 1e-6)
    assert_same(expected, model, 1e-6)
    for a, b in zip(flavors.of(model).state(model), flavors.of(model).state(expected), strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-6)


def test_memory_that_is_not_there():
    """No error of ours: the device's allocator gives up."""
    model, plain = made("keras"), made("keras")
    call = model.layers[-1].call

    def hungry(inputs):
        z = call(inputs)
        n = tf.shape(z)[0]
        return z + tf.cond(n > 6, lambda: wasting(n), lambda: 0.0)

    vars(model.layers[-1])["call"] = hungry
    ke.accumulate(model, microbatch_size="auto")
    with pytest.warns(UserWarning, match="of 12 examples did not fit, from now on they have 6"):
        found = train(model)
    assert_same_history(found, train(plain))
    assert_same(plain, model, 1e-6)


@pytest.mark.full
def test_hugging_face_with_its_own_step():
    """The first forward pass of a batch fails; its own metrics do not count it."""
    x, y = HUGGING_FACE.batch(12)

    def run(auto):
        model = HUGGING_FACE.make()
        plain = model.call

        def call(inputs, **kwargs):
            outputs = plain(inputs, **kwargs)
            n = tf.shape(outputs.logits)[0]
            outputs.logits += needing(lambda n: n > 3, n)
            return outputs

        if auto:
            vars(model)["call"] = call
            ke.accumulate(model, microbatch_size="auto")
        model.compile(keras_of("tf_keras").optimizers.SGD(0.5), metrics=["accuracy"])
        return model, model.fit(batches(x, y, batch_size=6), shuffle=False, verbose=0).history

    expected, history = run(False)
    with pytest.warns(UserWarning, match="of 6 examples did not fit, from now on they have 3"):
        model, found = run(True)
    assert_same(expected, model)
    assert_same_history(found, history)


@sampled()
@rotated
def test_memory_that_runs_out_later(library, replicas):
    """In a second `fit`, which changes nothing; its second epoch and a third know the size."""
    limits = [100]

    class Shrink(ke.flavor.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            limits[:] = [2]

    plain = made(library)
    expected = train(plain, epochs=3, replicas=replicas)
    model = ke.accumulate(made(library, replicas, limit=lambda: limits[0]), microbatch_size="auto")
    with pytest.warns(UserWarning, match="Out of memory") as record:
        found = train(model, epochs=1, replicas=replicas)
        more = train(model, replicas=replicas, epochs=3, initial_epoch=1, callbacks=[Shrink()])
    found = {name: values + more[name] for name, values in found.items()}
    assert_same(plain, model, 1e-6)
    assert_same_history(found, expected)
    (message,) = said(record)
    size = 12 // replicas
    assert f"of {size} examples did not fit, from now on they have 2." in message
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        train(model, replicas=replicas)
    assert said(record) == []


@sampled()
@libraries
def test_not_even_one_example(library):
    model = ke.accumulate(made(library, limit=lambda: 0), microbatch_size="auto")
    before = model.get_weights()
    with pytest.raises(RuntimeError, match=r"Not even one example .* ke\.remat\(model\)"):
        train(model)
    assert moved(before, model) == 0
    assert model.optimizer.iterations.numpy() == 0


@sampled()
@libraries
def test_memory_that_runs_out_in_the_optimizer(library):
    """Some weights may have changed: the batch is not repeated."""
    full = []

    class Hungry(keras_of(library).optimizers.SGD):
        def update_step(self, gradient, *args):
            gradient = tf.convert_to_tensor(gradient)
            # Like an optimizer's own arrays, these are made once there is a gradient.
            with tf.control_dependencies([gradient]):
                gradient += needing(lambda: full)
            super().update_step(gradient, *args)

    model = ke.accumulate(made(library), microbatch_size="auto")
    compiled(library, model, Hungry(0.1))
    train(model)
    assert model.optimizer.iterations.numpy() == 2
    full.append(True)
    with pytest.raises(
        RuntimeError, match=r"(?s)while the optimizer changed the weights.*Adafactor"
    ):
        train(model)


@rotated
def test_xla_traces_every_size(library, replicas, monkeypatch):
    """XLA needs static sizes. The error is made up, since XLA does not waste arrays on a CPU."""
    plain, function, sizes = made(library), tf.function, []
    expected = train(plain)

    def failing(one_step=None, **kwargs):
        run = function(one_step, **kwargs)
        if getattr(one_step, "__name__", "") != "one_step":
            return run
        sizes.append(kwargs["jit_compile"])

        def maybe(data):
            if len(sizes) < 3:
                raise tf.errors.ResourceExhaustedError(None, None, "made up")
            return run(data)

        return maybe

    model = made(library, replicas, jit_compile=True)
    ke.accumulate(model, microbatch_size="auto")
    monkeypatch.setattr(tf, "function", failing)
    with pytest.warns(
        UserWarning, match=f"of {12 // replicas} examples did not fit, .* {3 - (replicas > 1)}\\."
    ):
        found = train(model)
    # What replicas do together is not compiled; their microbatches are.
    assert sizes == [replicas == 1] * 3
    assert_same(plain, model, 1e-5)
    assert_same_history(found, expected)


@libraries
def test_an_update_of_several_batches_is_refused(library):
    model = ke.accumulate(made(library), microbatch_size="auto")
    with pytest.raises(
        ValueError, match=r"Received: BatchSizeSchedule with microbatch_size='auto'"
    ):
        train(model, callbacks=[ke.callbacks.BatchSizeSchedule({0: 2})])


def test_several_workers_are_refused(monkeypatch):
    model = ke.accumulate(made("keras"), microbatch_size="auto")
    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", tf.distribute.Strategy)
    with pytest.raises(
        ValueError, match=r"microbatch_size='auto' needs one process.*on one worker"
    ):
        train_step_hook.of(model).training_step.make_train_function()


def test_a_broken_all_reduce_is_explained(monkeypatch):
    """As TensorFlow says it when one replica fails alone, for as long as the process lives."""
    function = tf.function

    def failing(one_step=None, **kwargs):
        def fail(data):
            raise tf.errors.InternalError(None, None, "Collective ops is aborted by: cancelled")

        own = getattr(one_step, "__name__", "") == "one_step"
        return fail if own else function(one_step, **kwargs)

    model = ke.accumulate(made("keras"), microbatch_size="auto")
    monkeypatch.setattr(tf, "function", failing)
    with pytest.raises(RuntimeError, match=r"One replica ran out of memory .* was at 12 examples"):
        train(model)
