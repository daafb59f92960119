"""Switching accumulation on and off, wrong settings, and what it must leave alone."""

import numpy as np
import pytest
import tensorflow as tf
from covering import covering, sampled
from fit_helpers import (
    SMALL as SMALL_BY_LIBRARY,
    assert_same,
    assert_same_history,
    compiled,
    fit,
    moved,
    sample_weights,
)
from zoo import CLASSES, LENGTH, VOCABULARY, ZOO, keras_of

import keras_efficient as ke
from keras_efficient.training import _microbatch_loop as splitting

BY_NAME = {specimen.name: specimen for specimen in ZOO}
SMALL = list(SMALL_BY_LIBRARY.values())
both = pytest.mark.parametrize("specimen", SMALL, ids=repr)
libraries = pytest.mark.parametrize("library", ["keras", "tf_keras"])


def spied(monkeypatch):
    """The microbatch sizes of every step traced from now on."""
    sizes = []
    sum_over = splitting.sum_over

    def spy(function, data, size, zeros, **kwargs):
        sizes.append(tf.get_static_value(size))
        return sum_over(function, data, size, zeros, **kwargs)

    monkeypatch.setattr("keras_efficient.training._training_step.sum_over", spy)
    return sizes


def test_both_arguments_are_refused():
    with pytest.raises(ValueError, match=r"not both\. Received: microbatches=2, microbatch_size=3"):
        ke.accumulate(SMALL[0].make(), 2, microbatch_size=3)


@pytest.mark.parametrize("name", ["microbatches", "microbatch_size"])
def test_anything_but_a_positive_int_is_refused(name):
    model = SMALL[0].make()
    for value in (0, -1, True, 2.0, "2"):
        message = f"`{name}` must be a positive int. Received: {value!r}"
        with pytest.raises(ValueError, match=message):
            ke.accumulate(model, **{name: value})


def test_anything_but_a_keras_model_is_refused():
    with pytest.raises(TypeError, match="Expected a Keras object"):
        ke.accumulate(tf.Module(), 2)


@both
def test_more_microbatches_than_examples_are_refused(specimen):
    model = ke.accumulate(compiled(specimen.library, specimen.make()), 5)
    data = tf.data.Dataset.from_tensor_slices(specimen.batch(8)).batch(4, drop_remainder=True)
    with pytest.raises(ValueError, match="microbatches=5 for a batch of 4"):
        model.fit(data, verbose=0)


@sampled(2)
@pytest.mark.parametrize("specimen", ZOO, ids=repr)
def test_none_gives_the_model_its_own_step_back(specimen):
    model = specimen.make()
    before = set(vars(model))
    ke.accumulate(model, 2)
    assert "train_step" in vars(model)
    ke.accumulate(model, None)
    assert model.train_step == type(model).train_step.__get__(model)
    assert not {"train_step", "_keras_efficient_step"} & set(vars(model))
    assert set(vars(model)) - before <= {"train_function"}


@both
def test_none_without_accumulation_changes_nothing(specimen):
    model = specimen.make()
    assert ke.accumulate(model, None) is model
    assert "train_step" not in vars(model)


@sampled()
@both
def test_the_last_setting_counts_before_and_after_compile_and_fit(specimen, monkeypatch):
    sizes = spied(monkeypatch)
    model = specimen.make()
    x, y = specimen.batch(12)
    ke.accumulate(model, microbatch_size=2)
    ke.accumulate(model, microbatch_size=3)
    compiled(specimen.library, model)
    fit(model, x, y)
    assert set(sizes) == {3}
    sizes.clear()
    ke.accumulate(model, microbatch_size=4)
    fit(model, x, y)
    assert set(sizes) == {4}
    sizes.clear()
    ke.accumulate(model, None)
    fit(model, x, y)
    assert sizes == []
    plain = compiled(specimen.library, specimen.make())
    fit(plain, x, y, epochs=3)
    assert_same(model, plain)


@sampled()
@both
def test_a_call_from_within_fit_is_refused_and_one_after_it_counts(specimen, monkeypatch):
    class Meddler(ke.flavor.Callback):
        def on_train_batch_end(self, batch, logs=None):
            ke.accumulate(self.model, microbatch_size=2)

    sizes = spied(monkeypatch)
    model = ke.accumulate(compiled(specimen.library, specimen.make()), microbatch_size=3)
    x, y = specimen.batch(12)
    with pytest.raises(RuntimeError, match="cannot change while `fit` runs"):
        fit(model, x, y, batch_size=6, callbacks=[Meddler()])
    fit(model, x, y)
    assert sizes[-1] == 2
    # `train_on_batch` uses the setting, too.
    ke.accumulate(model, microbatch_size=4)
    model.train_on_batch(x, y)
    assert sizes[-1] == 4


