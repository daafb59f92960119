"""Images, and texts with numbers: training, compression and export of models that read floats."""

import keras
import keras_hub
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
from covering import sampled
from family_models import CLASSES, FAMILIES, features
from in_process_export import in_process as in_process
from zoo import VOCABULARY, keras_of

import keras_efficient as ke
from keras_efficient.exporters import Features
from keras_efficient.exporters._model_file import trace_model
from keras_efficient.exporters.onnx import converter

IMAGES = ("kerashub-vit", "vit")
images = pytest.mark.parametrize("name", IMAGES)
FORMATS = (None, "bfloat16", "int8-weights", "int8")


def compiled(model, rate=1e-3):
    library = ke.flavor.of(model).keras
    loss = library.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(ke.optimizers.SGD(rate, library=model), loss)
    return model


def image_model(name):
    """A model of images with fixed weights, which need no gradient to depend on its input."""
    model = FAMILIES[name]()
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.3, w.shape).astype("float32") for w in model.get_weights()])
    return model


def text_and_numbers():
    """A KerasHub backbone whose pooled output and two numbers are classified together."""
    keras.utils.set_random_seed(0)
    backbone = keras_hub.models.BertBackbone(
        VOCABULARY, 2, 2, 8, 16, max_sequence_length=16, dropout=0.0
    )
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in backbone.input}
    pooled = backbone(inputs)["pooled_output"]
    numbers = keras.Input((2,), name="numbers")
    projected = keras.layers.Dense(4, "relu", name="projection")(numbers)
    both = keras.layers.Concatenate()([pooled, projected])
    return keras.Model(inputs | {"numbers": numbers}, keras.layers.Dense(CLASSES)(both))


def texts_and_numbers(examples=6, length=7, mask_dtype="int32"):
    """Texts of unequal lengths with two numbers each, and labels."""
    rng = np.random.default_rng(0)
    mask = np.arange(length)[None] < rng.integers(2, length + 1, examples)[:, None]
    found = {
        "token_ids": (rng.integers(1, VOCABULARY, mask.shape) * mask).astype("int32"),
        "padding_mask": mask.astype(mask_dtype),
        "segment_ids": np.zeros(mask.shape, "int32"),
        "numbers": rng.normal(size=(examples, 2)).astype("float32"),
    }
    return found, rng.integers(0, CLASSES, examples)


@images
def test_methods_leave_out_the_projection_of_patches(name):
    """Pruned 2:4, it cost a small ViT more accuracy than all of its blocks."""
    model = image_model(name)
    (patch,) = ke.architecture.describe(model).embeddings.patch
    assert patch.shape == (4, 4, 3, 8)
    assert f"patch: {patch.path} [4, 4, 3, 8]" in str(ke.architecture.describe(model))
    before = np.array(patch.value)
    ke.prune(model, pattern="2:4")
    pruned = ke.parametrize.select(model, caller="the test", head=False)
    # Query, key, value, output and two of the feed-forward part of two blocks.
    assert len(pruned) == 12 and patch.path not in [w.path for w in pruned]
    np.testing.assert_array_equal(patch.value, before)
    assert len(ke.parametrize.select(model, caller="the test")) == 14


def test_convolutions_of_a_model_without_attention_are_pruned():
    for library in ("keras", "tf_keras"):
        layers = keras_of(library).layers
        model = keras_of(library).Sequential(
            [layers.Input((8, 8, 4)), layers.Conv2D(8, 2, 2), layers.Flatten(), layers.Dense(2)]
        )
        assert ke.architecture.describe(model).embeddings.patch == ()
        (weight,) = ke.parametrize.select(model, caller="the test", head=False)
        assert weight.shape == (2, 2, 4, 8)


