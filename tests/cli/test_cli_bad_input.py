"""Bad input to `finetune`: a clear message, exit code 2, and nothing trained or written."""

import collections
import os
import shutil

import pytest
from command_line import bert_arrays, review_rows, versions, write_reviews
from covering import covering, sampled

import keras_efficient as ke

LIBRARIES = ("keras", "tf_keras")
BOTH_LIBRARIES = pytest.mark.parametrize("library", LIBRARIES)
#: Messages for a model folder without one of its files.
RULES = {
    "model.safetensors": "must hold weights",
    "config.json": "must hold config.json",
}


class TrainedError(Exception):
    """Not a SystemExit, so the command line does not catch it, and it fails the test."""


@pytest.fixture(autouse=True)
def no_fit(monkeypatch):
    """Make training raise."""
    import keras_hub
    import tf_keras

    def fit(*args, **kwargs):
        raise TrainedError

    monkeypatch.setattr(keras_hub.models.TextClassifier, "fit", fit)
    monkeypatch.setattr(tf_keras.Model, "fit", fit)


@pytest.fixture
def no_model(monkeypatch):
    """Make loading a model raise: these errors must be found before."""

    def load(*args, **kwargs):
        raise TrainedError

    monkeypatch.setattr(ke.models, "load", load)


@pytest.fixture
def output(tmp_path):
    """Yield the path of an output folder, in which nothing may appear."""
    path = tmp_path / "out" / "reviews"
    yield path
    assert not path.parent.exists()


@pytest.mark.full
@sampled()
@BOTH_LIBRARIES
def test_good_input_would_train(library, finetune, reviews, bert, tmp_path):
    with pytest.raises(TrainedError):
        finetune(reviews, bert, tmp_path / "out", library=library)


def test_good_input_would_load_a_model(no_model, finetune, reviews, bert, output):
    with pytest.raises(TrainedError):
        finetune(reviews, bert, output)


# The data file.


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_missing_file(suffix, no_model, finetune, tmp_path, bert, output):
    data = tmp_path / f"nowhere{suffix}"
    finetune(data, bert, output).refused("data file must exist", data)


def test_directory_as_file(no_model, finetune, tmp_path, bert, output):
    (tmp_path / "reviews.csv").mkdir()
    finetune(tmp_path / "reviews.csv", bert, output).refused("must be files", "directory")


def test_wrong_suffix(no_model, finetune, tmp_path, bert, output):
    data = tmp_path / "reviews.xlsx"
    data.write_text("text,label\ngood,1\nbad,0\n")
    finetune(data, bert, output).refused(".csv, .tsv, .jsonl", data)


FILES = {
    "empty": ("a.csv", "", ["at least one row", "a.csv, which is empty"]),
    "only blank lines": ("a.jsonl", "\n \n", ["at least one row", "a.jsonl, which is empty"]),
    "only a header": ("a.csv", "text,label\n", ["at least one row", "a.csv without any"]),
    "no text column": ("a.csv", "texts,label\ngood,1\n", ["column 'text'", "'texts', 'label'"]),
    "no label column": ("a.tsv", "text\tstars\ngood\t1\n", ["column 'label'", "a.tsv, line 1"]),
    "no label key": (
        "a.jsonl",
        '{"text": "good", "label": 1}\n{"text": "bad"}\n',
        ["column 'label'", "a.jsonl, line 2"],
    ),
    "empty text": ("a.csv", "text,label\ngood,1\n  ,0\n", ["empty text '  '", "a.csv, line 3"]),
    "empty text in JSON": (
        "a.jsonl",
        '{"text": "good", "label": 1}\n\n{"text": "", "label": 0}\n',
        ["empty text ''", "a.jsonl, line 3"],
    ),
    "text that is none": (
        "a.jsonl",
        '{"text": null, "label": 1}\n',
        ["must be a string", "NoneType", "a.jsonl, line 1"],
    ),
    "empty label": ("a.csv", "text,label\ngood,1\nbad,\n", ["needs a label", "a.csv, line 3"]),
    "one class": ("a.csv", "text,label\ngood,1\nbad,1\n", ["2 classes", "['1']", "a.csv"]),
    "too many fields": (
        "a.csv",
        'text,label\n"two\nlines",1\nbad, very bad,0\n',
        ["must have 2 fields", "Received: 3", "a.csv, line 4"],
    ),
    "open quote": ("a.csv", 'text,label\ngood,1\n"bad,0\n', ["Quotes", "a.csv, line 3"]),
    "no JSON": (
        "a.jsonl",
        '{"text": "good", "label": 1}\n{"text": bad}\n',
        ["must be a JSON object", '{"text": bad}', "a.jsonl, line 2"],
    ),
    "JSON, but no object": ("a.jsonl", '["good", 1]\n', ["JSON object", "a.jsonl, line 1"]),
    "other encoding": (
        "a.csv",
        "text,label\ngood,1\ncaf\u00e9,0\n".encode("latin-1"),
        ["UTF-8", "0xe9", "a.csv, line 3"],
    ),
    "UTF-16": ("a.csv", "text,label\ngood,1\n".encode("utf-16"), ["UTF-8", "NUL", "a.csv"]),
}


