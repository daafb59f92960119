"""Prefix tuning: against NumPy's attention, behind masks, and on every kind of model."""

import numpy as np
import pytest
import tensorflow as tf
from covering import contract, covering, sampled
from tuned import (
    SPECIMENS,
    TWO,
    added,
    assert_compiles,
    assert_exported,
    assert_mixed,
    assert_only_these_move,
    assert_replicas_agree,
    assert_saved,
    head_keys,
    outputs,
)
from zoo import FEW, VOCABULARY, full_except, hf_config, keras_of, kerashub_backbone

import keras_efficient as ke
from keras_efficient.parametrize._parametrized_layer import parametrized_layer, parametrized_layers
from keras_efficient.peft import _prefix_tuning as prefix_tuning

names = pytest.mark.parametrize


def prefixed(model):
    return ke.prefix_tuning(model, 3)


@sampled()
@names("specimen", FEW, ids=repr)
def test_nothing_else_moves(specimen):
    heads = head_keys(specimen.make())
    moved, still = assert_only_these_move(specimen, prefixed, heads)
    assert still == []
    assert moved == heads


@sampled()
@names("specimen", FEW, ids=repr)
def test_weights_are_saved(specimen, tmp_path):
    assert_saved(specimen, prefixed, tmp_path)


@contract("export")
@sampled()
@names("specimen", TWO, ids=repr)
def test_export(specimen, tmp_path, monkeypatch):
    assert_exported(specimen, prefixed, tmp_path, monkeypatch)


@contract("replicas")
@names("specimen", full_except("tf_keras-subclassed", among=FEW))
def test_two_replicas_are_one(specimen):
    assert_replicas_agree(specimen, prefixed)


@contract("xla")
@names("specimen", full_except("keras-functional", among=FEW))
def test_xla(specimen):
    assert_compiles(specimen, prefixed)


@contract("mixed_precision")
@sampled()
@names("specimen", full_except("keras-functional", "tf_keras-subclassed", among=FEW))
def test_mixed_precision(specimen):
    assert_mixed(specimen, prefixed)


# --- what it computes ------------------------------------------------------------------------


def softmax(scores):
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    return scores / scores.sum(-1, keepdims=True)


def attend(query, key, value, visible, prefix):
    """[batch, positions, heads, size] each; `visible` [batch or 1, queries, keys]."""
    front = [np.broadcast_to(p, (len(key), *p.shape)) for p in prefix]
    key, value = np.concatenate([front[0], key], 1), np.concatenate([front[1], value], 1)
    visible = np.concatenate([np.ones((*visible.shape[:2], len(prefix[0])), bool), visible], -1)
    scores = np.einsum("bthd,bshd->bhts", query, key) / np.sqrt(query.shape[-1])
    scores = np.where(visible[:, None], scores, -1e9)
    return np.einsum("bhts,bshd->bthd", softmax(scores), value)


def set_vectors(layer, scale=1.0):
    """Set a projection's prefix to large values; returns them."""
    (variable,) = parametrized_layer(layer).store.named.values()
    rng = np.random.default_rng(len(layer.name))
    variable.assign(rng.normal(0, scale, tuple(variable.shape)))
    return np.asarray(variable)


MASKS = {
    "none": (None, False),
    "padding": (np.array([[[1, 1, 1, 0, 0]], [[1, 1, 1, 1, 1]]], bool), False),
    "causal": (None, True),
    "both": (np.array([[[1, 1, 1, 0, 0]], [[0, 1, 1, 1, 1]]], bool), True),
    "of queries": (np.array([[[1]] * 4 + [[0]]] * 2, bool), False),
}


