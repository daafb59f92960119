"""A shrunk model is a plain one: saved, loaded, trained, quantized and used with its tokenizer."""

import bert_folder
import numpy as np
import pytest
from covering import covering, sampled
from test_shrink import MODELS, features, outputs
from zoo import keras_of

import keras_efficient as ke

both = pytest.mark.parametrize("library", ["keras", "tf_keras"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return bert_folder.write(tmp_path_factory.mktemp("bert") / "tiny")


@both
def test_a_loaded_classifier_with_a_trimmed_vocabulary(folder, library):
    model, tokenizer = ke.models.load(folder, num_labels=3, library=library)
    before = bert_folder.logits(model, tokenizer)
    ids, words = ke.data.trim_vocabulary(tokenizer, bert_folder.TEXTS)
    assert len(ids) < len(bert_folder.VOCABULARY)
    small, report = ke.shrink(model, vocabulary=ids)
    assert report.sizes["vocabulary"] == (len(bert_folder.VOCABULARY), len(ids))
    # The activation, which ke.models.load replaces in KerasHub's model, is the same.
    np.testing.assert_array_equal(bert_folder.logits(small, words), before)
    small, report = ke.shrink(model, layers=1, hidden=8, feed_forward=16, vocabulary=ids)
    assert bert_folder.logits(small, words).shape == before.shape
    assert f"{report.parameters:,} of {report.parameters_before:,} parameters" in str(report)
    assert "layers: 1 of 2: 0" in str(report)


def test_the_first_head_of_a_wordpiece_tokenizer_stays_a_special_token(folder):
    model, tokenizer = ke.models.load(folder, num_labels=3, library="tf_keras")
    ids, _ = ke.data.trim_vocabulary(tokenizer, bert_folder.TEXTS)
    with pytest.raises(ValueError, match="must contain the special tokens of the model"):
        ke.shrink(model, vocabulary=ids[1:])


@pytest.mark.parametrize("name", ["kerashub-bert", "hf-bert-classifier", "tf_keras-functional"])
def test_saved_and_loaded_again(name, tmp_path):
    small, _ = ke.shrink(MODELS[name](), layers=1, feed_forward=8)
    x = features(name)
    expected = outputs(small, x)
    small.save_weights(tmp_path / "small.weights.h5")
    again, _ = ke.shrink(MODELS[name](), layers=1, feed_forward=8)
    for weight in again.weights:
        weight.assign(np.zeros(weight.shape, str(np.dtype("float32"))))
    again.load_weights(tmp_path / "small.weights.h5")
    models = [again]
    if name.startswith("hf"):
        small.save_pretrained(tmp_path / "folder")
        models.append(type(small).from_pretrained(tmp_path / "folder"))
        assert models[1].config.num_hidden_layers == 1
        assert models[1].config.intermediate_size == 8
    else:
        small.save(tmp_path / "small.keras")
        library = "keras" if name.startswith("keras") else "tf_keras"
        models.append(keras_of(library).models.load_model(tmp_path / "small.keras"))
    for model in models:
        for a, b in zip(expected, outputs(model, x), strict=True):
            np.testing.assert_allclose(b, a, atol=1e-6)


@pytest.mark.parametrize(
    "task, library", covering(["masked_lm", "causal_lm"], ["tf_keras", "keras"], strength=1)
)
def test_language_models_are_saved_and_loaded_again(task, library, tmp_path):
    kind = "wordpiece" if task == "masked_lm" else "bpe"
    words = ke.data.train_tokenizer(bert_folder.TEXTS, vocabulary_size=300, kind=kind)
    sizes = {"num_layers": 2, "hidden_dim": 8, "num_heads": 2, "library": library}
    model, words = ke.models.create(words, task=task, **sizes)
    small, _ = ke.shrink(model, layers=1, feed_forward=8)
    ke.models.save(small, words, tmp_path / "small", task=task)
    again, _ = ke.models.load(tmp_path / "small")
    data = ke.tasks.get(task).batches(bert_folder.TEXTS, words, batch_size=3)
    features = next(iter(data))[0]
    found = [m.predict_on_batch(features) for m in (small, again)]
    found = [np.asarray(x["logits"] if isinstance(x, dict) else x) for x in found]
    np.testing.assert_allclose(*found, atol=1e-6)
    assert found[0].shape[-1] == words.largest_id + 1


@sampled()
@pytest.mark.parametrize("method", ["lora", "quantize_aware"])
@pytest.mark.parametrize("name", ["kerashub-bert", "hf-bert-classifier", "keras-functional"])
def test_trained_with_lora_and_rounding(name, method):
    small, _ = ke.shrink(MODELS[name](), layers=1, feed_forward=8)
    x, y = features(name), np.array([0, 1, 2, 0], "int32")
    report = ke.lora(small, rank=2) if method == "lora" else ke.quantize_aware(small)
    keras = keras_of("tf_keras" if name.startswith("hf") else "keras")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = ke.optimizers.AdamW(1e-2, library=small)
    small.compile(optimizer, loss)
    losses = small.fit(x, y, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0], report
    ke.merge(small)
    assert ke.shrink(small, feed_forward=4).report.sizes["feed_forward"] == (8, 4)


def test_frozen_layers_stay_frozen():
    model = MODELS["hf-bert-classifier"]()
    model.bert.trainable = False
    small, _ = ke.shrink(model, layers=2)
    assert [v.shape for v in small.trainable_variables] == [
        v.shape for v in small.classifier.trainable_variables
    ]


def test_layers_keep_their_precision():
    """`ke.models.load` keeps the head and the softmax of mixed models in float32."""
    import keras
    import keras_hub

    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=50,
        num_layers=2,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        dtype="mixed_bfloat16",
    )
    model = keras_hub.models.BertTextClassifier(backbone, num_classes=3)
    ke.dtype_policies.keep_float32(model, model.output_dense)
    small, _ = ke.shrink(model, layers=1)
    assert small.output_dense.dtype_policy.name == "float32"
    layers = {type(layer): layer.dtype_policy.name for layer in small._flatten_layers()}
    assert layers[keras.layers.Softmax] == "float32"
    assert layers[keras.layers.EinsumDense] == "mixed_bfloat16"


@both
def test_a_model_of_two_replicas(library):
    import tensorflow as tf

    devices = [device.name for device in tf.config.list_logical_devices("CPU")][:2]
    strategy = tf.distribute.MirroredStrategy([name.removeprefix("/device:") for name in devices])
    with strategy.scope():
        model = MODELS["kerashub-bert" if library == "keras" else "tf_keras-functional"]()
    small, _ = ke.shrink(model, layers=1, feed_forward=8)
    for variable in small.weights:
        value = ke.flavor.of(small).value(variable)
        assert value.distribute_strategy is strategy