@sampled()
@pytest.mark.parametrize(
    "specimen, setting",
    covering(SMALL, [{"run_eagerly": True}, {"steps_per_execution": 2}], strength=1),
)
def test_other_ways_to_run_a_step(specimen, setting):
    def run(k):
        model = compiled(specimen.library, specimen.make(), **setting)
        ke.accumulate(model, k)
        x, y = specimen.batch(24)
        return model, fit(model, x, y, sample_weights(24), batch_size=6)

    (plain, history), (model, accumulated) = run(None), run(4)
    assert_same(model, plain)
    assert_same_history(accumulated, history)


@sampled()
@both
def test_evaluate_and_predict_are_untouched(specimen):
    model, plain = (compiled(specimen.library, specimen.make()) for _ in range(2))
    ke.accumulate(model, 3)
    x, y = specimen.batch(10)
    evaluated = model.evaluate(x, y, batch_size=5, verbose=0)
    assert evaluated == plain.evaluate(x, y, batch_size=5, verbose=0)
    np.testing.assert_array_equal(
        model.predict(x, batch_size=5, verbose=0), plain.predict(x, batch_size=5, verbose=0)
    )


@sampled()
@pytest.mark.parametrize("specimen, suffix", covering(SMALL, [".keras", ".weights.h5"], strength=1))
def test_a_model_is_saved_and_loaded_with_accumulation_on(specimen, suffix, tmp_path):
    keras = keras_of(specimen.library)
    model = compiled(specimen.library, specimen.make(), keras.optimizers.Adam(0.01))
    ke.accumulate(model, 3)
    x, y = specimen.batch(12)
    fit(model, x, y)
    path = str(tmp_path / f"model{suffix}")
    if suffix == ".keras":
        model.save(path)
        loaded = keras.models.load_model(path)
    else:
        model.save_weights(path)
        loaded = specimen.make()
        loaded.load_weights(path)
    assert_same(loaded, model, 0)
    assert "train_step" not in vars(loaded)
    if suffix == ".keras":
        ke.accumulate(loaded, 2)
        fit(loaded, x, y)
        fit(model, x, y)
        assert_same(loaded, model)


@sampled()
@both
def test_changing_what_is_trainable(specimen):
    def run(k):
        model = specimen.make()
        x, y = specimen.batch(12)
        ke.accumulate(model, k)
        model.layers[-1].trainable = False
        compiled(specimen.library, model)
        frozen = model.layers[-1].get_weights()
        fit(model, x, y)
        np.testing.assert_array_equal(model.layers[-1].get_weights()[0], frozen[0])
        model.layers[-1].trainable = True
        compiled(specimen.library, model)
        fit(model, x, y)
        assert np.abs(model.layers[-1].get_weights()[0] - frozen[0]).max() > 1e-3
        return model

    assert_same(run(3), run(None))


def with_unused_layer(library):
    keras = keras_of(library)

    class Partial(keras.Model):
        def __init__(self):
            super().__init__()
            self.embed = keras.layers.Embedding(VOCABULARY, 8)
            self.head = keras.layers.Dense(CLASSES)
            self.unused = keras.layers.Dense(4)
            self.unused.build((None, 8))

        def call(self, ids):
            return self.head(tf.reduce_mean(self.embed(ids), axis=1))

    model = Partial()
    model(np.ones((1, LENGTH), "int32"))
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.5, w.shape) for w in model.get_weights()])
    return model


def dense(optimizer):
    """An optimizer class that gets no sparse gradients.

    Keras 3's Adam squares the gradients of a repeated row one by one: see the upstream tests.
    """

    class Dense(optimizer):
        def apply_gradients(self, grads_and_vars):
            pairs = [(g, v) for g, v in grads_and_vars if g is not None]
            return super().apply_gradients([(tf.convert_to_tensor(g), v) for g, v in pairs])

    return Dense


@sampled()
@libraries
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_a_variable_without_gradient_keeps_its_value_under_weight_decay(library):
    keras = keras_of(library)
    x, y = SMALL[0].batch(12)

    def run(k):
        model = with_unused_layer(library)
        optimizer = dense(keras.optimizers.AdamW)(0.1, weight_decay=0.5, epsilon=1e-2)
        compiled(library, model, optimizer)
        before = model.unused.get_weights()
        ke.accumulate(model, k)
        fit(model, x, y, epochs=2)
        for old, new in zip(before, model.unused.get_weights(), strict=True):
            np.testing.assert_array_equal(new, old)
        return model

    assert_same(run(3), run(None))


