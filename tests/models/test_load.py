"""One folder gives the same model in both libraries; a broken one gives an error message."""

import json
import shutil

import bert_folder
import numpy as np
import pytest
import tensorflow as tf
from covering import sampled

import keras_efficient as ke
from keras_efficient.models._checkpoint_folder import describe, find_checkpoint

both = pytest.mark.parametrize("library", ["keras", "tf_keras"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return bert_folder.write(tmp_path_factory.mktemp("bert") / "tiny")


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture(scope="module")
def loaded(folder):
    return {
        library: ke.models.load(folder, num_labels=3, library=library, seed=1)
        for library in ("keras", "tf_keras")
    }


def logits(loaded):
    return bert_folder.logits(*loaded)


def test_both_libraries_give_the_same_logits_and_hidden_states(loaded):
    np.testing.assert_allclose(logits(loaded["keras"]), logits(loaded["tf_keras"]), atol=1e-5)
    (hub, hub_tokens), (hf, hf_tokens) = loaded["keras"], loaded["tf_keras"]
    inputs = bert_folder.features(hub_tokens)
    ours = hub.backbone(inputs)["sequence_output"]
    theirs = hf.bert(bert_folder.features(hf_tokens)).last_hidden_state
    mask = inputs["padding_mask"][..., None]
    assert 0 < mask.mean() < 1
    np.testing.assert_allclose(ours * mask, theirs * mask, atol=1e-5)
    assert np.std(logits(loaded["keras"])) > 1e-2


def test_gelu_is_the_exact_one(loaded):
    import keras

    # KerasHub's encoder layers hold the function, and so do their Dense layers.
    layers = loaded["keras"].model._flatten_layers()
    activations = [getattr(layer, "activation", None) for layer in layers]
    x = tf.constant([-2.0, 0.5, 1.0])
    exact = x * 0.5 * (1 + tf.math.erf(x / np.sqrt(2.0)))
    gelus = [a for a in activations if "gelu" in getattr(a, "__name__", "")]
    assert len(gelus) >= bert_folder.LAYERS
    for gelu in gelus:
        np.testing.assert_allclose(gelu(x), exact, atol=1e-6)
    assert np.abs(keras.activations.gelu(x, approximate=True) - exact).max() > 1e-5


@both
def test_dropout_is_that_of_the_configuration(loaded, library):
    """KerasHub's converter of BERT leaves it out, and all rates are 0.1."""
    model, tokenizer = loaded[library]
    sizes = {"num_layers": 1, "hidden_dim": 8, "num_heads": 2, "library": library}
    for task in ("classification", "token_classification"):
        labels = 3 if task == "token_classification" else 2
        options = {"task": task, "num_labels": labels, "dropout": 0.3}
        created, _ = ke.models.create(tokenizer, **options, **sizes)
        for found, expected in ((model, 0.0), (created, 0.3)):
            rates = {layer.rate for layer in found._flatten_layers() if hasattr(layer, "rate")}
            assert rates == {expected}


@sampled()
@both
def test_the_head_is_the_seeds(folder, loaded, library):
    again = ke.models.load(folder, num_labels=3, library=library, seed=1)
    np.testing.assert_array_equal(logits(again), logits(loaded[library]))
    other = ke.models.load(folder, num_labels=3, library=library, seed=2)
    assert np.abs(logits(other) - logits(again)).max() > 1e-3


@sampled()
@both
def test_path_as_text_and_number_of_labels(folder, library):
    model, tokenizer = ke.models.load(str(folder), num_labels=5, library=library)
    assert logits((model, tokenizer)).shape == (len(bert_folder.TEXTS), 5)
    assert tokenizer.max_length == bert_folder.POSITIONS
    assert tokenizer.pad_id == 0


def test_bfloat16_weights(copy, loaded):
    from safetensors.tensorflow import save_file

    tensors = bert_folder.arrays()
    halves = {name: tf.cast(array, tf.bfloat16) for name, array in tensors.items()}
    save_file(halves, copy / "model.safetensors", metadata={"format": "pt"})
    found = [logits(ke.models.load(copy, num_labels=3, library=n, seed=1)) for n in loaded]
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    assert 1e-5 < np.abs(found[0] - logits(loaded["keras"])).max() < 0.1


@sampled()
@both
def test_sharded_weights(copy, loaded, library):
    from safetensors.numpy import save_file

    tensors = list(bert_folder.arrays().items())
    (copy / "model.safetensors").unlink()
    weight_map = {}
    for index, part in enumerate((tensors[:9], tensors[9:])):
        name = f"model-0000{index + 1}-of-00002.safetensors"
        save_file(dict(part), copy / name, metadata={"format": "pt"})
        weight_map.update((key, name) for key, _ in part)
    index = {"metadata": {}, "weight_map": weight_map}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    again = ke.models.load(copy, num_labels=3, library=library, seed=1)
    np.testing.assert_array_equal(logits(again), logits(loaded[library]))


def test_a_kerashub_preset_folder(tmp_path):
    import keras_hub

    tokenizer = keras_hub.tokenizers.BertTokenizer(bert_folder.VOCABULARY, lowercase=True)
    preprocessor = keras_hub.models.BertTextClassifierPreprocessor(tokenizer, sequence_length=16)
    backbone = keras_hub.models.BertBackbone(len(bert_folder.VOCABULARY), 1, 2, 8, 16, 0.0, 24)
    classifier = keras_hub.models.BertTextClassifier(backbone, 2, preprocessor)
    preset = tmp_path / "preset"
    classifier.save_to_preset(str(preset))

    model, ours = ke.models.load(preset, num_labels=2)
    theirs = preprocessor(bert_folder.TEXTS)
    for ids, row, mask in zip(
        ours.encode(bert_folder.TEXTS, 16), theirs["token_ids"], theirs["padding_mask"], strict=True
    ):
        np.testing.assert_array_equal(ids, np.asarray(row)[np.asarray(mask)])
    inputs = bert_folder.features(ours)
    ours, theirs = (np.asarray(m(inputs)["pooled_output"]) for m in (model.backbone, backbone))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    with pytest.raises(ke.InputError, match="KerasHub preset loads with library='keras'"):
        ke.models.load(preset, library="tf_keras")


def test_trap_35_transformers_cannot_read_pytorch_safetensors(folder):
    import transformers
    from packaging.version import parse

    if parse(transformers.__version__) < parse("4.54"):
        pytest.skip("transformers before 4.54 still could")
    with pytest.raises(TypeError, match="safe_open' object is not iterable"):
        transformers.TFBertForSequenceClassification.from_pretrained(str(folder))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"library": "torch"}, "`library` must be one of .* Received: 'torch'"),
        ({"task": "poetry"}, "`task` must be one of .* Received: 'poetry'"),
        ({"num_labels": 1}, "`num_labels` must be an int of at least 2. Received: 1"),
        ({"num_labels": True}, "`num_labels` must be an int of at least 2. Received: True"),
    ],
)
def test_wrong_arguments(folder, arguments, message):
    with pytest.raises(ke.InputError, match=message):
        ke.models.load(folder, **arguments)


