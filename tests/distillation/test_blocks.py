"""Hidden states and attention of student and teacher, recorded from their Transformer blocks."""

import numpy as np
import pytest
import tensorflow as tf
from covering import covering, sampled
from family_models import gpt2, t5
from fit_helpers import assert_same, batches, compiled, mirrored, moved
from zoo import LENGTH, VOCABULARY, ZOO, _hugging_face, _kerashub, fixed, hf_config, keras_of

import keras_efficient as ke
from keras_efficient import flavor as flavors
from keras_efficient.distillation import AttentionMaps, HiddenStates, Relations
from keras_efficient.distillation._block_recorder import BlockRecorder

BY_NAME = {specimen.name: specimen for specimen in ZOO}
BERTS = [BY_NAME[n] for n in ("kerashub-bert", "hugging-face-bert", "model-garden-bert")]


def ragged(specimen, n=6, noise=0):
    """A batch whose texts end in padding, of other ids for other `noise`."""
    x, y = specimen.batch(n)
    rng = np.random.default_rng(3)
    real = np.arange(LENGTH) < rng.integers(2, LENGTH + 1, (n, 1))
    other = np.random.default_rng(noise).integers(1, VOCABULARY, (n, LENGTH))
    found = {}
    for name, value in x.items():
        if "mask" in name:
            found[name] = real.astype("int32")
        elif "type" in name or "segment" in name:
            found[name] = value
        else:
            found[name] = np.where(real, value, other).astype("int32")
    return found, y, real


def of_depth(specimen, layers, scale=1.0, **kwargs):
    made = {"kerashub-bert": _kerashub, "hugging-face-bert": _hugging_face}
    if specimen.name not in made:
        from zoo import _model_garden as make
    else:
        make = made[specimen.name]
    model = make(layers, **kwargs)
    model.set_weights([scale * w for w in model.get_weights()])
    return model


def recorded(model, x):
    recorder = BlockRecorder(model, "student")
    with recorder.recording() as records:
        flavors.of(model).call(model, x, training=False)
    return records


def test_what_is_recorded_is_what_hugging_face_returns():
    model = of_depth(BY_NAME["hugging-face-bert"], 3, 2.0)
    x, _, real = ragged(BY_NAME["hugging-face-bert"])
    answer = model(x, output_hidden_states=True)
    records = recorded(model, x)
    assert len(records) == 3
    for record, hidden in zip(records, answer.hidden_states[1:], strict=True):
        np.testing.assert_allclose(record.hidden, hidden, atol=1e-6)
        np.testing.assert_array_equal(record.mask, real)
    import transformers

    plain = transformers.TFBertForSequenceClassification(
        hf_config(3, output_attentions=True, return_dict=True)
    )
    plain(plain.dummy_inputs)
    plain.set_weights(model.get_weights())
    for record, attention in zip(records, plain(x).attentions, strict=True):
        scores = tf.where(real[:, None, None], record.scores(), -1e9)
        np.testing.assert_allclose(tf.nn.softmax(scores), attention, atol=1e-6)


@pytest.mark.parametrize("make", [gpt2, t5])
def test_joint_projections_and_position_biases_are_in_the_scores(make):
    model = make()
    model.set_weights([2 * w for w in model.get_weights()])
    ids = np.random.default_rng(0).integers(1, VOCABULARY, (3, 5)).astype("int32")
    x = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    encoder = model.transformer if make is gpt2 else model
    answer = encoder(x, output_attentions=True, output_hidden_states=True, return_dict=True)
    records = recorded(model, x)
    assert len(records) == 2
    np.testing.assert_allclose(records[0].hidden, answer.hidden_states[1], atol=1e-5)
    for record, attention in zip(records, answer.attentions, strict=True):
        np.testing.assert_allclose(tf.nn.softmax(record.scores()), attention, atol=1e-5)


def plain_encoder(library, norm_first):
    """Two blocks of plain layers in a functional model, whose padding is masked."""
    layers = keras_of(library).layers
    ids = layers.Input((LENGTH,), dtype="int32", name="token_ids")
    x = layers.Embedding(VOCABULARY, 8, mask_zero=True)(ids)
    outputs = []
    for _ in range(2):
        read = layers.LayerNormalization()(x) if norm_first else x
        x = layers.add([x, layers.MultiHeadAttention(2, 4)(read, read)])
        x = x if norm_first else layers.LayerNormalization()(x)
        read = layers.LayerNormalization()(x) if norm_first else x
        forward = layers.Dense(8)(layers.Dense(16, activation="relu")(read))
        x = layers.add([x, forward])
        x = x if norm_first else layers.LayerNormalization()(x)
        outputs.append(x)
    pooled = layers.Lambda(lambda h: h[:, 0], output_shape=(8,))(x)
    keras = keras_of(library)
    model = fixed(keras.Model(ids, layers.Dense(3)(pooled)))
    return model, keras.Model(ids, outputs)


@pytest.mark.parametrize("library, norm_first", covering(["keras", "tf_keras"], [True, False]))
def test_blocks_of_plain_layers_are_recorded(library, norm_first):
    model, states = plain_encoder(library, norm_first)
    ids = np.random.default_rng(0).integers(1, VOCABULARY, (4, LENGTH)).astype("int32")
    ids[1, 3:] = 0
    records = recorded(model, ids)
    for record, hidden in zip(records, states(ids), strict=True):
        np.testing.assert_allclose(record.hidden, hidden, atol=1e-5)
        assert record.scores().shape == (4, 2, LENGTH, LENGTH)
    np.testing.assert_array_equal(records[0].mask, ids > 0)