@names("mask, library, scores", covering(MASKS, ["keras", "tf_keras"], [False, True]))
def test_multi_head_attention_against_numpy(mask, library, scores):
    given, causal = MASKS[mask]
    layers = keras_of(library).layers
    inputs = layers.Input((None, 8))
    layer = layers.MultiHeadAttention(2, 4)
    model = keras_of(library).Model(inputs, layers.Dense(3)(layer(inputs, inputs)))
    report = ke.prefix_tuning(model, 3)
    assert len(report.weights) == 1
    vectors = [set_vectors(getattr(layer, f"_{side}_dense")) for side in ("key", "value")]
    x = np.random.default_rng(0).normal(size=(2, 5, 8)).astype("float32")
    projected = []
    for side in ("query", "key", "value"):
        dense = getattr(layer, f"_{side}_dense")
        projected.append(np.einsum("abc,cde->abde", x, np.asarray(dense.kernel)))
    visible = np.ones((1, 5, 5), bool) if given is None else np.broadcast_to(given, (2, 5, 5))
    if causal:
        visible = visible & np.tril(np.ones((5, 5), bool))
    result = attend(*projected, visible, vectors)
    expected = np.einsum("abcd,cde->abe", result, np.asarray(layer._output_dense.kernel))
    ours = layer(
        x,
        x,
        attention_mask=None if given is None else tf.constant(given),
        use_causal_mask=causal,
        return_attention_scores=scores,
    )
    if scores:
        ours, weights = ours
        assert weights.shape == (2, 2, 5, 8)
    rows = visible.any(-1)[..., None]
    # Where only the prefix is visible, the libraries differ in how -1e9 rounds.
    np.testing.assert_allclose(np.where(rows, ours, 0), np.where(rows, expected, 0), atol=1e-5)


@names("masked", [False, True])
def test_hugging_face_against_numpy(masked):
    model = SPECIMENS["hugging-face-bert"].make()
    ke.prefix_tuning(model, 3)
    layer = model.bert.encoder.layer[0].attention.self_attention
    vectors = [set_vectors(dense).reshape(3, 2, 4) for dense in (layer.key, layer.value)]
    x = np.random.default_rng(0).normal(size=(2, 5, 8)).astype("float32")
    heads = [
        (x @ d.kernel.numpy() + d.bias.numpy()).reshape(2, 5, 2, 4)
        for d in (layer.query, layer.key, layer.value)
    ]
    visible = np.array([[[1, 1, 1, 0, 0]], [[1, 1, 1, 1, 1]]], bool) | (not masked)
    expected = attend(*heads, visible, vectors).reshape(2, 5, 8)
    mask = tf.constant(np.where(visible, 0.0, -1e9)[:, None].astype("float32")) if masked else None
    (ours,) = layer(x, mask, None, None, None, None, False)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@sampled()
@names("name", ["kerashub-bert", "model-garden-bert", "hugging-face-bert"])
def test_a_masked_prefix_changes_nothing(name, monkeypatch):
    """Only attention reads the prefix, so masking it restores the outputs."""
    specimen = SPECIMENS[name]
    x, _ = specimen.batch(4)
    model = specimen.make()
    before = outputs(model, x)
    ke.prefix_tuning(model, 3, train=False)
    for variable in model.trainable_weights:
        variable.assign(tf.random.stateless_normal(variable.shape, [1, 2]))
    assert np.abs(outputs(model, x) - before).max() > 1e-3
    plain = prefix_tuning.PrefixMask._extend

    def hidden(self, mask, visible, length):
        return plain(self, mask, -1e9 if self.attention.additive else 0, length)

    monkeypatch.setattr(prefix_tuning.PrefixMask, "_extend", hidden)
    np.testing.assert_allclose(outputs(model, x), before, atol=1e-6)


@names("name", ["kerashub-bert", "model-garden-bert", "hugging-face-bert"])
def test_padding_stays_hidden(name):
    specimen = SPECIMENS[name]
    x, _ = specimen.batch(4)
    model = specimen.make()
    ke.prefix_tuning(model, 3)
    mask = next(key for key in x if "mask" in key)
    tokens = next(key for key in x if "ids" in key and "type" not in key and "segment" not in key)
    x[mask] = x[mask].copy()
    x[mask][:, 4:] = 0
    before = outputs(model, x)
    x[tokens] = x[tokens].copy()
    x[tokens][:, 4:] = 1
    np.testing.assert_allclose(outputs(model, x), before, atol=1e-6)


