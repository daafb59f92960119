"""Parametrized layers: their classes, variables and files."""

import pickle

import numpy as np
import pytest
import tensorflow as tf
from contract import outputs
from covering import sampled
from fit_helpers import compiled, fit
from in_process_export import in_process as in_process
from zoo import FEW_FIRST, ZOO, keras_of

import keras_efficient as ke
from keras_efficient.parametrize._attach import attach, detach
from keras_efficient.parametrize._parametrized_layer import parametrized_layers, transform_chains
from keras_efficient.parametrize._plain_model import folded_weights, plain_model
from keras_efficient.parametrize._select import select
from keras_efficient.parametrize._transform import LOW_RANK, MASK, Transform

models = pytest.mark.parametrize("specimen", FEW_FIRST, ids=str)
libraries = pytest.mark.parametrize("library", ["keras", "tf_keras"])


class Scaled(Transform):
    """A weight times a trainable number."""

    name, place = "scaled", LOW_RANK

    def __init__(self, scale):
        self.initial = scale

    def build(self):
        self.scale = self.variable("scale", (), self.initial, trainable=True)

    def __call__(self, value):
        return value * tf.cast(self.scale, value.dtype)


class Halved(Scaled):
    name, place = "halved", MASK

    def __call__(self, value):
        return value / 2


def dense(library, **kwargs):
    keras = keras_of(library)
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2, **kwargs)])
    return model, select(model, caller="the test")[0]


@libraries
def test_a_weight_is_read_through_its_chain_in_order(library):
    model, weight = dense(library)
    base = weight.value.numpy()
    attach(model, [(weight, Halved(1.0))])
    attach(model, [(weight, Scaled(3.0))])
    (chain,) = transform_chains(model)
    assert [t.name for t in chain.transforms] == ["scaled", "halved"]
    np.testing.assert_allclose(model(np.eye(3, dtype="float32")), base * 3 / 2, atol=1e-6)
    np.testing.assert_allclose(np.asarray(model.layers[-1].kernel), base * 3 / 2, atol=1e-6)
    # The untransformed weight has not changed.
    np.testing.assert_array_equal(weight.value.numpy(), base)


@libraries
def test_the_layer_looks_like_one_of_its_class(library):
    model, weight = dense(library)
    layer, cls = weight.layer, type(weight.layer)
    attach(model, [(weight, Scaled(1.0))])
    assert isinstance(layer, cls)
    assert type(layer).__name__ == cls.__name__
    assert type(layer).__module__ == cls.__module__
    assert ke.flavor.of(layer).name == library
    (parametrized,) = parametrized_layers(model)
    detach(model, transform_chains(model)[0].transforms)
    assert type(layer) is cls
    assert not parametrized_layers(model)
    assert len(model.weights) == 2
    assert parametrized.store.named == {}


@sampled()
@libraries
def test_variables_of_transforms_train_with_the_model(library):
    model, weight = dense(library)
    attach(model, [(weight, Scaled(1.0))])
    assert len(model.trainable_variables) == 3
    compiled(library, model)
    fit(model, np.ones((4, 3), "float32"), np.zeros(4, "int32"), batch_size=4, epochs=2)
    assert float(transform_chains(model)[0].transforms[0].scale) != 1.0


@sampled()
@libraries
def test_attaching_after_a_fit_lets_the_optimizer_know(library):
    model, weight = dense(library)
    compiled(library, model, keras_of(library).optimizers.Adam(0.1))
    data = np.ones((4, 3), "float32"), np.zeros(4, "int32")
    fit(model, *data, batch_size=4, epochs=2)
    attach(model, [(weight, Scaled(1.0))])
    fit(model, *data, batch_size=4, epochs=2)
    assert float(transform_chains(model)[0].transforms[0].scale) != 1.0
    # Schedules go on.
    assert int(model.optimizer.iterations) == 4


@libraries
def test_a_weight_is_read_in_the_dtype_that_its_layer_computes_in(library):
    model, weight = dense(library, dtype="mixed_bfloat16")
    attach(model, [(weight, Scaled(1.0))])
    read = []
    chain, plain_value = transform_chains(model)[0], transform_chains(model)[0].value
    vars(chain)["value"] = lambda: read.append(plain_value()) or read[-1]
    assert model(np.ones((1, 3), "float32")).dtype == tf.bfloat16
    # The chain itself computes in the variable's dtype, and files have that.
    assert {value.dtype for value in read} == {tf.float32}
    assert weight.layer.kernel.dtype == tf.float32