TERMS = {
    "hidden": {"hidden": HiddenStates(2.0)},
    "cosine": {"hidden": HiddenStates(metric="cosine"), "layers": {0: 0}},
    "attention": {"attention": AttentionMaps(3.0)},
    "mse": {"attention": AttentionMaps(metric="mse"), "layers": "last"},
    "relations": {"attention": Relations(100.0), "layers": "last"},
}


def trained(specimen, x, y, terms, *, teacher=None, replicas=1, k=1, change=None, **kwargs):
    with mirrored(replicas).scope():
        model = of_depth(specimen, 2)
        optimizer = keras_of(specimen.library).optimizers.SGD(0.1)
        compiled(specimen.library, model, optimizer, **kwargs)
    if change is not None:
        change(model)
    before = model.get_weights()
    if terms is not None:
        teacher = teacher or of_depth(specimen, 4, 1.5)
        ke.distill(model, teacher, alpha=0.7, **terms)
    ke.accumulate(model, k)
    model.fit(batches(x, y, batch_size=6), verbose=0, shuffle=False)
    return before, model


@sampled()
@pytest.mark.parametrize("specimen, terms, replicas", covering(BERTS, TERMS, (1, 2), strength=1))
def test_microbatches_are_one_batch_and_padding_has_no_effect(specimen, terms, replicas):
    x, y, _ = ragged(specimen)
    noisy, _, _ = ragged(specimen, noise=9)
    before, one = trained(specimen, x, y, TERMS[terms])
    _, split = trained(specimen, x, y, TERMS[terms], replicas=replicas, k=3)
    _, padded = trained(specimen, noisy, y, TERMS[terms])
    _, without = trained(specimen, x, y, {})
    assert_same(one, split, 2e-6)
    assert_same(one, padded, 2e-6)
    assert moved(before, one) > 0 and moved(one.get_weights(), without) > 1e-6


def low_rank(model):
    ke.lora(model, rank=2, layers="query|value")


def first_token(model):
    assert ke.unpad(model).first_token_only


CHANGES = {
    "unpad": (first_token, {}, 1e-5),
    "remat": (ke.remat, {}, 1e-6),
    "xla": (None, {"jit_compile": True}, 1e-5),
}


@sampled()
@pytest.mark.parametrize("specimen, change", covering(BERTS, CHANGES, strength=1))
def test_it_is_the_same_with_other_parts_of_the_step(specimen, change):
    x, y, _ = ragged(specimen)
    function, kwargs, tolerance = CHANGES[change]
    terms = {"hidden": 1.0, "attention": Relations()}
    _, plain = trained(specimen, x, y, terms)
    _, changed = trained(specimen, x, y, terms, change=function, **kwargs)
    assert_same(plain, changed, tolerance)


@pytest.mark.full
@pytest.mark.parametrize("specimen", BERTS)
def test_only_adapters_train_with_lora(specimen):
    x, y, _ = ragged(specimen)
    _, model = trained(specimen, x, y, {"hidden": 1.0, "attention": 1.0}, change=low_rank)
    trainable = {id(flavors.of(model).value(v)) for v in model.trainable_variables}
    frozen = [w for w in flavors.of(model).weights(model) if id(w) not in trainable]
    assert frozen and trainable
    _, without = trained(specimen, x, y, None, change=low_rank)
    values = zip(model.trainable_variables, without.trainable_variables, strict=True)
    changes = [np.abs(np.asarray(a) - np.asarray(b)).max() for a, b in values]
    assert max(changes) > 1e-6


@pytest.mark.full
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_in_mixed_precision(library, policy):
    specimen = BERTS[0] if library == "keras" else BERTS[1]
    x, y, _ = ragged(specimen)
    teacher = of_depth(specimen, 4, 1.5)
    terms = {"hidden": 1.0, "attention": 1.0}
    _, plain = trained(specimen, x, y, terms, teacher=teacher)
    ke.mixed_precision(policy, library=library)
    try:
        before, half = trained(specimen, x, y, terms, teacher=teacher, k=2)
        half_teacher = of_depth(specimen, 4, 1.5)
        _, both = trained(specimen, x, y, terms, teacher=half_teacher)
    finally:
        ke.mixed_precision("float32", library=library)
    for model in (half, both):
        change = moved(before, model)
        assert 0.3 * moved(before, plain) < change < 3 * moved(before, plain)
        assert_same(plain, model, 0.3 * change)


def test_models_of_other_widths_and_heads_learn_relations():
    specimen = BERTS[0]
    import keras_hub

    backbone = keras_hub.models.BertBackbone(VOCABULARY, 3, 4, 24, 32, max_sequence_length=16)
    teacher = keras_hub.models.BertTextClassifier(backbone, num_classes=3)
    x, y, _ = ragged(specimen)
    terms = {"attention": Relations(heads=4), "layers": "last", "divergence": None}
    before, model = trained(specimen, x, y, terms, teacher=teacher)
    _, without = trained(specimen, x, y, {"divergence": "forward_kl"}, teacher=teacher)
    assert moved(before, model) > 0 and moved(model.get_weights(), without) > 1e-6


def test_a_layer_around_blocks_that_is_recomputed_is_refused():
    specimen = BY_NAME["hugging-face-bert"]
    model = compiled("tf_keras", of_depth(specimen, 2))
    ke.remat(model, "encoder$")
    ke.distill(model, of_depth(specimen, 2, 1.5), hidden=1.0)
    x, y, _ = ragged(specimen)
    with pytest.raises(ValueError, match=r"if ke\.remat recomputes blocks, not layers around them"):
        model.fit(batches(x, y, batch_size=6), verbose=0)
