"""`keras-efficient compress`: from a trained model to a report of all candidates."""

import json
import os
import shlex
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from command_line import (
    Outcome,
    finetune_arguments,
    keras_efficient,
    review_rows,
    write_bert,
    write_reviews,
)
from covering import covering, sampled
from in_process_export import serve_here

import keras_efficient as ke
from keras_efficient.bench import BenchReport
from keras_efficient.bench._bench import _served_bytes
from keras_efficient.pipelines import _compress_run as module

CASE = "batch 8, length 32"
SPLIT = {"validation": 0.2, "seed": 0, "max_length": 32, "data": "reviews.csv"}


def bench(targets, **options):
    """Stand for the timing, which has tests of its own: a model takes a nanosecond per byte."""
    found = {}
    for name, path in targets.items():
        size = _served_bytes(path)
        case = {"median_ms": size / 1e6, "p95_ms": size / 1e6, "processor_ms": size / 1e6}
        case |= {"examples_per_second": 1.0, "calls": 1}
        facts = {"path": str(path), "kind": "saved_model", "bytes": size, "accuracy": None}
        found[name] = facts | {"evaluation": None, "cases": {CASE: case}}
    return BenchReport(1, found, "a CPU")


def replace_the_slow_parts(monkeypatch):
    """Serve exports in this process, and do not time them."""
    serve_here(monkeypatch)
    monkeypatch.setattr(module, "bench", bench)
    monkeypatch.setattr(module, "ExportLatency", lambda **settings: parameters)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    replace_the_slow_parts(monkeypatch)


def parameters(model):
    """Stand for the latency of a model, in milliseconds."""
    return model.count_params() / 1000


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_reviews(tmp_path_factory.mktemp("data") / "reviews.csv", review_rows(80))


def trained_model(folder, data, library):
    """A model of two layers as `finetune` leaves it; training has tests of its own."""
    bert = write_bert(folder / "bert", dropout=0.0, layers=2)
    records = ke.data.read_records(data)
    train, _ = ke.data.split(records, validation=0.2, seed=0)
    model, tokenizer = ke.models.load(bert, library=library)
    facts = {**SPLIT, "validation_data": None, "train_fingerprint": train.fingerprint}
    names = records.label_names
    ke.models.save(model, tokenizer, folder / "out" / "trained-1", label_names=names, facts=facts)
    return folder / "out"


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    return trained_model(tmp_path_factory.mktemp("trained"), data, "keras")


def words(model, data, output, **options):
    defaults = {"target": "parameters=5500", "front": 1, "epochs": 1, "batch_size": 16}
    defaults |= {"length": 32, "precision": "float32", "max_drop": "30%"}
    defaults |= {"copies": 0, "min_frequency": 1}
    found = ["compress", str(model), "--data", str(data), "--output", str(output)]
    for name, value in {**defaults, **options}.items():
        flag = "--" + name.replace("_", "-")
        found += [flag] if value is True else [] if value is None else [flag, str(value)]
    return found


def compress(*args, **options):
    return keras_efficient(*words(*args, **options))


@dataclass(frozen=True)
class Done:
    """A whole run, with unlabelled texts, that was stopped in the training and resumed."""

    model: Path
    more: Path
    output: Path
    stopped: Outcome
    outcome: Outcome
    steps: list
    options: dict