@sampled()
@names(
    "name",
    [
        *("Roberta", "Albert", "LayoutLM"),
        *(pytest.param(n, marks=pytest.mark.full) for n in ("XLMRoberta", "Camembert", "Electra")),
    ],
)
def test_models_like_bert(name, monkeypatch):
    import transformers

    config = getattr(transformers, f"{name}Config")(
        **{**hf_config().to_dict(), "embedding_size": 8, "pad_token_id": 0, "model_type": None}
    )
    config._attn_implementation = "eager"
    model = getattr(transformers, f"TF{name}ForSequenceClassification")(config)
    ids = np.random.default_rng(0).integers(1, VOCABULARY, (2, 5))
    x = {"input_ids": ids, "attention_mask": np.array([[1, 1, 1, 0, 0], [1] * 5])}
    if name == "LayoutLM":
        x["bbox"] = np.zeros((2, 5, 4), "int32")
    before = outputs(model, x)
    report = ke.prefix_tuning(model, 3)
    assert len(report.weights) == 1
    for variable in model.trainable_weights:
        if "vectors" in variable.name:
            variable.assign(tf.random.stateless_normal(variable.shape, [1, 2]))
    assert np.abs(outputs(model, x) - before).max() > 1e-6
    plain = prefix_tuning.PrefixMask._extend
    hide = lambda self, mask, visible, length: plain(self, mask, -1e9, length)  # noqa: E731
    monkeypatch.setattr(prefix_tuning.PrefixMask, "_extend", hide)
    np.testing.assert_allclose(outputs(model, x), before, atol=1e-6)


def test_cross_attention_of_other_lengths():
    import keras

    here, there = keras.Input((None, 8)), keras.Input((None, 8))
    layer = keras.layers.MultiHeadAttention(2, 4)
    model = keras.Model([here, there], keras.layers.Dense(2)(layer(here, there)))
    ke.prefix_tuning(model, 3)
    assert model([np.ones((2, 5, 8)), np.ones((2, 7, 8))]).shape == (2, 5, 2)


@names("library", ["keras", "tf_keras"])
def test_masks_that_layers_pass_on(library):
    """Tokens hidden by an embedding's mask stay hidden."""
    keras = keras_of(library)
    ids = keras.layers.Input((None,), dtype="int32")
    x = keras.layers.Embedding(VOCABULARY, 8, mask_zero=True)(ids)
    x = keras.layers.MultiHeadAttention(2, 4)(x, x)
    model = keras.Model(ids, keras.layers.Dense(2)(x))
    ke.prefix_tuning(model, 3)
    short = outputs(model, np.array([[3, 4, 5]]))
    padded = outputs(model, np.array([[3, 4, 5, 0, 0]]))
    np.testing.assert_allclose(padded[:, :3], short, atol=1e-6)


# --- which layers, and the report --------------------------------------------------------------


def two_layers():
    import keras_hub

    return keras_hub.models.BertTextClassifier(kerashub_backbone("Bert", 2), num_classes=3)


def test_deep_and_shallow():
    deep, shallow = ke.prefix_tuning(two_layers()), ke.prefix_tuning(two_layers(), scope="shallow")
    assert [path.split("/")[-2] for path in deep.weights] == [
        "transformer_layer_0",
        "transformer_layer_1",
    ]
    assert [path.split("/")[-2] for path in shallow.weights] == ["transformer_layer_0"]
    assert deep.trainable - shallow.trainable == 16 * 8 * 2


def test_layers_say_which():
    report = ke.prefix_tuning(two_layers(), layers="transformer_layer_1")
    assert [path.split("/")[-2] for path in report.weights] == ["transformer_layer_1"]


def test_the_start_is_by_the_seed_alone():
    starts = []
    for seed in (0, 0, 1):
        model = two_layers()
        ke.prefix_tuning(model, seed=seed)
        starts.append(np.stack(list(added(model).values())))
    np.testing.assert_array_equal(starts[0], starts[1])
    assert (starts[0] != starts[2]).mean() > 0.99
    assert len(np.unique(starts[0][:, 0, 0, 0])) == 4
    assert 0.015 < starts[0].std() < 0.025


