"""`ke.shrink` on every class of models: nothing removed, zeros removed, blocks bypassed."""

import numpy as np
import plain_block_models as plain
import pytest
import tensorflow as tf
from zoo import (
    CLASSES,
    VOCABULARY,
    fixed,
    full_except,
    hf_config,
    keras_of,
    kerashub_backbone,
    model_garden,
)

import keras_efficient as ke
from keras_efficient.compression.structured.importance import Importance, most
from keras_efficient.compression.structured.layer_losses import skippable

LAYERS = 3


def _kerashub(family):
    import keras_hub

    def make():
        backbone = kerashub_backbone(family, LAYERS, dropout=0.0)
        task = getattr(keras_hub.models, f"{family}TextClassifier", None)
        return fixed(backbone if task is None else task(backbone, num_classes=CLASSES, dropout=0.0))

    return make


def _hugging_face(name):
    import transformers

    def make():
        if name.startswith("TFDistilBert"):
            config = transformers.DistilBertConfig(
                vocab_size=VOCABULARY, dim=8, n_layers=LAYERS, n_heads=2, hidden_dim=16,
                max_position_embeddings=16, num_labels=CLASSES,
            )  # fmt: skip
        elif name.startswith("TFRoberta"):
            config = transformers.RobertaConfig(
                **{**hf_config(LAYERS).to_dict(), "pad_token_id": 1}
            )
        else:
            config = hf_config(LAYERS)
        model = getattr(transformers, name)(config)
        model(model.dummy_inputs)
        return fixed(model)

    return make


def _garden(version, classifier=True):
    def make():
        networks, models = model_garden().networks, model_garden().models
        inner = "inner_dim" if version == "BertEncoderV2" else "intermediate_size"
        encoder = getattr(networks, version)(
            vocab_size=VOCABULARY, hidden_size=8, num_layers=LAYERS, num_attention_heads=2,
            max_sequence_length=16, **{inner: 16},
        )  # fmt: skip
        if classifier:
            return fixed(models.BertClassifier(encoder, num_classes=CLASSES, dropout_rate=0.0))
        layers = keras_of("tf_keras").layers
        pooled = encoder(encoder.inputs)["pooled_output"]
        return fixed(keras_of("tf_keras").Model(encoder.inputs, layers.Dense(CLASSES)(pooled)))

    return make


MODELS = {
    "kerashub-bert": _kerashub("Bert"),
    "kerashub-roberta": _kerashub("Roberta"),
    "kerashub-distilbert": _kerashub("DistilBert"),
    "kerashub-gpt2": _kerashub("GPT2"),
    "hf-bert": _hugging_face("TFBertModel"),
    "hf-bert-classifier": _hugging_face("TFBertForSequenceClassification"),
    "hf-bert-mlm": _hugging_face("TFBertForMaskedLM"),
    "hf-distilbert-classifier": _hugging_face("TFDistilBertForSequenceClassification"),
    "hf-roberta-classifier": _hugging_face("TFRobertaForSequenceClassification"),
    "garden-v1": _garden("BertEncoder"),
    "garden-v2": _garden("BertEncoderV2"),
    "garden-v2-functional": _garden("BertEncoderV2", classifier=False),
    "keras-functional": lambda: plain.functional("keras"),
    "keras-functional-pre-norm": lambda: plain.functional("keras", norm_first=True),
    "tf_keras-functional": lambda: plain.functional("tf_keras"),
    "tf_keras-functional-pre-norm": lambda: plain.functional("tf_keras", norm_first=True),
}
#: One model of each kind; the others under `make test-all`.
KINDS = (
    "kerashub-bert",
    "hf-bert-classifier",
    "hf-distilbert-classifier",
    "garden-v2-functional",
    "keras-functional-pre-norm",
    "tf_keras-functional",
)
FEW = full_except(*KINDS, among=MODELS)
FUNCTIONAL = [name for name in MODELS if "keras-functional" in name]


def features(name, vocabulary=VOCABULARY):
    rng = np.random.default_rng(0)
    length = plain.LENGTH if name in FUNCTIONAL else 6
    ids = rng.integers(3, vocabulary, (4, length)).astype("int32")
    mask = (np.arange(length)[None] < np.array([[6], [4], [1], [5]])).astype("int32")
    if name in FUNCTIONAL:
        return [ids, mask]
    kind = name.partition("-")[0]
    names = {
        "kerashub": ("token_ids", "padding_mask", "segment_ids"),
        "hf": ("input_ids", "attention_mask", "token_type_ids"),
        "garden": ("input_word_ids", "input_mask", "input_type_ids"),
    }[kind]
    if name in ("kerashub-roberta", "kerashub-distilbert", "kerashub-gpt2") or "distil" in name:
        names = names[:2]
    return dict(zip(names, (ids, mask, np.zeros_like(ids)), strict=False))


