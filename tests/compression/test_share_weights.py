"""`ke.share_weights`: one variable with the summed gradients, in every kind of model."""

import numpy as np
import pytest
import tensorflow as tf
from compression_helpers import libraries, mostly, outputs, quick
from covering import contract, covering, sampled
from fit_helpers import batches, fit, mirrored
from in_process_export import in_process as in_process
from padded_models import hugging_face, kerashub
from zoo import CLASSES, FEW, LENGTH, VOCABULARY, Specimen, fixed, keras_of, model_garden

import keras_efficient as ke
from keras_efficient.architecture._layer_paths import layer_paths
from keras_efficient.architecture._weights import all_weights
from keras_efficient.parametrize._merge import TIES
from keras_efficient.parametrize._parametrized_layer import parametrized_layers


def block_class(library):
    keras = keras_of(library)

    class Block(keras.layers.Layer):
        def __init__(self, width=16, **kwargs):
            super().__init__(**kwargs)
            self.width = width
            self.attention = keras.layers.MultiHeadAttention(2, 4, name="attention")
            self.inner = keras.layers.Dense(width, activation="relu", name="inner")
            self.outer = keras.layers.Dense(8, name="outer")
            self.norm = keras.layers.LayerNormalization(name="norm")

        def build(self, shape):
            if library == "keras":
                self.attention.build(shape, shape)
            else:
                self.attention._build_from_signature(shape, shape)
            self.inner.build(shape)
            self.outer.build((*shape[:-1], self.width))
            self.norm.build(shape)
            self.built = True

        def call(self, x):
            x = self.norm(x + self.attention(x, x))
            return x + self.outer(self.inner(x))

        def get_config(self):
            return {**super().get_config(), "width": self.width}

    return Block


BLOCKS = {library: block_class(library) for library in ("keras", "tf_keras")}


def stacked(library, widths=(16, 16, 16), outputs=CLASSES, pool=True):
    """A functional model of blocks; with `outputs=VOCABULARY` one that may be tied."""
    layers = keras_of(library).layers
    ids = layers.Input((LENGTH,), dtype="int32", name="ids")
    x = layers.Embedding(VOCABULARY, 8, name="tokens")(ids)
    for index, width in enumerate(widths):
        x = BLOCKS[library](width, name=f"block_{index}")(x)
    x = layers.GlobalAveragePooling1D()(x) if pool else x
    return fixed(keras_of(library).Model(ids, layers.Dense(outputs, name="head")(x)))


def _model_garden():
    networks, models = model_garden().networks, model_garden().models
    encoder = networks.BertEncoder(
        vocab_size=VOCABULARY,
        hidden_size=8,
        num_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        dropout_rate=0.0,
        attention_dropout_rate=0.0,
        max_sequence_length=16,
    )
    return fixed(models.BertClassifier(encoder, num_classes=CLASSES, dropout_rate=0.0))


MADE = {"kerashub-bert": kerashub, "hugging-face-bert": hugging_face}
MADE |= {"model-garden-bert": _model_garden}
DEEP = [
    *(Specimen(f"{n}-blocks", n, lambda n=n: stacked(n, (16, 16)), lambda x: x) for n in BLOCKS),
    *(Specimen(s.name, s.library, MADE[s.name], s.features) for s in FEW if s.name in MADE),
]
TIED = [
    Specimen(f"{n}-tied", n, lambda n=n: stacked(n, (16,), VOCABULARY), lambda x: x) for n in BLOCKS
]
CASES = [
    *((s, "layers") for s in DEEP),
    *((s, "key_value") for s in DEEP),
    *((s, "key_value") for s in FEW if s.name.endswith("-subclassed")),
    *((s, "embeddings") for s in TIED),
]
OWN = [(s, what) for s, what in CASES if s in [*DEEP[:2], *TIED]]


def some_cases(cases, *names):
    """Parametrize by cases, of which `make test` runs those with these names."""
    marks = [() if f"{s}-{what}" in names else pytest.mark.full for s, what in cases]
    params = [pytest.param(*case, marks=m) for case, m in zip(cases, marks, strict=True)]
    return pytest.mark.parametrize("specimen, what", params, ids=str)


def train(specimen, model, x, y, optimizer, **kwargs):
    quick(specimen.library, model, optimizer)
    return fit(model, x, y, **kwargs)


