"""Trained classifiers are saved with head, tokenizer and labels, and restored as they were."""

import json

import bert_folder
import numpy as np
import pytest

import keras_efficient as ke
from keras_efficient.models._trained_folder import MANIFEST

both = pytest.mark.parametrize("library", ["keras", "tf_keras"])
NAMES = ["bad", "good", "neither"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return bert_folder.write(tmp_path_factory.mktemp("bert") / "tiny")


@both
def test_saved_and_restored(library, folder, tmp_path):
    """With the exact GELU that `load` gives to KerasHub's BERT, and with a smaller architecture."""
    model, tokenizer = ke.models.load(folder, num_labels=3, library=library, seed=4)
    ids, words = ke.data.trim_vocabulary(tokenizer, bert_folder.TEXTS)
    small, _ = ke.shrink(model, layers=1, feed_forward=8, vocabulary=ids)
    for name, (saved, encode) in {"a": (model, tokenizer), "b": (small, words)}.items():
        info = ke.models.save(
            saved, encode, tmp_path / name, label_names=NAMES, facts={"seed": np.int64(4)}
        )
        assert (info.library, info.label_names) == (library, tuple(NAMES))
        assert ke.models.info(tmp_path / name) == info and info.facts == {"seed": 4}
        again, decoded = ke.models.load(tmp_path / name)
        assert decoded.inputs == encode.inputs and decoded.serialized == encode.serialized
        np.testing.assert_array_equal(
            bert_folder.logits(again, decoded), bert_folder.logits(saved, encode)
        )
        assert not again.get_weights()[0].shape[0] > len(bert_folder.VOCABULARY)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
    # It is shrunk, trained and saved like any other.
    assert ke.shrink(again, feed_forward=4).report.sizes["feed_forward"] == (8, 4)


@both
def test_no_optimizer_is_saved_and_training_goes_on(library, folder, tmp_path):
    model, tokenizer = ke.models.load(folder, library=library)
    keras = ke.flavor.of(model).keras
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(ke.optimizers.AdamW(1e-3, library=model), loss, jit_compile=False)
    data = ke.data.text(bert_folder.TEXTS, tokenizer, batch_size=3, max_length=32)
    data = data.map(lambda x: (x, [0, 1, 1]))
    model.fit(data, verbose=0, shuffle=False)
    info = ke.models.save(model, tokenizer, tmp_path / "a")
    weights = 4 * model.count_params()
    # HDF5 takes some bytes for each of these small arrays.
    again, _ = ke.models.load(info.directory)
    empty = ke.models.save(again, tokenizer, tmp_path / "b").files["model.weights.h5"]["bytes"]
    assert info.files["model.weights.h5"]["bytes"] <= empty + weights / 2
    model.fit(data, verbose=0, shuffle=False)
    assert int(model.optimizer.iterations.numpy()) == 2


def test_the_newest_trained_model_beside_versions(folder, tmp_path):
    model, tokenizer = ke.models.load(folder)
    for number in (2, 10):
        ke.models.save(model, tokenizer, tmp_path / "reviews" / f"trained-{number}")
    assert ke.models.info(tmp_path / "reviews").directory.name == "trained-10"
    assert ke.models.load(tmp_path / "reviews").model.count_params() == model.count_params()


def test_what_cannot_be_saved(folder, tmp_path):
    import keras

    model, tokenizer = ke.models.load(folder)
    with pytest.raises(ke.InputError, match="3 names for a model of 2 classes"):
        ke.models.save(model, tokenizer, tmp_path / "a", label_names=NAMES)
    with pytest.raises(ke.InputError, match="dict of JSON values"):
        ke.models.save(model, tokenizer, tmp_path / "a", facts={"x": object()})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c").touch()
    with pytest.raises(ke.InputError, match="a folder of its own"):
        ke.models.save(model, tokenizer, tmp_path / "b")
    encode = ke.data.Tokenizer(lambda texts, n: [[1]] * len(texts), inputs=tokenizer.inputs)
    with pytest.raises(ke.InputError, match=r"must be a tokenizers\.Tokenizer"):
        ke.models.save(model, encode, tmp_path / "a")
    plain = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(ke.InputError, match="text classifier of KerasHub or Hugging Face"):
        ke.models.save(plain, tokenizer, tmp_path / "a")
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_what_cannot_be_loaded(folder, tmp_path):
    model, tokenizer = ke.models.load(folder)
    path = ke.models.save(model, tokenizer, tmp_path / "a").directory
    with pytest.raises(ke.InputError, match="loads with the library that saved it"):
        ke.models.load(path, library="tf_keras")
    with pytest.raises(ke.InputError, match="whose head has 2 classes"):
        ke.models.load(path, num_labels=3)
    manifest = json.loads((path / MANIFEST).read_text())
    for change, problem in (
        ({"format": 9}, "format is 9"),
        ({"label_names": "ab"}, "'label_names' is 'ab'"),
        ({"tokenizer": {}}, "'pad_id'"),
        ({"files": {}}, r"config\.json' is missing"),
    ):
        (path / MANIFEST).write_text(json.dumps({**manifest, **change}))
        with pytest.raises(ke.InputError, match=problem):
            ke.models.load(path)
    (path / MANIFEST).write_text(json.dumps(manifest))
    weights = path / "model.weights.h5"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ke.InputError, match="SHA-256 differs"):
        ke.models.info(path)
    # A class outside of KerasHub is not made, whatever the hashes say.
    weights.write_bytes(content)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "class_name": "Sequential"}))
    from keras_efficient.models._trained_folder import file_facts

    manifest["files"]["config.json"] = file_facts(path / "config.json")
    (path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ke.InputError, match="a class that KerasHub has"):
        ke.models.load(path)