@sampled()
@both
def test_rows_of_an_embedding_that_no_example_has_keep_their_value(specimen):
    model = compiled(specimen.library, specimen.make())
    table = next(w for w in model.get_weights() if w.shape[0] == VOCABULARY)
    ke.accumulate(model, 3)
    x, y = specimen.batch(12)
    x %= 20
    fit(model, x, y)
    new = next(w for w in model.get_weights() if w.shape[0] == VOCABULARY)
    np.testing.assert_array_equal(new[20:], table[20:])
    assert np.abs(new[np.unique(x)] - table[np.unique(x)]).max(axis=1).min() > 0


@sampled()
@both
def test_adam_does_to_embeddings_what_it_does_to_dense_gradients(specimen):
    def run(k):
        adam = keras_of(specimen.library).optimizers.Adam
        adam = (adam if k else dense(adam))(0.05, epsilon=1e-2)
        model = ke.accumulate(compiled(specimen.library, specimen.make(), adam), k)
        x, y = specimen.batch(24)
        # Other rows in every batch, so that Adam's updates of rows without a gradient matter.
        x[:12] %= 20
        x[12:] = 20 + x[12:] % 20
        fit(model, x, y, epochs=2)
        return model

    assert_same(run(3), run(None))


def with_check(library):
    """A model that refuses the id 49."""
    keras = keras_of(library)

    class Check(keras.layers.Layer):
        def call(self, ids):
            good = tf.debugging.assert_less(ids, 49, message="no such id")
            with tf.control_dependencies([good] if good is not None else []):
                return tf.identity(ids)

    ids = keras.layers.Input((LENGTH,), dtype="int32")
    x = keras.layers.Embedding(VOCABULARY, 8)(Check()(ids))
    x = keras.layers.Dense(CLASSES)(keras.layers.GlobalAveragePooling1D()(x))
    model = keras.Model(ids, x)
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.5, w.shape) for w in model.get_weights()])
    return compiled(library, model)


@sampled()
@libraries
def test_a_step_that_fails_half_way_leaves_no_residue(library):
    x, y = SMALL[0].batch(12)
    x %= 40
    bad = x.copy()
    bad[-1, -1] = 49
    plain = with_check(library)
    before = plain.get_weights()
    fit(plain, x, y, epochs=2)
    assert moved(before, plain) > 1e-2

    model = ke.accumulate(with_check(library), 3)
    fit(model, x, y)
    after_one = model.get_weights()
    # The first two microbatches are good, the third is not.
    with pytest.raises(tf.errors.InvalidArgumentError, match="no such id"):
        fit(model, bad, y)
    for old, new in zip(after_one, model.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)
    fit(model, x, y)
    assert_same(model, plain)


@sampled()
@pytest.mark.parametrize(
    "name",
    [
        "keras-functional",
        "tf_keras-functional",
        pytest.param("hugging-face-bert", marks=pytest.mark.full),
    ],
)
def test_microbatches_are_a_loop_not_copies(name):
    specimen = BY_NAME[name]
    data = specimen.batch(16)

    def products(k):
        model = ke.accumulate(compiled(specimen.library, specimen.make()), k)
        step = tf.function(lambda data: model.train_step(data), autograph=False)
        graph = step.get_concrete_function(data).graph.as_graph_def()
        nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
        return sum("MatMul" in node.op or node.op == "Einsum" for node in nodes)

    assert products(2) == products(8) > 0


@pytest.mark.full
@sampled()
@both
def test_sums_follow_a_change_of_jit_compile(specimen):
    """Embedding rows are summed sparsely without XLA and densely with it."""
    x, y = specimen.batch(8)
    model = ke.accumulate(compiled(specimen.library, specimen.make(), jit_compile=False), 2)
    plain = compiled(specimen.library, specimen.make())
    fit(model, x, y, batch_size=8)
    fit(plain, x, y, batch_size=8)
    compiled(specimen.library, model, jit_compile=True)
    compiled(specimen.library, plain)
    fit(model, x, y, batch_size=8)
    fit(plain, x, y, batch_size=8)
    assert_same(model, plain)


@pytest.mark.full
@both
def test_our_adamw_sees_no_difference(specimen):
    """Repeated rows and all: embeddings get the same update with and without accumulation."""
    x, y = specimen.batch(24)
    models = []
    for microbatches in (None, 3):
        optimizer = ke.optimizers.AdamW(1e-2, library=specimen.library)
        model = compiled(specimen.library, specimen.make(), optimizer)
        models.append(ke.accumulate(model, microbatches))
        fit(model, x, y, epochs=2)
    assert_same(*models)