def no_config(folder):
    (folder / "config.json").unlink()


def bad_json(folder):
    (folder / "config.json").write_text("{")


def no_object(folder):
    (folder / "config.json").write_text("[]")


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def torn(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def missing_shard(folder):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def no_tensors(folder):
    from safetensors.numpy import save_file

    save_file({}, folder / "model.safetensors")


def missing_tensor(folder):
    from safetensors.numpy import save_file

    arrays = bert_folder.arrays()
    del arrays["encoder.layer.0.attention.self.query.weight"]
    save_file(arrays, folder / "model.safetensors")


def no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "The model folder must exist"),
        (no_config, "must hold config.json"),
        (bad_json, "config.json must be readable JSON"),
        (no_object, "config.json must hold a JSON object. Received: list"),
        (no_weights, "A model folder must hold weights"),
        (torn, "A weights file must be complete"),
        (missing_shard, "A weights file must be complete"),
        (no_tensors, "A weights file must hold tensors"),
        (missing_tensor, r"encoder\.layer\.0\.attention\.self\.query\.weight"),
        (no_tokenizer, "must hold tokenizer.json or vocab.txt"),
    ],
)
@both
def test_a_broken_folder(copy, damage, message, library):
    damage(copy)
    with pytest.raises(ke.InputError, match=message):
        ke.models.load(copy, library=library)


def test_a_file_instead_of_a_folder(folder):
    with pytest.raises(ke.InputError, match=r"A model is a folder\. Received the file"):
        ke.models.load(folder / "model.safetensors")


def test_a_missing_folder_is_said_to_be_missing(tmp_path, monkeypatch):
    """A path without a leading dot was taken for the name of a preset, and looked up as one."""
    (tmp_path / "models" / "bert_tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for path, library, hint in (
        ("models/bert_tny", "keras", r"Did you mean 'models/bert_tiny'\?"),
        ("models/bert_tny", "tf_keras", r"Did you mean 'models/bert_tiny'\?"),
        ("nowhere/bert", "keras", "Nor does the folder 'nowhere'"),
        ("no/where/bert", "tf_keras", "Nor does the folder 'no/where'"),
        ("bert/", "keras", "Received: 'bert/', which does not"),
        ("~/no_such_bert", "tf_keras", "which does not"),
    ):
        with pytest.raises(ke.InputError, match=f"The model folder must exist.*{hint}"):
            find_checkpoint(path, library)
    # These can be names, whose loading says that no such folder exists either.
    for name, library in (
        ("bert_tiny_en_uncased", "keras"),
        ("hf://owner/name", "keras"),
        ("bert-base-uncased", "tf_keras"),
        ("owner/name", "tf_keras"),
    ):
        assert find_checkpoint(name, library) == name
        assert f"which is no folder in {tmp_path}" in describe(name)