def outputs(model, x):
    """All outputs of a model in inference mode, as arrays."""
    found = model(x, training=False)
    found = dict(found) if hasattr(found, "to_tuple") else found
    return [np.asarray(t) for t in tf.nest.flatten(found)]


def same(model, small, x, tolerance=0.0):
    before, after = outputs(model, x), outputs(small, x)
    if len(before) != len(after):
        # Model Garden's encoders return the hidden states of every layer.
        before, after = before[-1:], after[-1:]
    for a, b in zip(before, after, strict=True):
        np.testing.assert_allclose(b, a, atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_nothing_removed_is_the_same_to_the_last_bit(name):
    model = MODELS[name]()
    blocks = len(ke.architecture.describe(model).blocks)
    small, report = ke.shrink(model, layers=blocks, feed_forward=16)
    assert small is not model
    assert type(small) is type(model)
    assert report.parameters == report.parameters_before
    same(model, small, features(name))


@pytest.mark.parametrize("name", FEW)
def test_neurons_of_zeros_change_nothing(name):
    model = MODELS[name]()
    for block in ke.architecture.describe(model).blocks:
        for layer, axis in ((block.feed_forward.intermediate, -1), (block.feed_forward.output, 0)):
            kernel = layer.kernel if hasattr(layer, "kernel") else layer.weight
            value = np.array(kernel)
            np.moveaxis(value, axis, 0)[3:9] = 0
            kernel.assign(value)
    small, report = ke.shrink(model, feed_forward=10)
    assert report.sizes["feed_forward"] == (16, 10)
    assert report.parameters < report.parameters_before
    same(model, small, features(name), 1e-6)


@pytest.mark.parametrize("name", FEW)
def test_a_removed_block_is_bypassed(name):
    model = MODELS[name]()
    blocks = ke.architecture.describe(model).blocks
    kept = [len(blocks) - 1]
    small, report = ke.shrink(model, layers=kept)
    assert report.layers == tuple(kept)
    assert report.sizes["layers"] == (len(blocks), 1)
    assert len(ke.architecture.describe(small).blocks) == 1
    x = features(name)
    with skippable(model, blocks) as skipped:
        for variable in skipped[:-1]:
            variable.assign(True)
        same(model, small, x)


HIDDEN = [name for name in MODELS if name not in (*FUNCTIONAL, "kerashub-gpt2")]


@pytest.mark.parametrize("name", full_except(*KINDS, among=HIDDEN))
def test_hidden_width(name):
    model = MODELS[name]()
    small, report = ke.shrink(model, hidden=4)
    assert report.sizes["hidden"] == (8, 4)
    assert report.sizes["heads"] == (2, 1)
    block = ke.architecture.describe(small).blocks[0]
    assert block.attention.scale == ke.architecture.describe(model).blocks[0].attention.scale
    for values in outputs(small, features(name)):
        assert np.isfinite(values).all()
    # Each head keeps its own units.
    architecture = ke.architecture.describe(model)
    importance = Importance(model, architecture, "magnitude")
    units = most(importance.hidden(), 4)
    for old, new, scores in zip(
        architecture.blocks, ke.architecture.describe(small).blocks, importance.heads(), strict=True
    ):
        (head,) = most(scores, 1)
        for part in ("query", "key", "value"):
            before, after = (np.array(getattr(b.attention, part).kernel) for b in (old, new))
            expected = before.reshape(8, 2, 4)[units][:, head]
            np.testing.assert_array_equal(after.reshape(4, 4), expected)
        before, after = (np.array(b.attention.output.kernel) for b in (old, new))
        expected = before.reshape(2, 4, 8)[head][:, units]
        np.testing.assert_array_equal(after.reshape(4, 4), expected)


@pytest.mark.parametrize("name", full_except(*KINDS, among=FUNCTIONAL))
def test_heads_of_zeros_change_nothing_and_layers_may_differ(name):
    model = MODELS[name]()
    first, _ = ke.architecture.describe(model).blocks
    kernel = first.attention.output.kernel
    value = np.array(kernel)
    value[0] = 0
    kernel.assign(value)
    small, report = ke.shrink(model, heads=[1, 2])
    assert report.sizes["heads"] == (2, (1, 2))
    same(model, small, features(name), 1e-6)
    small, report = ke.shrink(model, feed_forward=[5, 7])
    assert report.sizes["feed_forward"] == (16, (5, 7))


@pytest.mark.parametrize("name", FEW)
def test_vocabulary(name):
    model = MODELS[name]()
    ids = np.r_[0:5, 10:40]
    x = features(name, 30)
    old = [x[0], *x[1:]] if isinstance(x, list) else dict(x)
    key = 0 if isinstance(x, list) else next(iter(x))
    old[key] = ids[x[key]].astype("int32")
    small, report = ke.shrink(model, vocabulary=ids)
    assert report.sizes["vocabulary"] == (VOCABULARY, 35)
    before, after = outputs(model, old), outputs(small, x)
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(b, a[..., ids] if a.shape[-1] == VOCABULARY else a)
