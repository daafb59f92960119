"""Families of models whose blocks are described: GPT-2, ViT, BART, T5 and their relatives."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from covering import sampled
from family_models import FAMILIES, bart, features, gpt2, t5

import keras_efficient as ke
from keras_efficient.architecture import recognizers

#: Families with the code of others.
RELATIVES = ("deit", "marian", "mbart", "t5-gated")
every_family = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.full] * (n in RELATIVES)) for n in FAMILIES]
)


def outputs_and_gradients(model, x, ignore_padding):
    """The outputs, those of real tokens if padding is ignored, and gradients of their squares."""
    mask = x.get("attention_mask") if ignore_padding and isinstance(x, dict) else None
    variables = [ke.flavor.of(model).value(v) for v in model.trainable_variables]
    with tf.GradientTape() as tape:
        result = model(x, training=False)
        result = dict(result) if hasattr(result, "to_tuple") else result
        outputs = [
            tf.boolean_mask(y, mask) if mask is not None and y.shape[:2] == mask.shape else y
            for y in tf.nest.flatten(result)
        ]
        total = tf.add_n([tf.reduce_sum(tf.square(y)) for y in outputs])
    gradients = tape.gradient(total, variables, unconnected_gradients="zero")
    return outputs, list(map(tf.convert_to_tensor, gradients))


def assert_close(found, expected):
    for tensors, others in zip(found, expected, strict=True):
        largest = max(float(tf.reduce_max(tf.abs(y))) for y in others)
        for y, other in zip(tensors, others, strict=True):
            np.testing.assert_allclose(y, other, rtol=1e-5, atol=1e-5 * max(largest, 1))


def unpadded_is_padded(model, x, attach=None):
    """Compare a model with itself without padding; return the report of `ke.unpad`."""
    if attach is not None:
        attach(model)
    ignore = "logits" not in model(x) if isinstance(x, dict) else False
    ignore |= isinstance(x, dict) and "decoder_input_ids" in x
    expected = outputs_and_gradients(model, x, ignore)
    report = ke.unpad(model, ignore_padding_outputs=ignore)
    assert_close(outputs_and_gradients(model, x, ignore), expected)
    return report


@every_family
def test_outputs_and_gradients_are_those_of_the_padded_model(name):
    model, x = FAMILIES[name](), features(name)
    architecture = ke.architecture.describe(model)
    assert len(architecture.blocks) == 2
    report = unpadded_is_padded(model, x)
    assert len(report.blocks) == 2 and set(report.unchanged) == set(architecture.unknown)
    assert report.masked == ("attention_mask" in x)
    assert report.first_token_only == name.endswith(("vit", "deit"))


@pytest.mark.parametrize("name", ["gpt2", "bart", "t5-encoder"])
@sampled(2)
def test_gaps_in_the_mask(name):
    """Positions of T5 are those in the text, not in the rows."""
    model, x = FAMILIES[name](), features(name)
    x["attention_mask"] = np.array(
        [[1, 0, 1, 1, 0, 1, 1], [1, 1, 1, 0, 0, 0, 1], [1] * 7, [1, 0, 0, 0, 0, 1, 1]], "int32"
    )
    x["input_ids"] = np.maximum(x["input_ids"], 3)
    unpadded_is_padded(model, x)


METHODS = {
    "lora": lambda model: ke.lora(model, rank=2),
    "prune": lambda model: ke.prune(model, 0.5),
    "quantize_aware": lambda model: ke.quantize_aware(model, activation_bits=None),
    "adapters": lambda model: ke.adapters(model, 2),
    "remat": ke.remat,
}


@pytest.mark.parametrize("name", ["gpt2", "t5-encoder"])
@pytest.mark.parametrize("method", METHODS)
@sampled(4)
def test_weights_are_read_through_their_transforms(name, method):
    model, x = FAMILIES[name](), features(name)
    plain = model(x)[0]

    def attach(model):
        METHODS[method](model)
        if method in ("lora", "adapters"):
            # Deltas and adapters begin at zero.
            rng = np.random.default_rng(0)
            model.set_weights([rng.normal(0, 0.2, w.shape) for w in model.get_weights()])
        if method != "remat":
            assert np.max(np.abs(model(x)[0] - plain)) > 1e-4

    report = unpadded_is_padded(model, x, attach)
    assert len(report.blocks) == 2 and not report.unchanged


def swapped(block):
    attention = block.attention
    return dataclasses.replace(
        block,
        attention=dataclasses.replace(attention, key=attention.value, value=attention.key),
    )


def without_position_bias(block):
    def inputs(args, kwargs):
        return dataclasses.replace(block.inputs(args, kwargs), position_bias=None)

    def outputs(hidden, given):
        return block.outputs(hidden, block.inputs((hidden,), {}))

    return dataclasses.replace(block, inputs=inputs, outputs=outputs)


def not_causal(block):
    return dataclasses.replace(block, attention=dataclasses.replace(block.attention, causal=False))


@pytest.mark.parametrize(
    "name, change",
    [
        ("bart", swapped),
        ("gpt2", not_causal),
        ("vit", swapped),
        ("t5-encoder", without_position_bias),
    ],
)
@sampled(2)
def test_a_wrong_description_is_not_used(name, change, monkeypatch):
    model, x = FAMILIES[name](), features(name)
    expected = model(x)[0]
    path = ke.architecture.describe(model).blocks[0].path

    def wrong(recognizer):
        def found(where, layer):
            block = recognizer(where, layer)
            return change(block) if getattr(block, "path", "") == path else block

        return found

    monkeypatch.setattr(recognizers, "RECOGNIZERS", list(map(wrong, recognizers.RECOGNIZERS)))
    report = ke.unpad(model, ignore_padding_outputs=name not in ("gpt2", "vit"))
    assert len(report.blocks) == 1 and "does not agree" in report.unchanged[path]
    if name in ("gpt2", "vit"):
        np.testing.assert_allclose(model(x)[0], expected, atol=1e-5)


def test_a_cache_is_not_computed_on_rows():
    with pytest.raises(ValueError, match="use_cache=False"):
        ke.unpad(gpt2(use_cache=True))


def test_attention_scores_are_computed_as_before():
    x, asked = features("bart"), {"output_attentions": True}
    model = bart()
    expected = model(x, **asked)
    ke.unpad(model, ignore_padding_outputs=True)
    found = model(x, **asked)
    for y, other in zip(found.encoder_attentions, expected.encoder_attentions, strict=True):
        np.testing.assert_array_equal(y, other)


def test_decoders_of_encoders_and_decoders_are_not_described():
    found = ke.architecture.describe(t5(decoder=True)).unknown
    assert len(found) == 2 and all("it is a decoder" in reason for reason in found.values())


def test_the_text_tells_gates():
    assert "16 wide, gelu_approximate, gated" in str(ke.architecture.describe(t5("gated-gelu")))