@sampled()
@images
def test_microbatches_of_images_are_one_batch(name):
    x, y = features(name), np.arange(4) % CLASSES
    found = []
    for method in (lambda model: None, ke.unpad, lambda m: ke.accumulate(m, microbatch_size=2)):
        model = compiled(image_model(name), 0.1)
        method(model)
        model.fit(tf.data.Dataset.from_tensors((x, y)), verbose=0)
        found.append(model.get_weights())
    start = image_model(name).get_weights()
    assert max(np.abs(a - b).max() for a, b in zip(found[0], start, strict=True)) > 1e-3
    for weights in found[1:]:
        for one, other in zip(found[0], weights, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@images
@pytest.mark.parametrize("quantize", FORMATS)
@sampled(3)
def test_images_are_exported(name, quantize, tmp_path, in_process):
    model, x = image_model(name), features(name)
    if quantize == "int8":
        ke.calibrate(model, x)
    report = ke.export(model, tmp_path / "a", sample=x, quantize=quantize)
    (shape,) = (spec["shape"] for spec in report.signature["inputs"].values())
    assert shape == [None, *Features(model, x).arrays.popitem()[1].shape[1:]]
    answers = in_process[-1]["logits"]
    assert np.abs(answers - answers[:1]).max() > 0.01


def converted_inputs():
    """Names of the inputs of KerasHub's ViT in ONNX, and the file's answer to a batch."""
    model, x = image_model("kerashub-vit"), features("kerashub-vit")
    function = trace_model(model, ke.flavor.of(model), Features(model, x), True)
    file = converter.convert(function)
    return [value.name for value in file.graph.input], file, model(x, training=False), x


def test_a_captured_constant_is_no_input_of_an_onnx_file():
    """KerasHub's ViT holds its position ids as a tensor."""
    names, file, expected, x = converted_inputs()
    assert names == ["inputs"]
    (answer,) = onnxruntime.InferenceSession(file.SerializeToString()).run(None, {"inputs": x})
    np.testing.assert_allclose(answer, expected, atol=1e-4)


@pytest.mark.full
def test_trap_tf2onnx_makes_inputs_of_captured_constants(monkeypatch):
    monkeypatch.setattr(converter, "_WithoutCaptures", lambda function: function)
    assert len(converted_inputs()[0]) == 2


def test_padding_is_left_out_beside_numbers():
    """The features to compare on are made up, numbers among them."""
    model, (x, _) = text_and_numbers(), texts_and_numbers()
    expected = model(x, training=False)
    report = ke.unpad(model)
    assert len(report.blocks) == 2 and report.masked and report.first_token_only
    np.testing.assert_allclose(model(x, training=False), expected, atol=1e-5)


def test_numbers_are_split_with_their_texts():
    x, y = texts_and_numbers()
    found = []
    for size in (None, 4):
        model = compiled(text_and_numbers(), 0.5)
        if size is not None:
            ke.accumulate(model, microbatch_size=size)
        model.fit(x, y, batch_size=6, shuffle=False, verbose=0)
        found.append(model.get_weights())
    for weights in found[1:]:
        for one, other in zip(found[0], weights, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)
    # With the numbers of other texts the update is another one.
    model = compiled(text_and_numbers(), 0.5)
    model.fit(x | {"numbers": x["numbers"][::-1]}, y, batch_size=6, verbose=0)
    assert any(
        np.abs(a - b).max() > 1e-4 for a, b in zip(found[0], model.get_weights(), strict=True)
    )


@pytest.mark.parametrize("quantize", FORMATS)
@sampled(2)
def test_texts_with_numbers_are_exported(quantize, tmp_path, in_process):
    model, (x, _) = text_and_numbers(), texts_and_numbers()
    ke.lora(model, rank=2)
    if quantize == "int8":
        report = ke.calibrate(model, x)
        assert "inputs of 15 layers" in str(report)
    report = ke.export(model, tmp_path / "a", sample=x, quantize=quantize)
    inputs = report.signature["inputs"]
    assert inputs["numbers"] == {"dtype": "float32", "shape": [None, 2]}
    assert inputs["token_ids"]["shape"] == [None, None]
    serve = tf.saved_model.load(str(report.directory)).signatures["tokens"]
    shorter, _ = texts_and_numbers(3, 5)
    (answer,) = serve(**{name: tf.constant(value) for name, value in shorter.items()}).values()
    bound = 1e-5 if quantize in (None, "int8-weights") else 0.05
    if quantize != "int8-weights":
        np.testing.assert_allclose(answer, model(shorter, training=False), atol=bound)
    shorter["numbers"] += 3
    (other,) = serve(**{name: tf.constant(value) for name, value in shorter.items()}).values()
    assert np.abs(answer - other).max() > 0.01


def test_a_bool_mask_has_any_length_too():
    """KerasHub's preprocessors make one; its length was fixed beside token ids of any length."""
    x, _ = texts_and_numbers(mask_dtype="bool")
    specs = Features(text_and_numbers(), x).specs()
    assert {name: spec.shape.as_list() for name, spec in specs.items()} == {
        "token_ids": [None, None],
        "padding_mask": [None, None],
        "segment_ids": [None, None],
        "numbers": [None, 2],
    }