@pytest.mark.parametrize("case", FILES)
def test_bad_file(case, no_model, finetune, tmp_path, bert, output):
    name, content, parts = FILES[case]
    data = tmp_path / name
    data.write_bytes(content if isinstance(content, bytes) else content.encode())
    finetune(data, bert, output).refused(data, *parts)


def test_named_columns_must_exist(no_model, finetune, reviews, bert, output):
    finetune(reviews, bert, output, text_column="review").refused("'review'", "'text', 'label'")
    finetune(reviews, bert, output, label_column="txt").refused("'txt'", "line 1")
    finetune(reviews, bert, output, label_column="text").refused("must differ", "'text'")


def test_validation_data_with_an_unseen_label(no_model, finetune, reviews, tmp_path, bert, output):
    other = write_reviews(tmp_path / "val.csv", [*review_rows(4), ("so so", "neutral")])
    outcome = finetune(reviews, bert, output, validation_data=other)
    outcome.refused("'neutral'", "unseen in training", f"{other}, line 6")


def test_validation_data_is_read_as_strictly(no_model, finetune, reviews, tmp_path, bert, output):
    missing = tmp_path / "val.csv"
    finetune(reviews, bert, output, validation_data=missing).refused("must exist", missing)
    missing.write_text("text,label\n,negative\n")
    finetune(reviews, bert, output, validation_data=missing).refused("empty", "val.csv, line 2")


def test_label_only_in_the_validation_part(no_model, finetune, tmp_path, bert, output):
    # The stratified split trains on every label, unless there are fewer rows than labels.
    rows = [*review_rows(8), ("so so", "neutral")]
    data = write_reviews(tmp_path / "reviews.csv", rows)
    outcome = finetune(data, bert, output, validation=8, seed=0)
    outcome.refused("training part", "only in the validation part", "hold out fewer")


@pytest.mark.parametrize("validation", [60, 1000, 0.001])
def test_split_that_leaves_a_side_empty(validation, no_model, finetune, reviews, bert, output):
    outcome = finetune(reviews, bert, output, validation=validation)
    outcome.refused("Both sides", validation, "60 records", reviews)


# The options.


@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [
        ("library", "torch", "keras, tf_keras"),
        ("precision", "float64", "auto, float32, mixed_bfloat16, mixed_float16"),
        ("epochs", 0, "must be positive"),
        ("batch_size", 0, "must be positive"),
        ("batch_size", -4, "must be positive"),
        ("microbatch_size", 0, "must be positive"),
        ("learning_rate", 0, "must be positive"),
        ("learning_rate", "nan", "must be positive"),
        ("learning_rate", "inf", "must be positive and finite"),
        ("validation", 0, "must be positive"),
        ("validation", -0.1, "must be positive"),
        ("validation", "inf", "must be positive and finite"),
        ("validation", 2.5, "whole number of rows"),
        ("class_weights", "equal", "must be one of balanced"),
        ("metric", "f1", "macro_f1, accuracy, loss"),
        ("patience", 0, "must be positive"),
        ("quantize", "int4", "int8, int8-weights, bfloat16"),
        ("target", "sse4", "avx2, vnni, amx"),
        ("target", "avx2", "--target avx2 with --quantize None"),
        ("log_seconds", 0, "must be positive"),
        ("seed", -1, "from 0 to"),
        ("seed", 2**32, "from 0 to"),
    ],
)
def test_bad_option(option, value, rule, no_model, finetune, reviews, bert, output):
    outcome = finetune(reviews, bert, output, **{option: value})
    outcome.refused("--" + option.replace("_", "-"), rule, value)


