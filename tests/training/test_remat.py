"""Rematerialisation changes nothing but memory and time.

Dropout is checked by a layer whose gradient equals its loss only if both passes drew the same mask.
"""

import copy
import functools

import numpy as np
import pytest
import tensorflow as tf
from covering import contract, covering, sampled
from fit_helpers import SMALL, assert_same, batches, compiled, fit, mirrored, moved
from in_process_export import serve_here
from zoo import CLASSES, ZOO, hf_config, keras_of

import keras_efficient as ke

BY_NAME = {specimen.name: specimen for specimen in ZOO} | SMALL
BERTS = [specimen.name for specimen in ZOO if "bert" in specimen.name]
both = pytest.mark.parametrize("library", ["keras", "tf_keras"])


@pytest.fixture
def bfloat16():
    for library in ("keras", "tf_keras"):
        ke.mixed_precision("mixed_bfloat16", library=library)
    yield
    for library in ("keras", "tf_keras"):
        ke.mixed_precision("float32", library=library)


def run(name, remat, *, microbatches=None, jit_compile=False):
    specimen = BY_NAME[name]
    model = specimen.make()
    if remat:
        ke.remat(model, None if "bert" in name else "dense|attention")
    settings = {"metrics": None, "weighted_metrics": None, "jit_compile": jit_compile}
    compiled(specimen.library, model, **settings)
    if microbatches:
        ke.accumulate(model, microbatches)
    x, y = specimen.batch(30)
    fit(model, x, y, batch_size=10)
    return model


@functools.cache
def plain_run(name):
    return run(name, False)


def only(*kept, among=tuple(specimen.name for specimen in ZOO)):
    """The names of models, all but `kept` for `make test-all`."""
    marks = {name: [] if name in kept else [pytest.mark.full] for name in among}
    return [pytest.param(name, marks=mark) for name, mark in marks.items()]


def calls(layer, monkeypatch):
    """Return a list that grows with every call of a layer's own code."""
    seen, own = [], layer.call.__self__.plain
    monkeypatch.setattr(
        layer.call.__self__,
        "own",
        lambda *args, **kwargs: (seen.append(1), own(*args, **kwargs))[1],
    )
    return seen


# --- equal to a run without ----------------------------------------------------------------------


@sampled()
@pytest.mark.parametrize(
    "name", only("keras-functional", "kerashub-bert", "tf_keras-subclassed", "hugging-face-bert")
)
def test_weights_after_three_steps_are_the_same(name):
    plain = plain_run(name)
    assert moved(BY_NAME[name].make().get_weights(), plain) > 1e-2
    assert_same(run(name, True), plain, atol=1e-6)


@contract("microbatches")
@sampled()
@pytest.mark.parametrize("name", only("keras-functional", "tf_keras-subclassed"))
def test_weights_are_the_same_under_accumulation(name):
    assert_same(run(name, True, microbatches=3), plain_run(name), atol=1e-6)


@contract("xla")
@sampled()
@pytest.mark.parametrize(
    "name", only(*SMALL, among=[*SMALL, "keras-functional", "tf_keras-subclassed"])
)
def test_weights_are_the_same_under_xla(name):
    assert_same(run(name, True, jit_compile=True), plain_run(name), atol=1e-6)


TWO = ("keras-functional", "tf_keras-functional")


@contract("mixed_precision")
@sampled()
@pytest.mark.parametrize("name", only(*TWO, among=[*BERTS, *TWO]))
def test_weights_are_the_same_in_bfloat16(name, bfloat16):
    assert_same(run(name, True), run(name, False), atol=2e-3)


@sampled()
@pytest.mark.parametrize(
    "name", only("keras-subclassed", "kerashub-bert", "tf_keras-functional", "hugging-face-bert")
)
def test_a_chosen_layer_runs_twice_in_training_and_once_otherwise(name, monkeypatch):
    specimen = BY_NAME[name]
    model = compiled(specimen.library, specimen.make())
    report = ke.remat(model, None if name in BERTS else "dense")
    layer = next(la for la in model._flatten_layers() if "call" in vars(la))
    assert layer.name in report.layers[0]
    seen = calls(layer, monkeypatch)
    x, _ = specimen.batch(4)
    inputs = tf.nest.map_structure(tf.constant, x)
    flavor = ke.flavor.of(model)
    with tf.GradientTape() as tape:
        loss = tf.add_n(
            [tf.reduce_sum(t) for t in tf.nest.flatten(flavor.call(model, inputs, True))]
        )
    before = len(seen)
    assert before == 1
    tape.gradient(loss, list(map(flavor.value, model.trainable_variables)))
    assert len(seen) == 2
    flavor.call(model, inputs, False)
    assert len(seen) == 3