def values(model):
    return {w.path: w.value.numpy() for w in all_weights(model)}


def ties(model):
    return [tie for _, layer in layer_paths(model) for tie in vars(layer).get(TIES, ())]


@sampled()
@some_cases(
    CASES,
    "keras-blocks-key_value",
    "tf_keras-blocks-layers",
    "keras-tied-embeddings",
    "tf_keras-tied-embeddings",
)
def test_one_variable_with_the_sum_of_the_gradients(specimen, what):
    x, y = specimen.batch(12)
    shared, plain = specimen.make(), specimen.make()
    shapes = {w.path: w.size for w in all_weights(shared)}
    report = ke.share_weights(shared, what)
    gone = sum(shapes[path] for path in report.tied)
    assert report.parameters_before == sum(shapes.values())
    assert report.parameters == sum(shapes.values()) - gone < report.parameters_before
    assert sum(w.size for w in all_weights(shared)) == report.parameters
    assert len(shared.trainable_variables) == len(plain.trainable_variables) - len(report.tied)
    assert f"share_weights: {what}, {len(report.tied)} weights" in str(report)

    # A model with the same values, in which each layer has its own variables.
    ke.share_weights(plain, what)
    ke.merge(plain)
    np.testing.assert_allclose(outputs(plain, x), outputs(shared, x), atol=1e-6)
    before = [w.value.numpy() for w in all_weights(plain)]
    start = values(shared)
    for model in (shared, plain):
        if model is shared:
            ke.accumulate(model, microbatches=3)
        train(specimen, model, x, y, keras_of(specimen.library).optimizers.SGD(0.1))
    deltas = [w.value.numpy() - old for w, old in zip(all_weights(plain), before, strict=True)]
    # By position, since Keras numbers the names of models.
    moved = dict(zip(shapes, deltas, strict=True))
    for path, source in report.tied.items():
        delta = moved.pop(path)
        moved[source] = moved[source] + (delta.T if what == "embeddings" else delta)
    after = values(shared)
    assert after.keys() == moved.keys()
    for path, delta in moved.items():
        np.testing.assert_allclose(after[path] - start[path], delta, atol=1e-5, err_msg=path)


@contract("files")
@sampled()
@some_cases(
    CASES,
    "keras-blocks-layers",
    "tf_keras-blocks-key_value",
    "keras-tied-embeddings",
    "tf_keras-tied-embeddings",
)
def test_trains_saves_and_separates(specimen, what, tmp_path):
    x, y = specimen.batch(12)
    model = specimen.make()
    count, expected_names = len(model.get_weights()), [w.path for w in all_weights(model)]
    keras = keras_of(specimen.library)
    report = ke.share_weights(model, what)
    history = train(specimen, model, x, y, keras.optimizers.Adam(0.01), epochs=4)["loss"]
    assert history[-1] < history[0]
    expected, file = outputs(model, x), str(tmp_path / "shared.weights.h5")
    model.save_weights(file)

    again = specimen.make()
    ke.share_weights(again, what, start="mean")
    again.load_weights(file)
    np.testing.assert_allclose(outputs(again, x), expected, atol=1e-6)

    plain = specimen.make()
    plain.load_weights(file)
    np.testing.assert_allclose(outputs(plain, x), expected, atol=1e-6)

    before = values(model)
    merged = ke.merge(model)
    assert set(report.tied) <= set(merged.folded)
    assert not ties(model) and not parametrized_layers(model)
    assert len(model.get_weights()) == count
    assert [w.path for w in all_weights(model)] == expected_names
    np.testing.assert_allclose(outputs(model, x), expected, atol=1e-6)
    for path, source in report.tied.items():
        own = values(model)[path]
        np.testing.assert_array_equal(own.T if what == "embeddings" else own, before[source])
    fit(model, x, y)
    now = values(model)
    apart = [
        np.abs((now[p].T if what == "embeddings" else now[p]) - now[s]).max()
        for p, s in report.tied.items()
    ]
    assert max(apart) > 0