@pytest.mark.parametrize(("option", "value"), [("epochs", "two"), ("batch_size", 2.5)])
def test_option_of_another_type(option, value, no_model, finetune, reviews, bert, output):
    outcome = finetune(reviews, bert, output, **{option: value})
    outcome.refused("--" + option.replace("_", "-"), "valid integer")


def test_missing_or_unknown_words(run, reviews, bert, output):
    run("finetune", reviews, "--output", output).refused("--model")
    run("finetune", "--model", bert, "--output", output).refused("Missing argument")
    run("finetune", reviews, "--model", bert, "--output", output, "--epoch").refused("--epoch")
    run("finetun").refused("finetun")


@sampled()
@pytest.mark.parametrize("max_length, library", covering([33, 2, 0], LIBRARIES, strength=1))
def test_max_length_beyond_the_model(max_length, library, finetune, reviews, bert, output):
    outcome = finetune(reviews, bert, output, max_length=max_length, library=library)
    # Not the Python argument `max_length`.
    outcome.refused("--max-length must be", "3 to", "32", max_length)
    assert "max_length" not in outcome.err


# The output.


def test_output_under_a_file(no_model, finetune, reviews, bert, tmp_path):
    (tmp_path / "file").write_text("mine")
    output = tmp_path / "file" / "reviews"
    finetune(reviews, bert, output).refused("must be a folder", output, "is a file")
    assert (tmp_path / "file").read_text() == "mine"


def test_output_that_is_a_file(no_model, finetune, reviews, bert, tmp_path):
    output = tmp_path / "reviews"
    output.write_text("mine")
    finetune(reviews, bert, output).refused("must be a folder", output)
    assert output.read_text() == "mine"


def test_unwritable_output(no_model, finetune, reviews, bert, output, monkeypatch):
    # Replaces `os.access`, because root may write everywhere whatever the permissions are.
    access, paths = os.access, []

    def no_write_access(path, mode):
        if not mode & os.W_OK:
            return access(path, mode)
        paths.append(str(path))
        return False

    monkeypatch.setattr(os, "access", no_write_access)
    finetune(reviews, bert, output).refused("must be writable", output)
    assert paths == [str(output.parent.parent)]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_output_for_a_user(no_model, finetune, reviews, bert, tmp_path):
    tmp_path.chmod(0o500)
    finetune(reviews, bert, tmp_path / "out").refused("must be writable")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs Linux' /proc")
def test_output_where_even_root_may_not_write(finetune, reviews, bert, monkeypatch):
    # Its permissions allow root to write. It reports no free space, which would be refused first.
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, 10**9))
    finetune(reviews, bert, "/proc/reviews").refused("must be writable", "/proc/reviews")


def test_version_that_exists(no_model, finetune, reviews, bert, tmp_path):
    (tmp_path / "3").mkdir()
    finetune(reviews, bert, tmp_path / "3").refused("never overwrites", tmp_path / "4")
    assert not any((tmp_path / "3").iterdir())


@BOTH_LIBRARIES
def test_full_disk(library, finetune, reviews, bert, output, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    finetune(reviews, bert, output, library=library).refused("free disk", output, "0.0 MB free")


def test_disk_with_space_for_the_model_but_not_the_checkpoint(
    finetune, reviews, bert, output, monkeypatch
):
    weight_bytes = sum(array.nbytes for array in bert_arrays().values())
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, 4 * weight_bytes))
    finetune(reviews, bert, output).refused("free disk", output)


# The model.


@BOTH_LIBRARIES
def test_missing_folder(library, finetune, reviews, tmp_path, output):
    model = tmp_path / "no_bert"
    finetune(reviews, model, output, library=library).refused("folder must exist", model)


