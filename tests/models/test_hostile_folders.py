"""Folders with hostile or broken contents: one clear error each, before memory is taken."""

import base64
import json
import os
import shutil
import tracemalloc

import bert_folder
import numpy as np
import pytest
from covering import sampled
from safetensors.numpy import save_file
from tokenizers import Tokenizer

import keras_efficient as ke
from keras_efficient.data import KERASHUB
from keras_efficient.models._checkpoint_folder import find_checkpoint, load_tokenizer

LIBRARIES = ("keras", "tf_keras")
QUERY = "encoder.layer.0.attention.self.query.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return bert_folder.write(tmp_path_factory.mktemp("bert") / "tiny")


def edit(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def config(**values):
    return lambda folder: edit(folder / "config.json", lambda found: found.update(values))


def settings(**values):
    return lambda folder: (folder / "tokenizer_config.json").write_text(json.dumps(values))


def tokenizer(**values):
    return lambda folder: edit(folder / "tokenizer.json", lambda found: found.update(values))


def text(name, content):
    def write(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_text(content)

    return write


def index(weight_map):
    def write(folder):
        (folder / "model.safetensors").unlink()
        text("model.safetensors.index.json", json.dumps({"weight_map": weight_map}))(folder)

    return write


def weights(name, change):
    def write(folder):
        arrays = bert_folder.arrays()
        arrays[name] = change(arrays[name])
        save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})

    return write


def pipe(name):
    def make(folder):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return make


def device(name):
    def make(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to("/dev/zero")

    return make


def hdf5(make):
    def write(folder):
        import h5py

        (folder / "model.safetensors").unlink()
        with h5py.File(folder / "tf_model.h5", "w") as file:
            make(file)

    return write


def elsewhere(file):
    import h5py

    file["x"] = h5py.ExternalLink("/etc/passwd", "x")


def replace(pattern, content, times=1):
    step = {"type": "Replace", "pattern": pattern, "content": content}
    return {"type": "Sequence", "normalizers": [step] * times}


def template(single, ids=(2,)):
    special = {"[CLS]": {"id": "[CLS]", "ids": list(ids), "tokens": ["[CLS]"] * len(ids)}}
    pair = [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}]
    step = {"type": "TemplateProcessing", "single": single, "pair": pair}
    return {**step, "special_tokens": special}


ONCE, CLS = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[CLS]", "type_id": 0}}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
DEEP = "[" * 5_000 + "]" * 5_000