@sampled()
@some_cases(
    OWN,
    "keras-blocks-layers",
    "tf_keras-blocks-key_value",
    "keras-tied-embeddings",
    "tf_keras-tied-embeddings",
)
@pytest.mark.usefixtures("in_process")
def test_is_exported_as_it_computes(specimen, what, tmp_path):
    x, _ = specimen.batch(4)
    model = specimen.make()
    ke.share_weights(model, what)
    report = ke.export(model, str(tmp_path / "model"), sample=x, latency=False)
    assert report.directory.exists()


@sampled()
@pytest.mark.parametrize("specimen, what", OWN, ids=str)
def test_a_model_file_holds_copies(specimen, what, tmp_path):
    x, _ = specimen.batch(4)
    model = specimen.make()
    ke.share_weights(model, what)
    file = str(tmp_path / "model.keras")
    model.save(file)
    keras = keras_of(specimen.library)
    loaded = keras.models.load_model(file, custom_objects={"Block": BLOCKS[specimen.library]})
    assert len(loaded.weights) > len(model.weights)
    np.testing.assert_allclose(outputs(loaded, x), outputs(model, x), atol=1e-6)


@sampled()
@some_cases(
    CASES,
    "keras-blocks-layers",
    "tf_keras-blocks-key_value",
    "kerashub-bert-key_value",
    "hugging-face-bert-layers",
    "keras-tied-embeddings",
    "tf_keras-tied-embeddings",
)
def test_undo_gives_each_layer_its_own(specimen, what):
    x, _ = specimen.batch(4)
    model = specimen.make()
    names = [specimen.library, *(tuple(w.shape) for w in model.weights)]
    shared = ke.share_weights(model, what)
    expected = outputs(model, x)
    shared.undo()
    np.testing.assert_allclose(outputs(model, x), expected, atol=1e-6)
    assert names[1:] == [tuple(w.shape) for w in model.weights]
    assert not ties(model)
    ke.share_weights(model, what)
    with pytest.raises(ValueError, match="A sharing can be undone once"):
        shared.undo()


@mostly("tf_keras")
def test_groups_of_consecutive_blocks(library):
    model = stacked(library, (16,) * 4)
    report = ke.share_weights(model, "layers", groups=2)
    kernels = [model.get_layer(f"block_{i}").inner.kernel for i in range(4)]
    variables = [getattr(k, "value", k) if library == "keras" else k for k in kernels]
    assert variables[0] is variables[1] and variables[2] is variables[3]
    assert variables[0] is not variables[2]
    assert all(p.startswith(("block_1/", "block_3/")) for p in report.tied)


@mostly("keras")
def test_a_choice_of_blocks(library):
    model = stacked(library)
    report = ke.share_weights(model, "layers", layers="block_[12]")
    assert all(p.startswith("block_2/") for p in report.tied)
    assert all(s.startswith("block_1/") for s in report.tied.values())


@sampled()
@libraries
def test_starts_with_the_mean(library):
    plain, model = stacked(library), stacked(library)
    ke.share_weights(model, "layers", start="mean")
    kernels = [values(plain)[f"block_{i}/inner/kernel"] for i in range(3)]
    shared = values(model)["block_0/inner/kernel"]
    np.testing.assert_allclose(shared, np.mean(kernels, 0), atol=1e-6)
    tied = stacked(library, (), VOCABULARY)
    before = values(tied)
    ke.share_weights(tied, "embeddings", start="mean")
    mean = (before["tokens/embeddings"] + before["head/kernel"].T) / 2
    np.testing.assert_allclose(values(tied)["tokens/embeddings"], mean, atol=1e-6)


@mostly("keras")
def test_layers_then_key_value_are_undone_in_reverse_order(library):
    x = np.arange(2 * LENGTH).reshape(2, LENGTH) % VOCABULARY
    model = stacked(library)
    count = len(model.weights)
    first = ke.share_weights(model, "layers")
    second = ke.share_weights(model, "key_value")
    assert len(second.tied) == 2
    expected = outputs(model, x)
    with pytest.raises(ValueError, match="Sharings are undone in reverse order"):
        first.undo()
    second.undo()
    assert sum(np.prod(w.shape) for w in model.weights) == first.parameters
    first.undo()
    assert len(model.weights) == count
    np.testing.assert_allclose(outputs(model, x), expected, atol=1e-6)
    ke.share_weights(model, "key_value")
    ke.share_weights(model, "layers")
    expected = outputs(model, x)
    ke.merge(model)
    assert len(model.weights) == count
    np.testing.assert_allclose(outputs(model, x), expected, atol=1e-6)