@BOTH_LIBRARIES
def test_file_as_model(library, finetune, reviews, bert, output):
    model = bert / "model.safetensors"
    finetune(reviews, model, output, library=library).refused("A model is a folder", model)


@pytest.mark.parametrize("file, library", covering(RULES, LIBRARIES, strength=1))
def test_folder_without_a_file(file, library, finetune, reviews, bert_copy, output):
    (bert_copy / file).unlink()
    finetune(reviews, bert_copy, output, library=library).refused(RULES[file], bert_copy)


@BOTH_LIBRARIES
def test_folder_without_tokenizer(library, finetune, reviews, bert_copy, output):
    (bert_copy / "tokenizer.json").unlink()
    (bert_copy / "vocab.txt").unlink()
    outcome = finetune(reviews, bert_copy, output, library=library)
    outcome.refused("tokenizer.json or vocab.txt", bert_copy)


@pytest.mark.parametrize(
    "damage, library", covering(["truncated", "empty", "LFS pointer"], LIBRARIES, strength=1)
)
def test_corrupt_weights(damage, library, finetune, reviews, bert_copy, output):
    path = bert_copy / "model.safetensors"
    content = {
        "truncated": path.read_bytes()[:-100],
        "empty": b"",
        "LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 90\n",
    }
    path.write_bytes(content[damage])
    finetune(reviews, bert_copy, output, library=library).refused("must be complete", path)


@pytest.mark.parametrize(
    "file, library", covering(["config.json", "tokenizer.json"], LIBRARIES, strength=1)
)
def test_corrupt_json(file, library, finetune, reviews, bert_copy, output):
    (bert_copy / file).write_bytes((bert_copy / file).read_bytes()[:-40])
    finetune(reviews, bert_copy, output, library=library).refused(bert_copy / file, "must be")


@BOTH_LIBRARIES
def test_weights_of_another_size(library, finetune, reviews, bert_copy, output):
    from safetensors.numpy import save_file

    arrays = bert_arrays()
    arrays["pooler.dense.weight"] = arrays["pooler.dense.weight"][:8, :8].copy()
    save_file(arrays, bert_copy / "model.safetensors")
    finetune(reviews, bert_copy, output, library=library).refused(bert_copy)


@BOTH_LIBRARIES
def test_unknown_preset(library, finetune, reviews, output, monkeypatch):
    # Offline, so that no request for this name goes to a server.
    import huggingface_hub
    import transformers

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(transformers.utils.hub, "_is_offline_mode", True)
    outcome = finetune(reviews, "no_such_preset", output, library=library)
    outcome.refused("'no_such_preset'", "spelling")


def test_int8_without_exact_products_is_refused_before_training(
    finetune, reviews, bert, output, monkeypatch
):
    """`no_fit` makes training raise; the message names the option, not the argument."""

    def saturates():
        raise ke.InputError("quantize='int8' needs exact products. Use quantize='int8-weights'.")

    monkeypatch.setattr("keras_efficient.exporters._arguments.saturates", saturates)
    outcome = finetune(reviews, bert, output, quantize="int8")
    outcome.refused("--quantize int8 needs", "Use --quantize int8-weights")
    assert not output.exists()
    monkeypatch.setattr("keras_efficient.exporters._arguments.saturates", lambda: True)
    outcome = finetune(reviews, bert, output, quantize="int8", target="vnni")
    outcome.refused("--target vnni on a CPU without VNNI", "or use --target avx2")


# --resume.


def test_resume_without_checkpoint(finetune, reviews, bert, output):
    outcome = finetune(reviews, bert, output, resume=True)
    outcome.refused("must be a checkpoint", output / ".checkpoint", "without --resume")


def test_dry_run_of_a_resume_without_checkpoint(finetune, reviews, bert, output):
    finetune(reviews, bert, output, resume=True, dry_run=True).refused("must be a checkpoint")


def test_earlier_versions_stay(finetune, reviews, bert, tmp_path):
    (tmp_path / "out" / "1").mkdir(parents=True)
    finetune(reviews, bert, tmp_path / "out", resume=True).refused("must be a checkpoint")
    assert versions(tmp_path / "out") == ["1"]
