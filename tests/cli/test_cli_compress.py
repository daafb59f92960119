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
    BAD,
    COMMON,
    GOOD,
    HIDDEN,
    Outcome,
    finetune_arguments,
    keras_efficient,
    write_bert,
    write_reviews,
)
from covering import covering
from in_process_export import serve_here

import keras_efficient as ke
from keras_efficient.bench import BenchReport
from keras_efficient.bench._bench import _served_bytes
from keras_efficient.pipelines import _compress_run as module, _plan as plan_module
from keras_efficient.serving import _predict as predict_module, _predict_script as predict_script

BOTH = ["keras", "tf_keras"]
CASE = "batch 8, length 32"
SPLIT = {"validation": 0.2, "seed": 0, "max_length": 32, "data": "reviews.csv"}


def bench(targets, **options):
    """Stand for the timing, which has tests of its own: a model takes a nanosecond per byte."""
    found = {}
    for name, path in targets.items():
        size = _served_bytes(path) or 1_000_000
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


def expect_a_second_per_step(monkeypatch):
    """Do not measure steps for the plan."""
    for name in ("_predict_seconds", "_step_seconds"):
        monkeypatch.setattr(plan_module, name, lambda run, labelled: 1.0)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    replace_the_slow_parts(monkeypatch)


def parameters(model):
    """Stand for the latency of a model, in milliseconds."""
    return model.count_params() / 1000


def sentences(count, seed=0):
    """Texts of as many words each, so that there are few shapes to trace."""
    rng = np.random.default_rng(seed)
    rows = rng.choice((*GOOD, *BAD, *COMMON[:-1]), (count, 8)).tolist()
    return [" ".join([*row, "."]) for row in rows]


def labelled(count, seed=0):
    return [(x, ("negative", "positive")[i % 2]) for i, x in enumerate(sentences(count, seed))]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_reviews(tmp_path_factory.mktemp("data") / "reviews.csv", labelled(80))


def trained_model(folder, data, library):
    """A model as `finetune` leaves it; training has tests of its own."""
    bert = write_bert(folder / "bert", dropout=0.0)
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
    more = write_reviews(folder / "more.csv", labelled(16, seed=5))
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
        expect_a_second_per_step(patch)
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


@dataclass(frozen=True)
class Kind:
    """A task beside single-label classification of single texts."""

    task: str
    texts: int
    names: tuple
    metric: str
    #: The name of an answer of `predict`, and the columns that are read if they have other names.
    answer: str
    columns: dict

    def definition(self):
        return ke.tasks.get(self.task, texts=self.texts)

    def row(self, records, number):
        """An example as an object of JSON Lines."""
        texts, label = records.examples()[number], records.labels[[number]]
        if self.task == "token_classification":
            (words,) = label.words
            spans = [(texts[0][start:end], self.names[c]) for start, end, c in words]
            return dict(zip(("tokens", "tags"), zip(*spans, strict=True), strict=True))
        if self.task == "question_answering":
            found = label.answers[0]
            answers = {"text": [x for x, _ in found], "answer_start": [x for _, x in found]}
            return dict(zip(("question", "context"), texts, strict=True)) | {"answers": answers}
        columns = ("a", "b")[: self.texts] if self.texts == 2 else ("text",)
        found = label[0].tolist()
        if self.task == "multi_label":
            found = [name for name, there in zip(self.names, found, strict=True) if there]
        return dict(zip(columns, texts, strict=True)) | {"label": found}


KINDS = {
    "pairs": Kind("regression", 2, (), "R²", "value", {"text_column": ["a", "b"]}),
    "tags": Kind("token_classification", 1, ("O", "B-a", "I-a"), "entity F1", "entities", {}),
    "questions": Kind("question_answering", 2, (), "answer F1", "answer", {}),
    "several": Kind("multi_label", 1, ("x", "y"), "micro-F1", "labels", {}),
}