@libraries
def test_a_keras_file_holds_the_plain_model_that_computes_the_same(library, tmp_path):
    keras = keras_of(library)
    model, weight = dense(library)
    attach(model, [(weight, Scaled(3.0))])
    x = np.ones((2, 3), "float32")
    keras.models.save_model(model, tmp_path / "a.keras")
    loaded = keras.models.load_model(tmp_path / "a.keras")
    np.testing.assert_array_equal(loaded(x), model(x))
    assert not parametrized_layers(loaded)
    copy = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(copy(x), model(x))


@pytest.mark.parametrize("name", ["a.h5", "folder"])
def test_the_older_formats_of_tf_keras_do_too(name, tmp_path):
    import tf_keras

    model, weight = dense("tf_keras")
    attach(model, [(weight, Scaled(3.0))])
    x = np.ones((2, 3), "float32")
    model.save(tmp_path / name)
    loaded = tf_keras.models.load_model(tmp_path / name)
    np.testing.assert_array_equal(loaded(x), model(x))
    assert len(loaded.weights) == 2
    assert len(parametrized_layers(model)) == 1


def test_hugging_face_saves_the_plain_model_too(tmp_path):
    specimen = next(s for s in ZOO if s.name == "hugging-face-bert")
    model = specimen.make()
    weights = select(model, caller="the test")
    attach(model, [(weight, Scaled(1.5)) for weight in weights])
    x, _ = specimen.batch(3)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    np.testing.assert_allclose(outputs(loaded, x), outputs(model, x), atol=1e-6)


@sampled()
@models
def test_a_weights_file_of_the_plain_model_loads_beneath(specimen, tmp_path):
    source, model = specimen.make(), specimen.make()
    path = str(tmp_path / "a.weights.h5")
    source.save_weights(path)
    weights = select(model, caller="the test")
    attach(model, [(weight, Scaled(2.0)) for weight in weights])
    weights[0].value.assign(tf.zeros_like(weights[0].value))
    model.load_weights(path)
    x, _ = specimen.batch(3)
    detach(model, [t for chain in transform_chains(model) for t in chain.transforms])
    np.testing.assert_array_equal(outputs(model, x), outputs(source, x))


@sampled()
@models
def test_folded_and_plain_put_everything_back(specimen):
    model = specimen.make()
    weights = select(model, kinds=("kernel", "embedding"), caller="the test")
    attach(model, [(weight, Scaled(1.5)) for weight in weights])
    x, _ = specimen.batch(3)
    transformed, before, classes = (
        outputs(model, x),
        model.get_weights(),
        list(map(type, model.layers)),
    )
    with folded_weights(model):
        np.testing.assert_allclose(outputs(model, x), transformed, atol=1e-6)
        np.testing.assert_allclose(
            weights[0].value.numpy(), 1.5 * before[_index(before, weights[0])], atol=1e-6
        )
    layers = parametrized_layers(model)
    with plain_model(model):
        assert all(type(p.layer) is p.original_class for p in layers)
        np.testing.assert_allclose(outputs(model, x), transformed, atol=1e-6)
    assert list(map(type, model.layers)) == classes
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(outputs(model, x), transformed)


def _index(arrays, weight):
    matches = [
        i
        for i, array in enumerate(arrays)
        if array.shape == weight.shape and np.array_equal(array * 1.5, weight.value.numpy())
    ]
    return matches[0]


@libraries
def test_names_of_variables_are_whole_paths(library):
    model, weight = dense(library)
    attach(model, [(weight, Scaled(1.0))])
    paths = [ke.flavor.of(model).path(v) for v in model.weights]
    assert f"{weight.layer.name}/kernel.scaled.scale" in [p.split(":")[0] for p in paths]