def test_arguments_of_every_kind_and_outputs_of_every_kind():
    import transformers

    model = transformers.TFBertForSequenceClassification(
        hf_config(output_hidden_states=True, output_attentions=True)
    )
    model(model.dummy_inputs)
    x, _ = BY_NAME["hugging-face-bert"].batch(4)
    variables = model.trainable_variables
    gradients = []
    for layers in (False, None):
        ke.remat(model, layers)
        with tf.GradientTape() as tape:
            out = model(x, training=True)
            loss = tf.reduce_sum(out.logits) + tf.reduce_sum(out.hidden_states[-1] ** 2)
            loss += tf.reduce_sum(out.attentions[0] ** 2)
        gradients.append(tape.gradient(loss, variables))
    assert sum(g is not None for g in gradients[0]) > 10
    for a, b in zip(*gradients, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_allclose(
                tf.convert_to_tensor(a), tf.convert_to_tensor(b), rtol=1e-5, atol=1e-5
            )


@sampled()
@both
def test_masks_go_through(library):
    layers = keras_of(library).layers

    def gradients(remat):
        inputs = layers.Input((None,), dtype="int32")
        x = layers.Embedding(9, 4, mask_zero=True, name="embed")(inputs)
        x = layers.MultiHeadAttention(1, 2, name="mha")(x, x)
        model = keras_of(library).Model(inputs, layers.GlobalAveragePooling1D()(x))
        rng = np.random.default_rng(0)
        model.set_weights([rng.normal(0, 1, w.shape) for w in model.get_weights()])
        if remat:
            ke.remat(model, "mha|embed")
        with tf.GradientTape() as tape:
            out = model(tf.constant([[1, 2, 0, 0], [3, 4, 5, 0]]), training=True)
            loss = tf.reduce_sum(out**2)
        flavor = ke.flavor.of(model)
        values = list(map(flavor.value, model.trainable_variables))
        return out, list(map(tf.convert_to_tensor, tape.gradient(loss, values)))

    (out, expected), (same, received) = gradients(False), gradients(True)
    np.testing.assert_allclose(out, same, rtol=1e-6)
    for a, b in zip(expected, received, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@contract("replicas")
@sampled()
@pytest.mark.parametrize("name", ["keras-sequential", "tf_keras-functional"])
def test_weights_are_the_same_on_two_replicas(name):
    specimen = BY_NAME[name]
    models = []
    for remat in (False, True):
        with mirrored(2).scope():
            model = compiled(specimen.library, specimen.make(), metrics=[], weighted_metrics=[])
        if remat:
            ke.remat(model, "dense|attention")
        model.fit(batches(*specimen.batch(24), batch_size=12), verbose=0)
        models.append(model)
    assert_same(*models, atol=1e-6)


# --- random draws and state ----------------------------------------------------------------------


@pytest.fixture
def ordered():
    """Turn off an optimization of graphs that lets weights be updated before their last reader.

    In the optimized graph of `noisy`, with plain Keras too, nothing orders the reading of a weight
    before its update: TensorFlow's dependency optimization has removed the control edge between
    them. In 2 to 5 of 100 runs the gradient of the first block is then that of the second block's
    new weight. Without that optimization, 250 of 250 runs were the same. Graphs of BERT, with and
    without this package, keep all such edges.
    """
    before = tf.config.optimizer.get_experimental_options()
    tf.config.optimizer.set_experimental_options({"dependency_optimization": False})
    yield
    value = before.get("dependency_optimization", True)
    tf.config.optimizer.set_experimental_options({"dependency_optimization": value})


def noisy(library, *, rate=0.5, seed=None, learning_rate=0.1):
    """Two blocks of dropout, times a weight `w` each; the loss is the mean of the output.

    The model is compared with itself exactly only under `ordered`.
    """
    keras = keras_of(library)

    class Block(keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.first = keras.layers.Dropout(rate, seed=seed)
            self.second = keras.layers.Dropout(rate, seed=seed)
            self.normalise = keras.layers.BatchNormalization(center=False, scale=False)
            self.w = self.add_weight(shape=(64,), initializer="ones", name="w")

        def call(self, x):
            # Without `training`: it must come from the context, the second time too.
            self.normalise(x)
            return self.second(self.first(x)) * self.w

    inputs = keras.Input((64,))
    model = keras.Model(inputs, Block(name="b")(Block(name="a")(inputs)))

    def loss(_, out):
        return tf.reduce_mean(out, -1)

    model.compile(keras.optimizers.SGD(learning_rate), loss)
    return model


@sampled()
@pytest.mark.parametrize(
    "library, how",
    covering(SMALL, ["plain", "accumulate", "eager", "xla"], strength=1),
)
def test_dropout_draws_the_same_mask_again(library, how, ordered):
    model = noisy(library)
    ke.remat(model, "^[ab]$")
    ke.accumulate(model, 3 if how == "accumulate" else None)
    if how in ("xla", "eager"):
        model.compile(
            model.optimizer,
            model.loss,
            **({"jit_compile": True} if how == "xla" else {"run_eagerly": True}),
        )
    x = np.random.default_rng(0).normal(1, 1, (12, 64)).astype("float32")
    losses = []
    for _ in range(3):
        before = [layer.w.numpy() for layer in model.layers[1:]]
        logged = fit(model, x, np.zeros((12, 1)), batch_size=12)["loss"][0]
        losses.append(logged)
        for layer, w in zip(model.layers[1:], before, strict=True):
            # The loss is linear in w, so gradient times w is the loss of the forward pass.
            change = (w - layer.w.numpy()) / 0.1
            np.testing.assert_allclose((change * w).sum(), logged, rtol=1e-3)
    # Every step draws anew.
    assert len({round(loss, 5) for loss in losses}) == 3


@sampled()
@both
def test_state_is_updated_once(library, ordered):
    x = np.random.default_rng(0).normal(1, 1, (12, 64)).astype("float32")
    models = []
    for remat in (False, True):
        model = noisy(library, rate=0.0, learning_rate=0.0)
        if remat:
            ke.remat(model, "^[ab]$")
        fit(model, x, np.zeros((12, 1)), batch_size=4)
        models.append(model)
    assert_same(*models, atol=1e-6)


def test_keras_draws_what_it_would_draw_without(ordered):
    x = np.ones((12, 64), "float32")
    models = []
    for remat in (False, True):
        model = noisy("keras", seed=7)
        if remat:
            ke.remat(model, "^[ab]$")
        fit(model, x, np.zeros((12, 1)), batch_size=4)
        models.append(model)
    assert_same(*models, atol=1e-6)
    flavor = ke.flavor.get("keras")
    states = [[v.numpy() for v in flavor.state(model)] for model in models]
    for a, b in zip(*states, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_tf_keras_draws_are_reproducible(ordered):
    x = np.ones((12, 64), "float32")
    histories = []
    for _ in range(2):
        keras_of("tf_keras").utils.set_random_seed(3)
        model = noisy("tf_keras")
        ke.remat(model, "^[ab]$")
        histories.append(fit(model, x, np.zeros((12, 1)), batch_size=4))
    assert histories[0] == histories[1]


@sampled()
@both
def test_draws_that_cannot_be_repeated_are_refused(library):
    keras = keras_of(library)

    class Shake(keras.layers.Layer):
        def call(self, x):
            return x + tf.random.normal(tf.shape(x))

    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(3), Shake(name="shake")])
    compiled(library, model)
    ke.remat(model, "shake")
    with pytest.raises(ValueError, match=r"must draw its random numbers.*RandomStandardNormal"):
        fit(model, np.ones((4, 3)), np.zeros(4), batch_size=4)
    # Nothing of it stays behind.
    ke.remat(model, False)
    fit(model, np.ones((4, 3)), np.zeros(4), batch_size=4)


@both
def test_a_layer_that_adds_a_loss_is_refused(library):
    keras = keras_of(library)

    class Adds(keras.layers.Layer):
        def call(self, x):
            self.add_loss(tf.reduce_mean(x))
            return x

    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(3), Adds(name="adds")])
    compiled(library, model)
    ke.remat(model, "adds")
    with pytest.raises(ValueError, match=r"may not add a loss in its call.*'adds'"):
        fit(model, np.ones((4, 3)), np.zeros(4), batch_size=4)