def taught(kind, library, folder):
    """A model, and data on which it is always right: what it says of these texts itself."""
    task = kind.definition()
    bert = write_bert(folder / "bert", dropout=0.0)
    count = len(kind.names) or None
    model, tokenizer = ke.models.load(bert, task=task, num_labels=count, library=library)

    def predict(features):
        outputs = model.predict_on_batch(features)
        return np.asarray(outputs if isinstance(outputs, np.ndarray) else outputs["logits"])

    texts = sentences(64)
    first = ["the film"] * 64 if kind.task == "question_answering" else texts[::-1]
    columns = (texts,) if kind.texts == 1 else (first, texts)
    records = ke.data.Records(tuple(columns[0]), second_texts=columns[1] if columns[1:] else None)
    options = {"batch_size": 64, "max_length": 32}
    if kind.task == "question_answering":
        # Answers are surer than that there is none.
        (*_, kernel) = (w for w in model.weights if tuple(w.shape) == (HIDDEN, 2))
        kernel.assign(-20.0 * np.asarray(kernel))
    if kind.names:
        # All classes occur, but for the continued entity, which none may begin with.
        features = next(iter(task.batches(records, tokenizer, shuffle=False, **options)))
        (*_, bias) = (w for w in model.weights if tuple(w.shape) == (count,))
        center = predict(features).reshape(-1, count).mean(0)
        bias.assign(-center - 9.0 * np.array([name[:2] == "I-" for name in kind.names]))
    return model, tokenizer, task.pseudo_label(records, tokenizer, predict, kind.names, **options)


def baselines(self):
    """Stand for the exports of the model as it is, which are made like those of candidates."""
    found = self.folder.read("teacher/teacher.json")
    if found is None:
        evaluation = self._evaluate(self.model, self.held_out(self.tokenizer))
        size = 4 * self.model.count_params()
        found = dict.fromkeys(("bytes", "bytes_int8", "weight_bytes_int8"), size)
        found |= {"metric": evaluation.metric, "interval": evaluation.interval, "quantize": "int8"}
        found |= {"score": evaluation.score, "score_int8": evaluation.score}
        found |= {"evaluation": evaluation.to_dict(), "parameters": self.model.count_params()}
        found |= {"latency_ms": 1.0, "latency_ms_int8": 1.0}
        self.folder.write("teacher/teacher.json", found)
    return found