@sampled()
@libraries
def test_a_whole_model_is_saved_in_fit(library, tmp_path):
    keras = keras_of(library)
    x, y = np.ones((12, 3), "float32"), np.zeros(12, "int32")
    ended = []
    for callbacks in ([], [keras.callbacks.ModelCheckpoint(str(tmp_path / "a.keras"))]):
        keras.utils.set_random_seed(0)
        model, _ = dense(library)
        ke.lora(model, rank=1, train=False)
        ke.prune(model, 0.5, end_step=4)
        ke.quantize_aware(model)
        compiled(library, model)
        fit(model, x, y, batch_size=4, epochs=3, callbacks=callbacks)
        ended.append(model)
    for a, b in zip(ended[0].get_weights(), ended[1].get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    loaded = keras.models.load_model(tmp_path / "a.keras")
    assert len(loaded.weights) == 2


@sampled()
@pytest.mark.usefixtures("in_process")
@libraries
def test_an_export_in_fit(library, tmp_path):
    keras = keras_of(library)
    model, _ = dense(library)
    ke.quantize_aware(model, activation_bits=None)
    ke.prune(model, 0.5, end_step=2)
    compiled(library, model)
    x, y = np.ones((12, 3), "float32"), np.zeros(12, "int32")
    write = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: ke.export(
            model, tmp_path / "a", sample=x, quantize="int8-weights", latency=False
        )
    )
    fit(model, x, y, batch_size=4, epochs=2, callbacks=[write])
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["1", "2"]
    assert int(model.optimizer.iterations) == 6


@libraries
def test_a_file_of_other_transforms_is_refused(library, tmp_path):
    model, _weight = dense(library)
    ke.lora(model, rank=1, train=False)
    path = str(tmp_path / "a.weights.h5")
    model.save_weights(path)
    other, _ = dense(library)
    ke.quantize_aware(other)
    with pytest.raises(ValueError, match=r"with the transforms it was saved with|objects could"):
        other.load_weights(path)
    more, _ = dense(library)
    ke.lora(more, rank=1, train=False)
    ke.prune(more, 0.5, end_step=4)
    more.load_weights(path)
    np.testing.assert_allclose(more(np.eye(3)), model(np.eye(3)), atol=1e-6)


@libraries
@pytest.mark.parametrize("whole", [False, True])
def test_layers_that_may_not_train_take_nothing_that_trains(library, whole):
    model, _weight = dense(library)
    (model if whole else model.layers[-1]).trainable = False
    message = "train only in layers with trainable=True"
    with pytest.raises(ValueError, match=message):
        ke.lora(model, rank=1)
    with pytest.raises(ValueError, match=message):
        ke.adapters(model, 2, layers="dense")
    assert not parametrized_layers(model)
    # A mask does not train.
    ke.prune(model, 0.5)
    model.layers[-1].trainable = model.trainable = True
    ke.lora(model, rank=1)


@libraries
def test_layers_that_may_not_train_are_left_out_unless_they_are_chosen(library):
    layers = keras_of(library).layers
    names = ("first", "second", "head")
    parts = [layers.Input((4,)), *(layers.Dense(4, name=name) for name in names)]
    model = keras_of(library).Sequential(parts)
    model.get_layer("first").trainable = False
    with pytest.raises(ValueError, match="train only in layers with trainable=True"):
        ke.lora(model, rank=1, layers="first|second")
    report = ke.lora(model, rank=1)
    assert [path.split("/")[-2] for path in report.weights] == ["second"]


@libraries
def test_what_a_method_froze_stays_frozen(library):
    model, _weight = dense(library)
    ke.lora(model, rank=1, train=False)
    before = [v.shape for v in model.trainable_variables]
    assert len(before) == 2
    model.trainable = False
    assert not model.trainable_variables
    model.trainable = True
    assert [v.shape for v in model.trainable_variables] == before
    ke.merge(model)
    assert len(model.trainable_variables) == 2


@libraries
def test_a_clone_is_a_plain_model(library):
    model, weight = dense(library)
    attach(model, [(weight, Scaled(3.0))])
    clone = keras_of(library).models.clone_model(model)
    assert type(clone.layers[-1]) is parametrized_layers(model)[0].original_class
    assert clone(np.ones((1, 3))).shape == (1, 2)


@libraries
def test_saving_a_model_that_rounds_its_inputs_warns(library, tmp_path):
    model, _ = dense(library)
    ke.calibrate(model, np.ones((4, 3), "float32"))
    with pytest.warns(UserWarning, match="does not round its inputs: 1 layers here do"):
        model.save(tmp_path / "a.keras")


@sampled()
@libraries
def test_the_step_is_the_models_own_again_after_merge(library):
    from keras_efficient.training import _train_step_hook as train_step_hook

    model, _ = dense(library)
    ke.prune(model, 0.5, end_step=2)
    compiled(library, model)
    data = np.ones((4, 3), "float32"), np.zeros(4, "int32")
    fit(model, *data)
    assert train_step_hook.of(model).parts
    ke.merge(model)
    fit(model, *data)
    assert not train_step_hook.of(model).parts