CALLERS = ("prune", "cluster", "lora")
TRANSFORMED = [
    *covering(DEEP[:2], CALLERS, strength=1),
    *(pytest.param(s, c, marks=pytest.mark.full) for s in DEEP[2:] for c in CALLERS),
]


@sampled()
@pytest.mark.parametrize("specimen, caller", TRANSFORMED, ids=str)
def test_a_transform_of_a_shared_weight_serves_all_its_layers(specimen, caller):
    x, y = specimen.batch(12)
    model = specimen.make()
    ke.share_weights(model, "layers")
    arguments = {"prune": (0.5,), "cluster": (4,), "lora": (2,)}[caller]
    getattr(ke, caller)(model, *arguments)
    keras = keras_of(specimen.library)
    train(specimen, model, x, y, keras.optimizers.Adam(0.01), epochs=3)
    expected = outputs(model, x)
    shared = {w.path: w for w in all_weights(model) if len(w.owners) > 1}
    assert shared
    ke.merge(model)
    np.testing.assert_allclose(outputs(model, x), expected, atol=1e-5)
    kernels = [w for w in all_weights(model) if w.kind == "kernel"]
    if caller != "lora":
        for weight in kernels[:-1]:
            value = weight.value.numpy()
            many = np.mean(value == 0) if caller == "prune" else len(np.unique(value))
            assert many >= 0.4 if caller == "prune" else many <= 4, weight.path


@mostly("tf_keras")
def test_clustered_embeddings_are_read_by_the_tied_output_too(library):
    model = stacked(library, (), VOCABULARY)
    x = np.arange(2 * LENGTH).reshape(2, LENGTH) % VOCABULARY
    ke.share_weights(model, "embeddings")
    ke.cluster(model, 4, layers="tokens")
    expected = outputs(model, x)
    assert len(np.unique(np.asarray(model.get_layer("head").kernel))) == 4
    ke.merge(model)
    assert len(np.unique(values(model)["head/kernel"])) == 4
    np.testing.assert_allclose(outputs(model, x), expected, atol=1e-6)


@contract("replicas", "xla")
@sampled()
@pytest.mark.parametrize("library, variant", covering(BLOCKS, [(2, False), (1, True)], strength=1))
def test_two_replicas_or_xla_train_as_one_replica(library, variant):
    specimen = next(s for s in DEEP if s.library == library)
    x, y = specimen.batch(12)
    runs = []
    for replicas, jit in ((1, False), variant):
        with mirrored(replicas).scope():
            model = quick(library, stacked(library, (8, 8)), jit_compile=jit)
        ke.share_weights(model, "layers")
        ke.share_weights(model, "key_value")
        ke.accumulate(model, 2)
        model.fit(batches(x, y, batch_size=12), epochs=2, verbose=0)
        runs.append(values(model))
        ke.merge(model)
    for other in runs[1:]:
        for path, value in runs[0].items():
            np.testing.assert_allclose(value, other[path], atol=1e-5, err_msg=path)


@contract("mixed_precision")
@sampled()
@pytest.mark.parametrize("library, what", covering(BLOCKS, ["layers", "embeddings"], strength=1))
def test_mixed_precision(library, what):
    keras_of(library).mixed_precision.set_global_policy("mixed_bfloat16")
    model = stacked(library, (16, 16), VOCABULARY)
    x = np.arange(2 * LENGTH).reshape(2, LENGTH) % VOCABULARY
    before = [w.dtype for w in model.weights]
    shared = ke.share_weights(model, what)
    out = model(x)
    assert np.asarray(out).shape == (2, VOCABULARY) and "bfloat16" in str(out.dtype)
    model.compile("sgd", "mse", jit_compile=False)
    fit(model, x, np.zeros((2, VOCABULARY)), batch_size=2)
    shared.undo()
    assert [w.dtype for w in model.weights] == before
    assert "bfloat16" in str(model(x).dtype)


@mostly("keras")
def test_frozen_layers_stay_frozen(library):
    model = stacked(library)
    model.get_layer("block_1").trainable = False
    trained = len(model.trainable_weights)
    shared = ke.share_weights(model, "key_value")
    shared.undo()
    assert len(model.trainable_weights) == trained