def written(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Taught:
    """A folder of a trained model, its labelled data, and texts without labels."""

    model: Path
    data: Path
    more: Path
    records: ke.data.Records
    held_out: ke.data.Records


def trained_for(kind, library, folder):
    """What `finetune` leaves, of a model that `taught` made."""
    model, tokenizer, records = taught(kind, library, folder)
    rows = [kind.row(records, number) for number in range(64)]
    data = written(folder / "data.jsonl", rows[:48])
    labels = ("tags", "answers", "label", "entities")
    others = [{k: v for k, v in row.items() if k not in labels} for row in rows[48:]]
    if "tokens" in rows[0]:
        others = [{"text": text} for text in records.texts[48:]]
    more = written(folder / "more.jsonl", others)
    task, names = kind.definition(), records.label_names or None
    rows = task.read(data, label_names=names, **kind.columns)
    train, held_out = ke.data.split(rows, validation=16)
    facts = {**SPLIT, "validation": 16, "train_fingerprint": train.fingerprint, **kind.columns}
    output = folder / "out" / "trained-1"
    ke.models.save(model, tokenizer, output, label_names=names, task=task, facts=facts)
    return Taught(folder / "out", data, more, records, held_out)


def test_a_plan_for_pairs_of_texts(tmp_path, monkeypatch):
    expect_a_second_per_step(monkeypatch)
    found = trained_for(KINDS["pairs"], "keras", tmp_path)
    options = {"unlabelled": found.more, "copies": 1, "dry_run": True}
    outcome = compress(found.model, found.data, tmp_path / "small", **options)
    assert outcome.code == 0 and "32 labelled pairs of texts to train on, " in outcome.err, outcome
    unlabelled = int(outcome.err.partition("to train on, ")[2].partition(" unlabelled")[0])
    # 16 in the file, and a copy of each pair whose first text is another one.
    assert 16 < unlabelled <= 16 + 32 and not (tmp_path / "small").exists()


@pytest.mark.parametrize(
    "name, library",
    covering(
        [
            "tags",
            "questions",
            *(pytest.param(name, marks=pytest.mark.full) for name in ("pairs", "several")),
        ],
        BOTH[::-1],
        strength=1,
    ),
)
def test_other_tasks(name, library, tmp_path, monkeypatch):
    """From the data to what is served."""
    kind = KINDS[name]
    found = trained_for(kind, library, tmp_path)
    monkeypatch.setattr(module.CompressRun, "measure_baselines", baselines)
    monkeypatch.setattr(module, "_shrink_target", lambda *_: {"feed_forward": 16})
    expect_a_second_per_step(monkeypatch)
    folder = tmp_path / "small"
    outcome = compress(found.model, found.data, folder, unlabelled=found.more)
    assert outcome.code in (0, 3), outcome
    assert "Padding is computed" not in outcome.err, outcome
    unit = "pairs of texts" if kind.texts == 2 else "texts"
    assert f"32 labelled {unit} to train on, 16 unlabelled; 16 others" in outcome.err
    report = json.loads((folder / "report.json").read_text())
    assert report["metric"] == kind.metric and report["rows"][0]["score"] == pytest.approx(1)
    small, words = ke.models.load(candidate := next(folder.glob("*/*/trained")))
    info = ke.models.info(candidate)
    assert (info.task, info.texts, info.label_names) == (kind.task, kind.texts, kind.names)
    task, held_out = kind.definition(), found.held_out
    batches = task.batches(held_out, words, training=False, batch_size=64, max_length=32)
    score = task.evaluate(small, batches, held_out.label_names or None).score
    assert score == pytest.approx(info.facts["score"], abs=1e-5)
    monkeypatch.setattr(
        predict_module,
        "_run",
        lambda version, *request: predict_script.predict(version, *request[:-1]),
    )
    texts = [x if kind.texts == 2 else x[0] for x in held_out.examples()[:2]]
    served = ke.serving.predict(candidate.parent / "int8", texts)
    assert len(served) == 2 and all(kind.answer in row for row in served)


def test_models_that_compress_does_not_take(tmp_path):
    for name in ("masked_lm", "causal_lm", "seq2seq"):
        with pytest.raises(ke.InputError, match=f"compress takes .*regression.*task {name}"):
            module.check_compresses(ke.tasks.get(name))
    folder = write_bert(tmp_path / "bert", dropout=0.0)
    model, tokenizer = ke.models.load(folder, task="regression")
    task = ke.tasks.get("regression")
    single = ke.data.Records.of(["a", "b"], [1.0, 2.0], encode=task.encode)
    pairs = ke.data.Records(single.texts, single.labels, second_texts=single.texts)
    settings = ke.pipelines.CompressSettings("speedup=2", length=32, max_length=32)

    def run(train, validation, **options):
        folder = tmp_path / "out"
        return module.CompressRun(model, tokenizer, train, validation, folder, settings, **options)

    for train, options, parts in (
        (single, {"task": task}, "Received: pairs of texts .*task regression>. Name one"),
        (pairs, {"task": "regression", "unlabelled": ["c"]}, "Received: single texts .*of pairs"),
    ):
        with pytest.raises(ke.InputError, match=parts):
            run(train, pairs, **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.full
@pytest.mark.parametrize("library", BOTH)
@pytest.mark.parametrize("name", KINDS)
def test_what_finetune_leaves(name, library, tmp_path):
    """Of every task, with the columns that it was read from."""
    kind = KINDS[name]
    *_, records = taught(kind, library, tmp_path)
    data = written(tmp_path / "data.jsonl", [kind.row(records, number) for number in range(64)])
    options = {"task": kind.task, "library": library, "epochs": 20, "validation": 16}
    arguments = finetune_arguments(data, tmp_path / "bert", tmp_path / "out", **options)
    columns = [
        x for column in kind.columns.get("text_column", ()) for x in ("--text-column", column)
    ]
    outcome = keras_efficient(*arguments, *columns)
    assert outcome.code == 0 and "(for keras-efficient compress)" in outcome.out, outcome
    options = {"copies": 1, "target": "parameters=3200"}
    outcome = compress(tmp_path / "out", data, tmp_path / "small", **options)
    if "must be above 0" not in outcome.err:
        assert outcome.code in (0, 3), outcome
        report = json.loads((tmp_path / "small" / "report.json").read_text())
        assert report["rows"][0]["name"] == "Keras float32" and len(report["rows"]) == 3


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
    other = write_reviews(tmp_path / "other.csv", labelled(80, seed=9))
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