@sampled()
@libraries
def test_this_packages_optimizers_take_variables_that_come_between_two_fits(library):
    model, _ = dense(library)
    compiled(library, model, ke.optimizers.AdamW(0.1, exclude=["bias"], library=library))
    data = np.ones((4, 3), "float32"), np.zeros(4, "int32")
    fit(model, *data)
    ke.lora(model, rank=1)
    before = [v.numpy().copy() for v in model.trainable_variables]
    fit(model, *data)
    assert any(
        np.abs(a - v.numpy()).max() > 0
        for a, v in zip(before, model.trainable_variables, strict=True)
    )
    ke.merge(model)
    fit(model, *data)


def _tiny(name, config, **sizes):
    """A tiny language model of Hugging Face, and its inputs; the output layer is tied."""
    import transformers

    model = getattr(transformers, name)(getattr(transformers, config)(vocab_size=20, **sizes))
    inputs = {"input_ids": np.arange(3, 9, dtype="int32").reshape(2, 3)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    model(inputs)
    return model, inputs


_SEQ2SEQ = {"d_model": 8, "max_position_embeddings": 8, "pad_token_id": 1} | {
    f"{part}_{what}": size
    for part in ("encoder", "decoder")
    for what, size in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 8))
}


@sampled()
@pytest.mark.parametrize(
    ("table", "name", "config", "sizes"),
    [
        ("wte", "TFGPT2LMHeadModel", "GPT2Config", {"n_embd": 8, "n_layer": 1, "n_head": 2}),
        (
            "shared",
            "TFT5ForConditionalGeneration",
            "T5Config",
            {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2},
        ),
        ("shared", "TFBartForConditionalGeneration", "BartConfig", _SEQ2SEQ),
        (
            "/w/",
            "TFCTRLLMHeadModel",
            "CTRLConfig",
            {"n_embd": 8, "dff": 8, "n_layer": 1, "n_head": 2},
        ),
    ],
)
def test_tied_output_tables_are_seen_through_their_transforms(table, name, config, sizes):
    # keras-hub#1568: these models multiply by `embedding.weights`, which listed the plain table
    # and the variables of its transforms.
    model, inputs = _tiny(name, config, **sizes)
    plain = outputs(model, inputs)
    pruned = ke.prune(model, 0.5, layers=table)
    assert len(pruned.targets) == 1
    ke.quantize_aware(model, weight_bits=4, activation_bits=None, layers=table)
    rounded = outputs(model, inputs)
    ke.merge(model)
    np.testing.assert_allclose(outputs(model, inputs), rounded, atol=1e-5)
    assert np.abs(rounded - plain).max() > 1e-3 * np.abs(plain).max()


@sampled()
@libraries
def test_code_of_a_call_that_reads_weights_of_layers_gets_transformed_ones(library):
    keras = keras_of(library)

    class Tied(keras.Model):
        def __init__(self):
            super().__init__()
            self.embed = keras.layers.Embedding(5, 4, embeddings_regularizer="l2")
            self.inner = keras.Sequential([keras.layers.Dense(4)])

        def call(self, ids):
            x = self.inner(self.embed(ids))
            # What a library itself does with weights during a call goes on working.
            self.read = len(self.losses), self.inner.count_params()
            (table,) = self.embed.weights
            return tf.matmul(x, tf.convert_to_tensor(table), transpose_b=True)

    model, ids = Tied(), np.array([[1, 2, 3]])
    model(ids)
    read = model.read
    weights = select(model, caller="the test", kinds=("embedding", "kernel"))
    table, kernel = (w.value.numpy() for w in weights)
    attach(model, [(weight, Scaled(3.0)) for weight in weights])
    with tf.GradientTape() as tape:
        logits = tf.function(model)(ids)
    np.testing.assert_allclose(logits, (3 * table)[ids] @ (3 * kernel) @ (3 * table).T, rtol=1e-4)
    assert model.read[0] == read[0]
    scale = weights[0].layer.keras_efficient_transforms.named["embeddings.scaled.scale"]
    # d(s² y)/ds = 2 s y
    gradient = tape.gradient(logits, ke.flavor.of(model).value(scale))
    np.testing.assert_allclose(gradient, 2 * np.sum(logits) / 3, rtol=1e-3)
    # Variables are listed as before.
    assert len(model.weights) == 5
    assert len(weights[0].layer.weights) == 2