def test_upstream_keras_still_draws_another_mask():
    """Trap: under Keras 3's own RematScope the gradient is not that of the forward pass."""
    keras = keras_of("keras")
    with keras.RematScope(mode="full"):
        layer = keras.layers.Dropout(0.5)
    x = tf.ones((64, 64))
    with tf.GradientTape() as tape:
        tape.watch(x)
        out = layer(x, training=True)
    assert not np.allclose(tape.gradient(out, x), out)


# --- choosing, saving, taking away ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("kerashub-bert", "transformer_layer_0"),
        ("hugging-face-bert", "bert/encoder/layer_._0"),
        ("model-garden-bert", "transformer/layer_0"),
    ],
)
def test_blocks_are_found(name, path):
    model = BY_NAME[name].make()
    report = ke.remat(model)
    assert len(report.layers) == 1
    assert report.layers[0].endswith(path)
    assert "remat: 1 layer recomputed" in str(report)


@both
def test_ways_to_choose(library):
    model = BY_NAME[f"{library}-functional"].make()
    dense = [layer for layer in model.layers if "dense" in layer.name]
    names = tuple(layer.name for layer in dense)
    assert ke.remat(model, "dense").layers == names
    assert ke.remat(model, dense).layers == names
    assert ke.remat(model, lambda layer: layer in dense).layers == names
    # Of an attention layer and the layers inside it, the outer one.
    attention = ke.remat(model, "attention").layers
    assert len(attention) == 1 and "/" not in attention[0]
    # A new choice replaces the old.
    assert "call" not in vars(dense[0])
    assert str(ke.remat(model, False)) == "remat: off"
    assert not [layer for layer in model._flatten_layers() if "call" in vars(layer)]


