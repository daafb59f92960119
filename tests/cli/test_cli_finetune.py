"""`keras-efficient finetune` from file to SavedModel."""

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import (
    finetune_arguments,
    keras_efficient,
    review_rows,
    versions,
    write_bert,
    write_reviews,
)
from covering import covering, sampled

import keras_efficient as ke

REPORT = {
    "accuracy",
    "bytes",
    "candidates",
    "created",
    "data_fingerprint",
    "evaluation",
    "examples_per_second",
    "facts",
    "latency_ms",
    "max_abs_difference",
    "max_rss_bytes",
    "quality",
    "quantize",
    "recommended",
    "seed",
    "signature",
    "storage",
    "tolerance",
    "versions",
    "weight_bytes",
}


@pytest.fixture(scope="module", params=["keras", pytest.param("tf_keras", marks=pytest.mark.full)])
def done(request, finetune, reviews, bert, tmp_path_factory):
    """(library, output folder, outcome) of one whole run."""
    output = tmp_path_factory.mktemp("saved_models") / "reviews"
    outcome = finetune(reviews, bert, output, library=request.param, epochs=2, seed=3)
    return request.param, output, outcome


def test_whole_run_writes_version_1(done):
    _, output, outcome = done
    assert outcome.code == 0, outcome
    # And nothing else: no checkpoint, no scratch.
    assert sorted(path.name for path in output.iterdir()) == ["1", "trained-1"]
    assert (output / "1" / "saved_model.pb").stat().st_size > 1000
    assert "<svg" in (output / "1" / "report.html").read_text()


def test_whole_run_reports(done, reviews):
    library, output, _ = done
    report = json.loads((output / "1" / "report.json").read_text())
    assert report.keys() == REPORT
    assert 0 <= report["accuracy"] <= 1
    assert report["examples_per_second"] > 0
    assert report["bytes"] > report["weight_bytes"] > 10_000
    for batch in ("batch_1", "batch_8"):
        times = report["latency_ms"][batch]
        assert 0 < times["median"] <= times["p95"]
    assert 0 <= report["max_abs_difference"] <= 1e-5
    assert report["versions"].keys() >= {"python", "tensorflow", "numpy", library}
    assert report["seed"] == 3
    training, _ = ke.data.split(ke.data.read_records(reviews), validation=0.1, seed=3)
    assert report["data_fingerprint"] == training.fingerprint
    assert report["facts"]["labels"] == ["negative", "positive"]
    assert report["facts"]["precision"] == "float32"


def test_whole_run_prints_a_table(done):
    _, output, outcome = done
    report = json.loads((output / "1" / "report.json").read_text())
    for part in (
        f"{report['accuracy']:.2%}",
        "examples/s",
        "tokens/s",
        f"{report['bytes'] / 1e6:.1f} MB",
        f"{report['latency_ms']['batch_1']['median']:.1f} ms median",
        f"{report['latency_ms']['batch_8']['p95']:.1f} ms p95",
        f"{report['max_abs_difference']:.1e} largest difference",
        str(output / "1"),
        str(output / "1" / "report.html"),
        str(output / "trained-1"),
    ):
        assert part in outcome.out
    for part in ("54 to train on, 6 to evaluate on", "negative, positive", "float32: as requested"):
        assert part in outcome.err


def test_exported_model_serves_in_tensorflow_alone(done, bert):
    import tensorflow as tf
    from tokenizers import Tokenizer

    library, output, _ = done
    serve = tf.saved_model.load(str(output / "1")).signatures["serving_default"]
    ids = Tokenizer.from_file(str(bert / "tokenizer.json")).encode("the film was great").ids
    names = ke.data.KERASHUB if library == "keras" else ke.data.HUGGING_FACE
    content = {"ids": ids, "mask": [1] * len(ids), "segments": [0] * len(ids)}
    logits = serve(**{n: tf.constant([content[key]], tf.int32) for key, n in names.items()})
    assert np.isfinite(logits["logits"].numpy()).all() and logits["logits"].shape == (1, 2)


def test_the_trained_model_is_left_beside_the_version(done, reviews):
    """With the facts by which `compress` evaluates on the same rows."""
    library, output, _ = done
    info = ke.models.info(output)
    assert info.directory == output / "trained-1" and info.library == library
    assert info.label_names == ("negative", "positive")
    report = json.loads((output / "1" / "report.json").read_text())
    assert info.facts["accuracy"] == report["accuracy"]
    assert (info.facts["seed"], info.facts["validation"]) == (3, 0.1)
    assert info.facts["train_fingerprint"] == report["data_fingerprint"]
    # The model in memory is the one that is served.
    model, tokenizer = ke.models.load(output)
    _, held_out = ke.data.split(ke.data.read_records(reviews), validation=0.1, seed=3)
    data = ke.data.text(held_out, tokenizer, batch_size=8, max_length=32)
    assert ke.metrics.evaluate_classifier(model, data).accuracy == report["accuracy"]