CASES = {
    # The index of the weights.
    "an index of numbers": (index({"a": 3}), "must map the names of weights to files"),
    "an index of lists": (index({"a": ["b"]}), "must map the names of weights to files"),
    "an index that is a list": (index(["a"]), "must map the names of weights to files"),
    "an empty index": (index({}), "must map the names of weights to files"),
    "a path up": (index({"a": "../other.safetensors"}), "only name files of its folder"),
    "an absolute path": (index({"a": "/etc/passwd"}), "only name files of its folder"),
    "a path down": (index({"a": "b/c.safetensors"}), "only name files of its folder"),
    "no path": (index({"a": ".."}), "only name files of its folder|must be complete"),
    # JSON.
    "deep JSON": (text("config.json", '{"a": ' + DEEP + "}"), "config.json must be readable JSON"),
    "rather deep JSON": (text("config.json", '{"a": ' + DEEP[4900:5100] + "}"), "deeper than 100"),
    "a deep index": (index({"a": json.loads(DEEP[4800:5200])}), "index.json must be readable JSON"),
    "a deep tokenizer": (text("tokenizer.json", DEEP), "tokenizer's file must be readable"),
    "deep settings": (text("tokenizer_config.json", DEEP), "must be readable JSON"),
    "a long number": (text("config.json", '{"a": ' + "9" * 10_000 + "}"), "must be readable JSON"),
    # Sizes.
    "no heads": (config(num_attention_heads=0), "`num_attention_heads` .* from 1 to 1,000"),
    "heads of half": (config(num_attention_heads=2.5), "`num_attention_heads` .*Received: 2.5"),
    "a wide model": (config(hidden_size=10**9), "`hidden_size` .*Received: 1000000000"),
    "a negative width": (config(hidden_size=-16), "`hidden_size` .*Received: -16"),
    "a name for a width": (config(intermediate_size="32"), "`intermediate_size` .*Received: '32'"),
    "a million layers": (config(num_hidden_layers=10**6), "`num_hidden_layers` .*1000000"),
    "a large vocabulary": (config(vocab_size=10**12), "`vocab_size` .*1000000000000"),
    "many positions": (config(max_position_embeddings=10**12), "`max_position_embeddings`"),
    "large together": (
        config(hidden_size=8_192, num_hidden_layers=900),
        r"must fill its model.*about 2\d\d,\d\d\d,\d\d\d,\d\d\d parameters",
    ),
    "a large table": (config(vocab_size=9_000_000), "must fill its model"),
    # Weights.
    "I64 weights": (weights(QUERY, lambda x: x.astype("int64")), f"'{QUERY}' of I64"),
    "I8 weights": (weights(QUERY, lambda x: x.astype("int8")), f"'{QUERY}' of I8"),
    "BOOL weights": (weights(QUERY, lambda x: x > 0), f"'{QUERY}' of BOOL"),
    "HDF5 with a link": (hdf5(elsewhere), "hold its own values.*another file"),
    "HDF5 of 8 GB": (
        hdf5(lambda file: file.create_dataset("x", (2**31,), "float32", chunks=(1024,))),
        "hold its own values.*2,147,483,648 values",
    ),
    "HDF5 of integers": (
        hdf5(lambda file: file.create_dataset("x", data=np.zeros((2, 2), "int8"))),
        "hold its own values.*'x' of int8",
    ),
    # Files that are none.
    "a pipe as configuration": (pipe("config.json"), "config.json must be a regular file"),
    "a device as configuration": (device("config.json"), "config.json must be a regular file"),
    "a pipe as weights": (pipe("model.safetensors"), "model.safetensors must be a regular file"),
    "a pipe as settings": (pipe("tokenizer_config.json"), "must be a regular file"),
    # The tokenizer.
    "a number as padding": (settings(pad_token=5), "`pad_token` 5, which is no string"),
    "a list as padding": (settings(pad_token=["[PAD]"]), r"`pad_token` \['\[PAD\]'\]"),
    "an object as padding": (settings(pad_token={"content": 3}), "`pad_token` 3"),
    "a word as length": (settings(model_max_length="x"), "`model_max_length` 'x'"),
    "a length of NaN": (settings(model_max_length=float("nan")), "`model_max_length` nan"),
    "a normalizer that repeats": (
        tokenizer(normalizer=replace({"String": "a"}, "aa", 32)),
        "must not multiply a text.*4,294,967,296 times",
    ),
    "a normalizer of much": (
        tokenizer(normalizer=replace({"String": "a"}, "b" * 10**6)),
        "up to 1,000,000 times",
    ),
    "an expression of much": (
        tokenizer(normalizer=replace({"Regex": "(?=.)"}, "b" * 300)),
        "up to 301 times",
    ),
    "a nested normalizer": (
        tokenizer(
            normalizer={
                "type": "Sequence",
                "normalizers": [replace({"String": "a"}, "aa", 8), replace({"String": "a"}, "aa")],
            }
        ),
        "up to 512 times",
    ),
    "bytes of bytes": (
        tokenizer(pre_tokenizer={"type": "Sequence", "pretokenizers": [BYTES] * 20}),
        "must not multiply a text",
    ),
    "many steps": (
        tokenizer(normalizer=replace({"String": "a"}, "b", 51)),
        "more than 50 steps",
    ),
    "a long prefix": (
        tokenizer(normalizer={"type": "Prepend", "prepend": "x" * 10**5}),
        "up to 100,001 times",
    ),
    "a template that repeats": (
        tokenizer(post_processor=template([CLS, ONCE, ONCE])),
        "repeats a text 2 times",
    ),
    "a template of much": (
        tokenizer(post_processor=template([CLS, ONCE], [2] * 1000)),
        "adds 1,000 tokens",
    ),
    "a template beyond the table": (
        tokenizer(post_processor=template([CLS, ONCE], [999])),
        "must have a row .* id 999 and a table of 21 rows",
    ),
    "a table without the last token": (config(vocab_size=20), "id 20 and a table of 20 rows"),
    "another library's form": (tokenizer(normalizer={"type": "Evil"}), "must be readable"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_hostile_folder_is_refused_before_memory_is_taken(case, folder, tmp_path):
    """Both libraries make these checks before they build a model."""
    change, message = CASES[case]
    copy = shutil.copytree(folder, tmp_path / "copy")
    change(copy)
    tracemalloc.start()
    try:
        with pytest.raises(ke.InputError, match=message) as error:
            load_tokenizer(find_checkpoint(copy, "tf_keras"), config_of(copy))
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()
    assert len(str(error.value)) < 1_500


def config_of(folder):
    """The configuration of a folder that passed `find_checkpoint`."""
    return json.loads((folder / "config.json").read_text())


def test_both_libraries_check_the_tokenizer_before_they_build_a_model(
    folder, tmp_path, monkeypatch
):
    import keras_hub
    import transformers

    def built(*args, **kwargs):
        raise AssertionError("a model was built")

    monkeypatch.setattr(keras_hub.models.TextClassifier, "from_preset", built)
    monkeypatch.setattr(transformers.TFAutoModelForSequenceClassification, "from_config", built)
    copy = shutil.copytree(folder, tmp_path / "copy")
    for case in ("a template beyond the table", "a number as padding", "no heads"):
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        CASES[case][0](copy)
        for library in LIBRARIES:
            with pytest.raises(ke.InputError, match=CASES[case][1]):
                ke.models.load(copy, library=library)


@sampled()
@pytest.mark.parametrize("library", LIBRARIES)
def test_weights_that_are_no_numbers(library, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    for value, dtype in ((np.nan, "float32"), (-np.inf, "float16"), (1e300, "float64")):
        weights(QUERY, lambda x, v=value, d=dtype: np.where(x > 0.3, v, x).astype(d))(copy)
        with pytest.raises(ke.InputError, match=r"Weights must be finite.*query.*NaN or infinite"):
            ke.models.load(copy, library=library)


def test_what_is_unusual_but_sound_loads(folder, tmp_path):
    """The steps of XLM-R, long ids of positions, links as in the cache of Hugging Face."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    steps = [{"type": "Precompiled", "precompiled_charsmap": charsmap(33)}]
    steps += replace({"Regex": " {2,}"}, " ")["normalizers"]
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    splits = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, space]}
    tokenizer(normalizer={"type": "Sequence", "normalizers": steps}, pre_tokenizer=splits)(copy)
    settings(pad_token={"content": "[PAD]"}, model_max_length=1e30)(copy)
    arrays = bert_folder.arrays()
    arrays["embeddings.position_ids"] = np.arange(bert_folder.POSITIONS)[None]
    (tmp_path / "blob").write_bytes(b"")
    save_file(arrays, tmp_path / "blob", metadata={"format": "pt"})
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors").symlink_to(tmp_path / "blob")
    assert find_checkpoint(copy, "keras") == copy
    assert load_tokenizer(copy, config_of(copy)).largest_id == len(bert_folder.VOCABULARY) - 1


def charsmap(length):
    """A trie of no bytes, and one replacement."""
    return base64.b64encode(bytes(4) + b"x" * length + b"\0").decode()


def test_a_charsmap_that_multiplies_a_text():
    from keras_efficient.data._tokenizer_limits import check_tokenizer

    normalizer = {"type": "Precompiled", "precompiled_charsmap": charsmap(1000)}
    with pytest.raises(ke.InputError, match="up to 1,000 times"):
        check_tokenizer({"normalizer": normalizer}, "tokenizer.json")


def test_an_expression_that_explodes(folder, tmp_path, capfd):
    """tokenizers panics, by an exception that is no `Exception`."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated"}
    tokenizer(pre_tokenizer={**split, "invert": False})(copy)
    loaded = load_tokenizer(copy, config_of(copy))
    with pytest.raises(
        ke.InputError, match=r"able to encode any text.*PanicException.*retry-limit"
    ):
        loaded.encode(["a" * 100 + "!"])
    assert len(loaded.encode(["bad"])) == 1


def test_a_tokenizer_without_its_unknown_token(backend_json, tmp_path):
    backend = Tokenizer.from_str(backend_json)
    loaded = ke.data.Tokenizer(backend, inputs=KERASHUB)
    with pytest.raises(ke.InputError, match=r"able to encode any text.*Missing"):
        loaded.encode(["unknown"])


@pytest.fixture
def backend_json():
    model = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
    model |= {"max_input_chars_per_word": 100, "vocab": {"a": 0}}
    return json.dumps({"version": "1.0", "added_tokens": [], "model": model})


def test_a_panic_while_the_file_is_read(folder, tmp_path, monkeypatch):
    class PanicException(BaseException):
        pass

    def panic(path):
        raise PanicException("called `Option::unwrap()` on a `None` value")

    monkeypatch.setattr("tokenizers.Tokenizer.from_file", panic, raising=True)
    with pytest.raises(ke.InputError, match=r"must be readable.*PanicException"):
        load_tokenizer(folder, config_of(folder))
    monkeypatch.setattr("tokenizers.Tokenizer.from_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_tokenizer(folder, config_of(folder))


def interrupt(path):
    raise KeyboardInterrupt


def test_presets_of_kerashub(tmp_path):
    import keras_hub

    words = keras_hub.tokenizers.BertTokenizer(bert_folder.VOCABULARY, lowercase=True)
    preprocessor = keras_hub.models.BertTextClassifierPreprocessor(words, sequence_length=16)
    backbone = keras_hub.models.BertBackbone(len(bert_folder.VOCABULARY), 1, 2, 8, 16, 0.0, 24)
    good = tmp_path / "good"
    keras_hub.models.BertTextClassifier(backbone, 2, preprocessor).save_to_preset(str(good))
    assert find_checkpoint(good, "keras") == good

    def inner(**values):
        return lambda folder: edit(
            folder / "config.json", lambda found: found["config"].update(values)
        )

    def module(folder):
        edit(folder / "tokenizer.json", lambda found: found.update(module="os"))

    def shard(folder):
        # Keras opens the files that this index names, whatever their suffix.
        (folder / "model.weights.h5").rename(folder / "shard.bin")
        names = {"weight_map": {"layer": ["../outside.h5"]}}
        (folder / "model.weights.json").write_text(json.dumps(names))

    def more_words(folder):
        with open(folder / "assets/tokenizer/vocabulary.txt", "a") as file:
            file.write("one\ntwo\n")

    cases = {
        "heads": (inner(num_heads=0), "`num_heads` .*Received: 0"),
        "layers": (inner(num_layers=10**6), "`num_layers` .*Received: 1000000"),
        "width": (inner(hidden_dim=8192, num_layers=900), "must fill its model"),
        "module": (module, "only name classes of Keras and KerasHub. Received: 'os'"),
        "weights": (lambda folder: (folder / "model.weights.h5").unlink(), "Received: "),
        "shard": (shard, "model.weights.json may only name files of its folder"),
        "words": (more_words, "a token of id 22 and a table of 21 rows"),
    }
    for name, (change, message) in cases.items():
        copy = shutil.copytree(good, tmp_path / name)
        change(copy)
        with pytest.raises(ke.InputError, match=message):
            ke.models.load(copy)