@both
def test_a_layer_with_a_call_of_its_own_gets_it_back(library):
    model = BY_NAME[f"{library}-functional"].make()
    layer = model.layers[-1]
    own = layer.call
    mine = lambda *args, **kwargs: own(*args, **kwargs)  # noqa: E731
    object.__setattr__(layer, "call", mine)
    ke.remat(model, [layer])
    assert layer.call is not mine
    ke.remat(model, False)
    assert layer.call is mine


@both
def test_errors(library):
    model = BY_NAME[f"{library}-functional"].make()
    with pytest.raises(ValueError, match=r"There must be a layer.*Transformer blocks.*dense"):
        ke.remat(model)
    with pytest.raises(ValueError, match="layers='nothing', searched"):
        ke.remat(model, "nothing")
    with pytest.raises(ValueError, match=r"must be layers inside the model.*'foreign'"):
        ke.remat(model, [keras_of(library).layers.Dense(2, name="foreign")])
    with pytest.raises(TypeError, match="Put a single layer in a list"):
        ke.remat(model, model.layers[-1])
    with pytest.raises(TypeError, match="`layers` must be None, False"):
        ke.remat(model, 3)
    with pytest.raises(ValueError, match="must be built"):
        ke.remat(keras_of(library).Sequential([keras_of(library).layers.Dense(2)]))
    with pytest.raises(TypeError, match="Expected a Keras object"):
        ke.remat(object())


@sampled()
@pytest.mark.parametrize("name", only(*TWO, among=[*TWO, "kerashub-bert"]))
def test_save_and_load(name, tmp_path):
    specimen = BY_NAME[name]
    model = run(name, True)
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras_of(specimen.library).models.load_model(path)
    assert_same(loaded, model, atol=0)
    assert not [layer for layer in loaded._flatten_layers() if "call" in vars(layer)]


@contract("export")
@pytest.mark.parametrize(
    "name", only("tf_keras-functional", among=["tf_keras-functional", "hugging-face-bert"])
)
def test_saved_model_of_tf_keras(name, tmp_path):
    model = run(name, True)
    x, _ = BY_NAME[name].batch(3)
    model.save(tmp_path / "model", save_format="tf")
    loaded = keras_of("tf_keras").models.load_model(tmp_path / "model")
    expected = tf.nest.flatten(model(x, training=False))[-1]
    received = tf.nest.flatten(loaded(x, training=False))[-1]
    np.testing.assert_allclose(expected, received, atol=1e-6)
    # And it trains on.
    before = moved(BY_NAME[name].make().get_weights(), model)
    fit(model, *BY_NAME[name].batch(10), batch_size=10)
    assert moved(BY_NAME[name].make().get_weights(), model) != before


@contract("export")
@sampled()
@pytest.mark.parametrize("name", only("kerashub-bert", "hugging-face-bert", among=BERTS))
def test_export(name, tmp_path, monkeypatch):
    serve_here(monkeypatch)
    model = run(name, True)
    x, _ = BY_NAME[name].batch(3)
    report = ke.export(model, tmp_path / "m", sample=x, latency=False)
    assert next(iter(report.signature["outputs"].values()))["shape"] == [None, CLASSES]


@sampled()
@both
def test_a_copied_layer_is_its_own(library):
    """A copy must not call the code of the layer it was copied from."""
    model = BY_NAME[f"{library}-functional"].make()
    ke.remat(model, "dense")
    layer = model.layers[-1]
    if library == "tf_keras":
        pytest.skip("tf_keras layers hold thread-local state, which cannot be copied")
    twin = copy.deepcopy(layer)
    assert "call" not in vars(twin) or twin.call.__self__.layer is twin