@pytest.mark.full
def test_second_run_writes_version_2(done, finetune, reviews, bert, exported):
    library, output, _ = done
    before = (output / "1" / "saved_model.pb").read_bytes()
    outcome = finetune(reviews, bert, output, library=library)
    assert outcome.code == 0 and versions(output) == ["1", "2"]
    assert str(output / "2") in outcome.out
    assert (output / "1" / "saved_model.pb").read_bytes() == before
    shutil.rmtree(output / "2")


@pytest.mark.full
def test_one_exact_version_at_home(finetune, bert, tmp_path, exported, monkeypatch):
    """With a file whose name, like the labels, is not to be taken for rich's markup."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    labels = {"negative": "[/no]", "positive": "[red]"}
    rows = [(text, labels[name]) for text, name in review_rows(20)]
    data = write_reviews(tmp_path / "[bold]reviews.csv", rows)
    # TensorFlow cannot read from a folder with brackets in its name.
    finetune(data, bert, "~/[/out]/7").refused(str(home / "[/out]"))
    outcome = finetune(data, bert, "~/out/7")
    assert outcome.code == 0 and len(exported) == 1
    # Neither a checkpoint nor a folder called "~".
    assert [path.name for path in home.iterdir()] == ["out"]
    assert sorted(path.name for path in (home / "out").iterdir()) == ["7", "trained-7"]
    assert "labels [/no], [red]" in outcome.err and str(home / "out") in outcome.err
    missing = tmp_path / "[/b].csv"
    finetune(missing, bert, tmp_path / "out").refused(missing)


@sampled()
@pytest.mark.parametrize(
    "library, suffix",
    covering(("keras", "tf_keras"), (".csv", ".tsv", ".jsonl"), strength=1),
)
def test_dry_run_reads_every_format_and_writes_nothing(
    library, suffix, finetune, bert, tmp_path, exported
):
    data = write_reviews(tmp_path / f"reviews{suffix}", review_rows(30))
    before = sorted(tmp_path.rglob("*"))
    outcome = finetune(data, bert, tmp_path / "out", dry_run=True, library=library)
    assert outcome.code == 0 and "Dry run" in outcome.err
    assert "27 to train on, 3 to evaluate on; labels negative, positive" in outcome.err
    assert str(tmp_path / "out" / "1") in outcome.err
    assert not exported and not outcome.out
    assert sorted(tmp_path.rglob("*")) == before


def test_shards_by_name_and_by_pattern(bert, tmp_path, exported):
    """The shell expands a pattern, or the command does."""
    for number in range(3):
        data = "".join(
            json.dumps({"text": text, "label": label}) + "\n"
            for text, label in review_rows(10, seed=number)
        )
        (tmp_path / f"train-{number}.jsonl.gz").write_bytes(gzip.compress(data.encode()))
    options = finetune_arguments("", bert, tmp_path / "out", dry_run=True)[2:]
    for data in ([tmp_path / "train-*.jsonl.gz"], sorted(tmp_path.glob("train-*"))):
        outcome = keras_efficient("finetune", *data, *options)
        assert outcome.code == 0, outcome.err
        assert "27 to train on, 3 to evaluate on" in outcome.err
    pattern = keras_efficient(
        "finetune", data[0], *options, "--validation-data", tmp_path / "train-[12].jsonl.gz"
    )
    assert "10 to train on, 20 to evaluate on" in pattern.err
    (tmp_path / "train-3.csv").write_text("text,label\n")
    refused = keras_efficient("finetune", tmp_path / "train-*", *options)
    refused.refused("one format", "train-0.jsonl.gz", "train-3.csv")
    refused = keras_efficient("finetune", tmp_path / "test-*", *options)
    refused.refused("must match data files", "test-*")


def test_tokens_in_files_train_the_same_model(finetune, bert, tmp_path, exported):
    data = write_reviews(tmp_path / "train.csv", review_rows(30))
    other = write_reviews(tmp_path / "other.csv", review_rows(8, seed=1))
    output = tmp_path / "out"
    options = {"validation_data": other, "seed": 3}
    assert finetune(data, bert, output, **options).code == 0
    outcome = finetune(data, bert, output, **options, tokens_dir=tmp_path / "tokens")
    assert outcome.code == 0, outcome.err
    assert "30 to train on, 8 to evaluate on" in outcome.err
    assert exported[0].largest_difference(exported[1]) == 0
    assert len(list((tmp_path / "tokens").iterdir())) == 1
    outcome = finetune(data, bert, output, tokens_dir=tmp_path / "tokens")
    outcome.refused("--tokens-dir", "--validation-data")
    outcome = finetune(data, tmp_path, output, **options, tokens_dir=tmp_path / "tokens")
    outcome.refused("tokenizer.json or vocab.txt")


def test_parquet_and_a_delimiter(finetune, bert, tmp_path):
    pandas = pytest.importorskip("pandas")
    rows = pandas.DataFrame(review_rows(30), columns=["text", "label"])
    rows.to_parquet(tmp_path / "reviews.parquet")
    outcome = finetune(tmp_path / "reviews.parquet", bert, tmp_path / "out", dry_run=True)
    assert "27 to train on, 3 to evaluate on" in outcome.err, outcome.err
    rows.to_csv(tmp_path / "reviews.csv", sep="\t")
    for name in ("tab", "\\t", "\t"):
        outcome = finetune(
            tmp_path / "reviews.csv", bert, tmp_path / "out", dry_run=True, delimiter=name
        )
        assert "27 to train on, 3 to evaluate on" in outcome.err, outcome.err
    outcome = finetune(tmp_path / "reviews.csv", bert, tmp_path / "out", delimiter="tabs")
    outcome.refused("--delimiter", "one character", "'tabs'")


def test_columns_and_validation_data(finetune, bert, tmp_path):
    data = tmp_path / "stars.jsonl"
    rows = [{"review": text, "stars": 5 if n == "positive" else 1} for text, n in review_rows(20)]
    data.write_text("\n".join(map(json.dumps, rows)))
    other = tmp_path / "other.tsv"
    other.write_text("stars\treview\n1\tdull\n5\tgreat\n5\tfine\n")
    outcome = finetune(
        data,
        bert,
        tmp_path / "out",
        text_column="review",
        label_column="stars",
        validation_data=other,
        dry_run=True,
    )
    assert outcome.code == 0
    assert "20 to train on, 3 to evaluate on; labels 1, 5" in outcome.err


def test_validation_may_be_a_number_of_rows(finetune, reviews, bert, tmp_path):
    outcome = finetune(reviews, bert, tmp_path / "out", validation=7, dry_run=True)
    assert "53 to train on, 7 to evaluate on" in outcome.err


@pytest.mark.full
@pytest.mark.parametrize(
    ("library", "whole"), [("keras", 8), pytest.param("tf_keras", None, marks=pytest.mark.full)]
)
def test_microbatches_change_nothing(
    library, whole, finetune, reviews, bert, tmp_path, exported, monkeypatch
):
    """Against one microbatch per batch in Keras 3, and against none in tf_keras.

    Without accumulation, Keras 3's Adam squares the gradient of each occurrence of a token, so
    that the embeddings move differently there.
    """
    start, load = [], ke.models.load

    def load_without_dropout(*args, **kwargs):
        # Dropout masks depend on how a batch is split.
        loaded = load(*args, **kwargs)
        for layer in loaded.model._flatten_layers():
            if hasattr(layer, "rate"):
                layer.rate = 0.0
        start[:] = loaded.model.get_weights()
        return loaded

    monkeypatch.setattr(ke.models, "load", load_without_dropout)
    for size in (whole, 3):
        output = tmp_path / str(size)
        outcome = finetune(reviews, bert, output, microbatch_size=size, library=library)
        assert outcome.code == 0
    plain, other = exported
    assert other.facts["accuracy"] == plain.facts["accuracy"]
    assert plain.largest_difference(other) <= 1e-4
    # Not just two models that stood still.
    assert max(np.abs(a - b).max() for a, b in zip(start, plain.weights, strict=True)) > 1e-2


@pytest.mark.full
def test_seed_decides_dropout_too(finetune, reviews, bert, tmp_path, exported):
    # For both libraries, test_cli_resume.py compares runs of one seed too.
    for _ in range(2):
        assert finetune(reviews, bert, tmp_path, seed=1).code == 0
    first, again = exported
    assert first.largest_difference(again) <= 1e-6


def test_help_and_nothing(run):
    outcome = run("finetune", "--help")
    assert outcome.code == 0
    assert all(word in outcome.out for word in ("--resume", "--dry-run", "--microbatch-size"))
    nothing = run()
    assert "finetune" in nothing.out + nothing.err and "demo" in nothing.out + nothing.err


def test_demo_is_checked_like_any_run(run, tmp_path, monkeypatch):
    """With stand-ins for the real files: a model of 32 positions, where MiniLM has 512."""
    model = write_bert(tmp_path / "minilm", dropout=0.1)
    data = write_reviews(tmp_path / "movies.tsv", review_rows(1640))
    monkeypatch.setattr("keras_efficient.data._demo_assets.demo_model", lambda: model)
    monkeypatch.setattr("keras_efficient.data._demo_assets.demo_reviews", lambda: data)
    run("demo", "--output", tmp_path / "out").refused("max_length", "32", "128")
    few = write_reviews(tmp_path / "few.tsv", review_rows(1605))
    monkeypatch.setattr("keras_efficient.data._demo_assets.demo_reviews", lambda: few)
    run("demo", "--output", tmp_path / "out").refused("Both sides", "1605 records")
    assert not (tmp_path / "out").exists()


def test_real_process_prints_its_errors_without_traceback(reviews, tmp_path):
    command = [Path(sys.executable).with_name("keras-efficient"), "finetune", reviews]
    command += ["--model", tmp_path / "no_bert", "--output", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.count("Error:") == 1 and "Traceback" not in done.stderr
    assert str(tmp_path / "no_bert") in done.stderr
    assert not (tmp_path / "out").exists()