@pytest.fixture(scope="module", params=["keras", pytest.param("tf_keras", marks=pytest.mark.full)])
def done(request, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("done")
    model = trained_model(folder, data, request.param)
    more = write_reviews(folder / "more.csv", review_rows(16, seed=5))
    output, steps = folder / "with space", []
    options = {"unlabelled": more, "target": "speedup=1.3", "epochs": 2, "copies": 1}
    plain = ke.callbacks.ProgressLines.on_train_batch_end

    def stop(self, batch, logs=None):
        steps.append(batch)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        plain(self, batch, logs)

    with pytest.MonkeyPatch.context() as patch:
        replace_the_slow_parts(patch)
        patch.setattr(ke.callbacks.ProgressLines, "on_train_batch_end", stop)
        stopped = compress(model, data, output, **options)
        (line,) = (x for x in stopped.err.splitlines() if x.startswith("  keras-efficient "))
        advised = shlex.split(line)[1:]
        assert advised == [*words(model, data, output, **options), "--resume"]
        outcome = keras_efficient(*advised)
    return Done(model, more, output, stopped, outcome, steps, options)


def test_a_stopped_run_goes_on_inside_the_training(done):
    assert done.stopped.code == 130 and not done.stopped.out, done.stopped
    assert "Traceback" not in done.stopped.err
    # 64 labelled and the other texts, in batches of 16, none of them twice.
    report = json.loads((done.output / "report.json").read_text())
    assert done.steps == 2 * [*range(-(-(64 + report["unlabelled"]) // 16))]
    folder = done.output / "candidates" / "speedup-1.3"
    assert sorted(path.name for path in folder.iterdir()) == ["int8", "shrunk", "trained"]


def test_a_whole_run(done):
    outcome = done.outcome
    assert outcome.code in (0, 3), outcome
    report = json.loads((done.output / "report.json").read_text())
    rows = report["rows"]
    assert [row["name"] for row in rows] == ["Keras float32", "whole, int8", "1.3x"]
    assert rows[0]["speedup"] == rows[0]["bytes_ratio"] == 1
    assert rows[2]["parameters"] < rows[1]["parameters"]
    assert all(0 <= row["score"] <= 1 for row in rows)
    assert (report["examples"], report["train"]) == (16, 64)
    # 16 in the file, and one altered copy of each text, except those that came out twice.
    assert 16 < report["unlabelled"] <= 16 + 64
    assert (done.output / "front.png").stat().st_size > 10_000
    for row in rows:
        assert row["name"] in outcome.out and f"{row['score']:.1%}" in outcome.out
    assert str(done.output / "report.json") in outcome.out
    assert (outcome.code == 0) == (report["recommended"] is not None)
    further = f"64 labelled texts to train on, {report['unlabelled']} unlabelled; 16 others"
    for part in (further, "estimated time"):
        assert part in outcome.err
    info = ke.models.info(done.output / "candidates" / "speedup-1.3" / "trained")
    assert info.label_names == ("negative", "positive")


def test_what_is_served_is_what_was_trained(done):
    import tensorflow as tf

    folder = done.output / "candidates" / "speedup-1.3"
    model, tokenizer = ke.models.load(folder / "trained")
    data = ke.data.text(["the film was great ."], tokenizer, batch_size=1, max_length=32)
    x = next(iter(data))
    # The function alone does not keep the variables.
    served = tf.saved_model.load(str(folder / "int8" / "1"))
    serve = served.signatures["serving_default"]
    expected = model.predict_on_batch(x)
    expected = np.asarray(expected["logits"] if isinstance(expected, dict) else expected)
    # Rounded to 8 bits, or to 7.
    np.testing.assert_allclose(serve(**x)["logits"].numpy(), expected, atol=0.5)


@pytest.mark.full
def test_another_target_reuses_what_is_there(done, data, monkeypatch):
    before = {p: p.stat().st_mtime_ns for p in done.output.rglob("*.h5")}
    options = {**done.options, "target": "speedup=1.2", "resume": True}
    outcome = compress(done.model, data, done.output, **options)
    assert outcome.code in (0, 3), outcome
    after = {p: p.stat().st_mtime_ns for p in done.output.rglob("*.h5")}
    assert before.items() <= after.items()
    report = json.loads((done.output / "report.json").read_text())
    assert [row["name"] for row in report["rows"]][2:] == ["1.2x", "1.3x"]
    # The training, its settings and the data must be the same.
    other = compress(done.model, data, done.output, **{**options, "epochs": 1})
    other.refused("epochs: was 2, now 1", "only the target may change")


@pytest.mark.full
def test_a_dry_run_shows_the_plan_and_writes_nothing(trained, data, tmp_path):
    outcome = compress(trained, data, tmp_path / "out", dry_run=True, front=2)
    assert outcome.code == 0 and not outcome.out, outcome
    for part in ("estimated time", "min", "distil 2.75k parameters", "tokens are left", "Dry run"):
        assert part in outcome.err
    assert not (tmp_path / "out").exists()


@pytest.mark.full
def test_from_finetune(data, tmp_path):
    """With the trained model that it leaves, and the rows that it held out."""
    bert = write_bert(tmp_path / "bert", dropout=0.1, layers=2)
    options = {"validation": 20, "seed": 3, "epochs": 1}
    assert keras_efficient(*finetune_arguments(data, bert, tmp_path / "out", **options)).code == 0
    outcome = compress(tmp_path / "out", data, tmp_path / "small", target="bytes=1e6")
    assert outcome.code in (0, 3), outcome
    report = json.loads((tmp_path / "small" / "report.json").read_text())
    assert report["examples"] == 20
    assert report["rows"][0]["score"] == ke.models.info(tmp_path / "out").facts["accuracy"]


LABELS = {
    "regression": {"negative": "-1.5", "positive": "2"},
    "multi_label": {"negative": "any", "positive": "any|good"},
}


@sampled()
@pytest.mark.parametrize("name, library", covering(LABELS, ["keras", "tf_keras"], strength=1))
def test_other_tasks(name, library, tmp_path):
    task, data = ke.tasks.get(name), tmp_path / "data.csv"
    write_reviews(data, [(text, LABELS[name][label]) for text, label in review_rows(80)])
    train, _ = ke.data.split(task.read(data), validation=0.2, seed=0)
    bert = write_bert(tmp_path / "bert", dropout=0.0, layers=2)
    count = len(train.label_names) or None
    model, tokenizer = ke.models.load(bert, task=task, num_labels=count, library=library)
    keras = ke.flavor.of(model).keras
    options = {"metrics": task.metrics(keras, count or 1), "jit_compile": False}
    model.compile(keras.optimizers.Adam(0.01), task.loss(keras), **options)
    batches = ke.data.text(train, tokenizer, batch_size=16, max_length=32)
    model.fit(batches, epochs=20, verbose=0, shuffle=False)
    facts = {**SPLIT, "validation_data": None, "train_fingerprint": train.fingerprint}
    names = train.label_names or None
    trained = tmp_path / "out" / "trained-1"
    ke.models.save(model, tokenizer, trained, label_names=names, task=task, facts=facts)
    outcome = compress(tmp_path / "out", data, tmp_path / "small", copies=1)
    assert outcome.code in (0, 3), outcome
    report = json.loads((tmp_path / "small" / "report.json").read_text())
    assert report["metric"] == {"regression": "R²", "multi_label": "micro-F1"}[name]
    assert report["rows"][0]["score"] > 0.5 and report["unlabelled"] > 16
    candidate = next((tmp_path / "small" / "candidates").glob("*/trained"))
    assert ke.models.info(candidate).task == name
    served = ke.serving.predict(candidate.parent / "int8", ["a great film"])
    assert set(served[0]) >= {"regression": {"value"}, "multi_label": {"labels"}}[name]


# --- bad input -----------------------------------------------------------------------------------


@pytest.fixture
def output(tmp_path, monkeypatch):
    """A path at which nothing may appear, without a model loaded."""

    def load(*args, **kwargs):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(ke.models, "load", load)
    yield tmp_path / "out"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options, parts",
    [
        ({"target": "speed=10"}, ["--target must be one of", "speedup=NUMBER", "'speed=10'"]),
        ({"target": "speedup"}, ["--target must be one of"]),
        ({"target": "speedup=0.5"}, ["a number above 1", "speedup=10"]),
        ({"target": "bytes=many"}, ["a number above 0 for bytes"]),
        ({"max_drop": "5"}, ["--max-drop must be a share", "1% or 0.01"]),
        ({"max_drop": "little"}, ["--max-drop must be a share"]),
        ({"alpha": 2}, ["--alpha must be a number from 0 to 1"]),
        ({"epochs": 0}, ["--epochs must be a whole number >= 1"]),
        ({"label_column": "stars"}, ["a column 'stars'", "--label-column"]),
        ({"precision": "int3"}, ["--precision must be one of auto, float32"]),
        ({"validation": 0.3}, ["not trained on", "--validation 0.3", "--validation-data"]),
    ],
)
def test_bad_options(options, parts, trained, data, output):
    compress(trained, data, output, **options).refused(*parts)


def test_what_is_no_trained_model(trained, data, output, tmp_path):
    (tmp_path / "versions" / "1").mkdir(parents=True)
    (tmp_path / "versions" / "1" / "saved_model.pb").write_text("")
    for path in (tmp_path / "versions", tmp_path / "versions" / "1"):
        compress(path, data, output).refused("is an exported model", "`keras-efficient finetune`")
    (trained / "1").mkdir()
    (trained / "1" / "saved_model.pb").write_text("")
    compress(trained / "1", data, output).refused("is an exported model", trained / "trained-1")
    compress(trained.parent / "bert", data, output).refused("without a trained head")
    compress(tmp_path / "nowhere", data, output).refused("does not exist")


def test_files_that_cannot_be_used(trained, data, output, tmp_path):
    (tmp_path / "texts.csv").write_text("review\ngood\n")
    compress(trained, data, output, unlabelled=tmp_path / "texts.csv").refused("a column 'text'")
    other = write_reviews(tmp_path / "other.csv", review_rows(80, seed=9))
    compress(trained, other, output).refused("not trained on", other, "the same file")
    unknown = write_reviews(tmp_path / "unknown.csv", [("good", "new"), ("bad", "negative")])
    compress(trained, unknown, output).refused("'new'")


def test_folders_that_are_not_this_runs(trained, data, tmp_path):
    output = tmp_path / "out"
    compress(trained, data, output, resume=True).refused("must be a run to resume")
    assert not output.exists()
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    compress(trained, data, output).refused("a folder of its own", "notes.txt")
    (output / "notes.txt").unlink()
    identity = {"model": "another", "epochs": 1}
    (output / "run.json").write_text(json.dumps({"format": 1, "settings": identity}))
    compress(trained, data, output).refused("holds a run of compress", "--resume")
    refused = compress(trained, data, output, resume=True)
    refused.refused("model: was 'another'", "only the target may change")
    assert sorted(path.name for path in output.iterdir()) == ["run.json"]


@pytest.mark.full
def test_a_target_out_of_reach_says_what_can_be_reached(trained, data, tmp_path):
    outcome = compress(trained, data, tmp_path / "out", target="parameters=10")
    outcome.refused("parameters=10 cannot be reached", "now", "int8 export takes")