# --- bad use -------------------------------------------------------------------------------------


@sampled(4)
@libraries
@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"what": "biases"}, "`what` must be 'layers', 'key_value' or 'embeddings'.*'biases'"),
        ({"what": "layers", "start": "zero"}, "`start` must be 'first' or 'mean'.*'zero'"),
        ({"what": "layers", "groups": 0}, "`groups` must be an int of at least 1.*0"),
        ({"what": "key_value", "groups": 2}, "`groups` says how many sets.*'key_value'"),
        ({"what": "layers", "groups": 3}, "groups=3 and 3 such blocks in"),
        ({"what": "layers", "layers": "nothing"}, "needs Transformer blocks.*block_0"),
        ({"what": "layers", "layers": "block_0"}, "groups=1 and 1 such block in"),
        ({"what": "embeddings"}, "needs an output layer as large as the embeddings"),
        ({"what": "embeddings", "layers": "head"}, r"'head/kernel' \(8, 3\), and tables of.*50, 8"),
    ],
)
def test_refuses(library, arguments, message):
    model = stacked(library)
    with pytest.raises(ValueError, match=message):
        ke.share_weights(model, **arguments)
    assert not ties(model)


@sampled()
@libraries
def test_refuses_blocks_that_differ(library):
    model = stacked(library, (16, 24, 16))
    with pytest.raises(ValueError, match=r"equal structure and shapes.*'block_0' and 'block_1'"):
        ke.share_weights(model, "layers", layers="block")
    assert all(p.startswith("block_2/") for p in ke.share_weights(model, "layers").tied)


@libraries
def test_refuses_projections_of_different_shapes(library):
    layers = keras_of(library).layers
    x = layers.Input((LENGTH, 8))
    y = layers.MultiHeadAttention(2, 4, value_dim=3, name="attention")(x, x)
    model = keras_of(library).Model(x, y)
    with pytest.raises(ValueError, match=r"shapes are equal.*\(8, 2, 4\).*\(8, 2, 3\)"):
        ke.share_weights(model, "key_value")


@sampled()
@libraries
@pytest.mark.parametrize("what", ["layers", "key_value"])
def test_refuses_what_is_shared_already(library, what):
    model = stacked(library)
    ke.share_weights(model, what)
    with pytest.raises(ValueError, match="needs weights that are not shared already"):
        ke.share_weights(model, what)


@libraries
def test_refuses_tied_embeddings_once_more(library):
    model = stacked(library, (), VOCABULARY)
    ke.share_weights(model, "embeddings")
    with pytest.raises(ValueError, match="needs an output layer as large as"):
        ke.share_weights(model, "embeddings")


@sampled()
@libraries
def test_refuses_weights_with_transforms(library):
    model = stacked(library)
    ke.prune(model, 0.5, layers="block_1")
    with pytest.raises(ValueError, match=r"ke.share_weights acts on plain weights.*Share before"):
        ke.share_weights(model, "layers")
    model = stacked(library)
    shared = ke.share_weights(model, "layers")
    ke.prune(model, 0.5, layers="block")
    with pytest.raises(ValueError, match=r"SharingReport.undo\(\) acts on plain weights"):
        shared.undo()


def test_refuses_a_regularizer_that_would_stay_behind():
    keras = keras_of("tf_keras")
    attention = keras.layers.MultiHeadAttention(2, 4, kernel_regularizer="l2")
    x = keras.layers.Input((LENGTH, 8))
    with pytest.raises(ValueError, match="cannot move a tf_keras regularizer"):
        ke.share_weights(keras.Model(x, attention(x, x)), "key_value")


@libraries
def test_refuses_a_model_that_is_not_built(library):
    keras = keras_of(library)
    with pytest.raises(ValueError, match=r"ke.share_weights needs a built model"):
        ke.share_weights(keras.Sequential([keras.layers.Dense(3)]), "layers")


def test_refuses_another_strategy():
    with mirrored().scope():
        model = stacked("tf_keras")
    other = tf.distribute.OneDeviceStrategy("CPU:0")
    with other.scope(), pytest.raises(ValueError, match=r"ke.share_weights must run under"):
        ke.share_weights(model, "layers")
