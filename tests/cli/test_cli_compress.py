"""`keras-efficient compress`: from a trained model to a report of all candidates."""

import json
import os
import shlex
import signal

import numpy as np
import pytest
from command_line import keras_efficient, review_rows, write_bert, write_reviews
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


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Serve exports in this process, and do not time them."""
    serve_here(monkeypatch)
    monkeypatch.setattr(module, "bench", bench)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_reviews(tmp_path_factory.mktemp("data") / "reviews.csv", review_rows(80))


def trained_model(folder, data, library):
    """A model of two layers that was trained a little, as `finetune` leaves it."""
    bert = write_bert(folder / "bert", dropout=0.0, layers=2)
    records = ke.data.read_records(data)
    train, validation = ke.data.split(records, validation=0.2, seed=0)
    model, tokenizer = ke.models.load(bert, library=library)
    keras = ke.flavor.of(model).keras
    model.compile(
        keras.optimizers.Adam(1e-2),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    model.fit(
        ke.data.text(train, tokenizer, batch_size=16, max_length=32),
        epochs=3,
        verbose=0,
        shuffle=False,
    )
    facts = {**SPLIT, "validation_data": None}
    facts |= {"train_fingerprint": train.fingerprint}
    facts |= {"validation_fingerprint": validation.fingerprint}
    names = records.label_names
    ke.models.save(model, tokenizer, folder / "out" / "trained-1", label_names=names, facts=facts)
    return folder / "out"


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    return trained_model(tmp_path_factory.mktemp("trained"), data, "keras")


def words(model, data, output, **options):
    defaults = {"target": "parameters=5500", "front": 1, "epochs": 1, "batch_size": 16}
    defaults |= {"length": 32, "precision": "float32", "max_drop": "30%"}
    found = ["compress", str(model), "--data", str(data), "--output", str(output)]
    for name, value in {**defaults, **options}.items():
        flag = "--" + name.replace("_", "-")
        found += [flag] if value is True else [] if value is None else [flag, str(value)]
    return found


def compress(*args, **options):
    return keras_efficient(*words(*args, **options))


@pytest.fixture(scope="module", params=["keras", pytest.param("tf_keras", marks=pytest.mark.full)])
def done(request, data, tmp_path_factory):
    """(model, output, outcome) of a whole run with two candidates and unlabelled texts."""
    folder = tmp_path_factory.mktemp("done")
    model = trained_model(folder, data, request.param)
    more = write_reviews(folder / "more.csv", review_rows(24, seed=5))
    with pytest.MonkeyPatch.context() as patch:
        serve_here(patch)
        patch.setattr(module, "bench", bench)
        outcome = compress(
            model,
            data,
            folder / "compressed",
            front=1.25,
            unlabelled=more,
            target="parameters=5000",
        )
    return model, folder / "compressed", outcome


def test_a_whole_run(done):
    _, output, outcome = done
    assert outcome.code in (0, 3), outcome
    report = json.loads((output / "report.json").read_text())
    names = [row["name"] for row in report["rows"]]
    assert names[:2] == ["Keras float32", "whole, int8"] and len(names) == 4
    for row in report["rows"][2:]:
        assert row["parameters"] < report["rows"][0]["parameters"]
        assert 0 <= row["accuracy"] <= 1
    candidates = sorted(path.name for path in (output / "candidates").iterdir())
    assert candidates == ["parameters-4000", "parameters-5000"]
    assert report["rows"][0]["speedup"] == 1 and report["rows"][1]["bytes_ratio"] > 1
    assert report["examples"] == 16 and report["train"] == 64 and report["unlabelled"] > 0
    assert (output / "front.png").stat().st_size > 10_000
    for row in report["rows"]:
        assert row["name"] in outcome.out and f"{row['accuracy']:.1%}" in outcome.out
    assert str(output / "report.json") in outcome.out
    assert (outcome.code == 0) == (report["recommended"] is not None)
    assert "64 labelled texts to train on" in outcome.err and "estimated time" in outcome.err


def test_the_candidate_that_is_served_is_the_one_that_was_trained(done):
    import tensorflow as tf

    _, output, _ = done
    for folder in (output / "candidates").iterdir():
        model, tokenizer = ke.models.load(folder / "trained")
        x = next(iter(ke.data.text(["the film was great ."], tokenizer, batch_size=1)))
        serve = tf.saved_model.load(str(folder / "int8" / "1")).signatures["serving_default"]
        expected = model.predict_on_batch(x)
        expected = np.asarray(getattr(expected, "logits", expected))
        # Rounded to 8 bits, or to 7.
        np.testing.assert_allclose(serve(**x)["logits"].numpy(), expected, atol=0.5)


def test_another_target_reuses_what_is_there(done, data, monkeypatch):
    model, output, _ = done
    before = {p: p.stat().st_mtime_ns for p in output.rglob("*.h5")}

    def fail(*args, **kwargs):
        raise AssertionError("it was computed again")

    monkeypatch.setattr(module, "distill", fail)
    monkeypatch.setattr(module, "quantized_export", fail)
    more = output.parent / "more.csv"
    outcome = compress(
        model, data, output, front=1.25, unlabelled=more, target="parameters=5000", resume=True
    )
    assert outcome.code in (0, 3), outcome
    assert {p: p.stat().st_mtime_ns for p in output.rglob("*.h5")} == before


def test_a_dry_run_shows_the_plan_and_writes_nothing(trained, data, tmp_path):
    outcome = compress(trained, data, tmp_path / "out", dry_run=True, front=2)
    assert outcome.code == 0 and not outcome.out, outcome
    for part in (
        "estimated time",
        "min",
        "distil 2.75k parameters",
        "tokens are left",
        "Dry run",
    ):
        assert part in outcome.err
    assert not (tmp_path / "out").exists()


def test_a_stopped_run_goes_on_inside_the_training(trained, data, tmp_path, monkeypatch):
    output, step = tmp_path / "with space", []
    plain = ke.callbacks.ProgressLines.on_train_batch_end

    def stop(self, batch, logs=None):
        step.append(batch)
        if len(step) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        plain(self, batch, logs)

    monkeypatch.setattr(ke.callbacks.ProgressLines, "on_train_batch_end", stop)
    outcome = compress(trained, data, output, epochs=2)
    assert outcome.code == 130 and not outcome.out, outcome
    (line,) = (x for x in outcome.err.splitlines() if x.startswith("  keras-efficient "))
    advised = shlex.split(line)[1:]
    assert advised == [*words(trained, data, output, epochs=2), "--resume"]
    outcome = keras_efficient(*advised)
    assert outcome.code in (0, 3), outcome
    # Four batches in each of two epochs, none of them twice.
    assert len(step) == 8
    folder = output / "candidates" / "parameters-5500"
    assert not (folder / "training").exists() and (folder / "int8" / "1").exists()


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


def test_a_target_out_of_reach_says_what_can_be_reached(trained, data, tmp_path):
    outcome = compress(trained, data, tmp_path / "out", target="parameters=10")
    outcome.refused("parameters=10 cannot be reached", "now", "int8 export takes")