def test_the_summary_and_remove():
    specimen = SPECIMENS["kerashub-bert"]
    model = specimen.make()
    x, _ = specimen.batch(4)
    before = outputs(model, x)
    report = ke.prefix_tuning(model, 3, train=False)
    assert report.trainable == 2 * 3 * 8
    assert str(report).startswith("prefix: 1 weights; 48 parameters train")
    assert "self_attention_layer: prefix of 3" in str(ke.summary(model))
    report.remove()
    np.testing.assert_array_equal(outputs(model, x), before)
    ke.peft.unfreeze(model)
    assert not parametrized_layers(model)


@sampled()
@names("specimen", TWO, ids=repr)
def test_with_lora_in_either_order(specimen):
    x, _ = specimen.batch(4)
    made = []
    for methods in ((ke.lora, ke.prefix_tuning), (ke.prefix_tuning, ke.lora)):
        model = specimen.make()
        for method in methods:
            method(model, 2, train=False)
        for variable in model.trainable_weights:
            if any(part in variable.name for part in ("lora", "prefix")):
                variable.assign(tf.random.stateless_normal(variable.shape, [1, 2]))
        made.append(outputs(model, x))
    np.testing.assert_allclose(*made, atol=1e-5)


# --- what is refused -------------------------------------------------------------------------


def test_bad_arguments():
    model = SPECIMENS["keras-functional"].make()
    for arguments, message in [
        ({"length": 0}, "`length` must be an int of at least 1. Received: 0"),
        ({"length": 1.0}, "`length` must be an int"),
        ({"scope": "wide"}, "`scope` must be 'deep' or 'shallow'. Received: 'wide'"),
        ({"layers": "nothing"}, r"ke\.prefix_tuning needs at least one weight"),
        ({"layers": "^dense"}, r"ke\.prefix_tuning needs an attention layer. Received"),
        ({"train": "nothing"}, "`train` must fit some weights"),
    ]:
        with pytest.raises(ValueError, match=message):
            ke.prefix_tuning(model, **arguments)
        assert not parametrized_layers(model)


def test_no_attention():
    with pytest.raises(ValueError, match=r"ke\.prefix_tuning needs an attention layer"):
        ke.prefix_tuning(SPECIMENS["keras-sequential"].make())


def test_twice():
    model = SPECIMENS["keras-functional"].make()
    ke.prefix_tuning(model, 3)
    with pytest.raises(ValueError, match=r"ke\.prefix_tuning adds one thing of a name to a layer"):
        ke.prefix_tuning(model, 3)
    ke.prefix_tuning(model, 2, name="second")
    assert {value.shape[0] for value in added(model).values()} == {2, 3}
    x, _ = SPECIMENS["keras-functional"].batch(2)
    assert np.isfinite(outputs(model, x)).all()


def test_attention_with_a_cache():
    import keras
    import keras_hub

    ids = keras.Input((None, 8))
    model = keras.Model(ids, keras_hub.layers.TransformerDecoder(16, 2)(ids))
    with pytest.raises(ValueError, match="Received: CachedMultiHeadAttention at"):
        ke.prefix_tuning(model)


def test_hugging_faces_decoders():
    import transformers

    config = transformers.GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=2, n_positions=16)
    model = transformers.TFGPT2LMHeadModel(config)
    model(np.ones((1, 3), "int32"))
    with pytest.raises(ValueError, match="Received: TFAttention at"):
        ke.prefix_tuning(model)
    model = transformers.TFBertLMHeadModel(hf_config(is_decoder=True))
    model(model.dummy_inputs)
    with pytest.raises(ValueError, match="Received: TFBertSelfAttention at"):
        ke.prefix_tuning(model)


def test_attention_over_two_axes():
    import keras

    x = keras.Input((4, 5, 8))
    layer = keras.layers.MultiHeadAttention(2, 4, attention_axes=(1, 2))
    model = keras.Model(x, layer(x, x))
    with pytest.raises(ValueError, match="Received: MultiHeadAttention at"):
        ke.prefix_tuning(model)


def test_no_plain_form(tmp_path):
    model = SPECIMENS["keras-functional"].make()
    ke.prefix_tuning(model, 3)
    with pytest.raises(ValueError, match=r"ke\.merge folds functions of a weight"):
        ke.merge(model)
    with pytest.raises(NotImplementedError, match="a model with prefix in"):
        model.save(tmp_path / "model.keras")
