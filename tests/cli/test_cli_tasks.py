"""`finetune` and `predict` for other tasks than single-label classification, and pairs of texts."""

import csv
import json
import signal

import numpy as np
import pytest
from command_line import VOCABULARY, keras_efficient, review_rows
from covering import sampled
from in_process_export import in_process as in_process
from test_cli_resume import advised, signal_after

import keras_efficient as ke
from keras_efficient._errors import InputError
from keras_efficient.serving import _predict as predict_module, _predict_script as predict_script

OPTIONS = ("--precision", "float32", "--batch-size", "8", "--max-length", "32")
OPTIONS += ("--learning-rate", "1e-2")


def write(path, header, rows):
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture
def ratings(tmp_path):
    """Pairs of texts whose number is how many of them are positive."""
    rows = review_rows(60)
    pairs = [(rows[i], rows[i // 2]) for i in range(60)]
    scored = [(a, b, (x == "positive") + (y == "positive")) for (a, x), (b, y) in pairs]
    return write(tmp_path / "ratings.csv", ("a", "b", "score"), scored)


@pytest.fixture
def topics(tmp_path):
    """Texts with a column for each of two classes."""
    rows = [
        (text, int(label == "positive"), int("plot" in text)) for text, label in review_rows(60)
    ]
    return write(tmp_path / "topics.csv", ("text", "good", "plot"), rows)


def finetune(data, bert, output, *options):
    return keras_efficient(
        "finetune", data, "--model", bert, "--output", output, "--epochs", 1, *OPTIONS, *options
    )


def checked(output, task, texts):
    """Return the report of version 1, whose trained model can be loaded back."""
    report = json.loads((output / "1" / "report.json").read_text())
    assert report["max_abs_difference"] <= 1e-5
    info = ke.models.info(output)
    assert (info.task, info.texts) == (task, texts)
    page = (output / "1" / "report.html").read_text()
    assert "Evaluation on 6 examples" in page and "95% interval" in page
    return report


def test_regression_of_pairs(ratings, bert, tmp_path, in_process):
    output = tmp_path / "out"
    columns = ("--text-column", "a", "--text-column", "b", "--label-column", "score")
    outcome = finetune(ratings, bert, output, "--task", "regression", *columns, "--metric", "mae")
    assert outcome.code == 0, outcome
    assert "numbers from 0 to 2" in outcome.err and "always answering the mean" in outcome.err
    assert "the epoch with the best MAE" in outcome.err
    for part in ("MAE", "Mean baseline", "Spearman"):
        assert part in outcome.out
    report = checked(output, "regression", 2)
    # The model that is left is the one that was evaluated.
    task = ke.tasks.get("regression", texts=2)
    records = task.read(ratings, text_column=("a", "b"), label_column="score")
    _, held_out = ke.data.split(records, validation=0.1)
    model, tokenizer = ke.models.load(output, task="regression")
    data = ke.data.text(held_out, tokenizer, batch_size=8, max_length=32, shuffle=False)
    found = task.evaluate(model, data)
    assert found.mae == pytest.approx(report["quality"]["mae"], abs=1e-5)
    # And the one that is served.
    texts = list(zip(held_out.texts, held_out.second_texts, strict=True))
    served = ke.serving.predict(output, texts)
    in_memory = np.asarray(model.predict(data, verbose=0))[:, 0]
    np.testing.assert_allclose([row["value"] for row in served], in_memory, atol=1e-5)
    assert (served[0]["text"], served[0]["second_text"]) == texts[0]


def test_several_classes(topics, bert, tmp_path, monkeypatch, in_process):
    output = tmp_path / "out"
    columns = ("--label-column", "good", "--label-column", "plot")
    options = ("--task", "multi_label", *columns, "--library", "tf_keras")
    outcome = finetune(topics, bert, output, *options)
    assert outcome.code == 0, outcome
    assert "labels good, plot per text" in outcome.err and "has micro-F1" in outcome.err
    report = checked(output, "multi_label", 1)
    assert report["facts"]["micro_f1"] == report["quality"]["micro_f1"]
    monkeypatch.setattr(
        predict_module,
        "_run",
        lambda version, *request: predict_script.predict(version, *request[:-1]),
    )
    (tmp_path / "texts").write_text("the film was good\nthe plot was dull\n")
    outcome = keras_efficient("predict", output, "--file", tmp_path / "texts", "--json")
    rows = json.loads(outcome.out)
    for row in rows:
        assert set(row["probabilities"]) == {"good", "plot"}
        assert row["labels"] == [k for k, p in row["probabilities"].items() if p > 0.5]
    table = keras_efficient("predict", output, "--text", "a plot")
    assert table.code == 0 and "Labels" in table.out
    with pytest.raises(InputError, match="This model takes single texts"):
        predict_module.predict(output, [("a", "b")])
    model, _ = ke.models.load(output)
    assert ke.flavor.of(model).name == "tf_keras" and model.config.num_labels == 2
    with pytest.raises(InputError, match="keeps its task"):
        ke.models.load(output, task="regression")
    # `compress` reads the columns that the model was trained on, unless it is told of others.
    assert ke.models.info(output).facts["label_column"] == ["good", "plot"]
    compress = ("--data", topics, "--target", "speedup=2", "--output", tmp_path / "small")
    named = ("--label-column", "stars")
    keras_efficient("compress", output, *compress, *named).refused("a column 'stars'")


@sampled()
@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_tagged_words(library, bert, tmp_path, monkeypatch, in_process):
    words = {"good": "B-opinion", "bad": "B-opinion", "plot": "B-part", "film": "B-part"}
    with open(tmp_path / "tags.conll", "w", encoding="utf-8") as file:
        for text, _ in review_rows(60):
            rows = [f"{word}\t{words.get(word, 'O')}\n" for word in text.split()]
            file.writelines([*rows, "\n"])
    output = tmp_path / "out"
    options = ("--task", "token_classification", "--library", library, "--quantize", "int8")
    outcome = finetune(tmp_path / "tags.conll", bert, output, *options)
    assert outcome.code == 0, outcome
    assert "of 2 types: opinion, part" in outcome.err and "finding no entity" in outcome.err
    assert "real tokens only" in outcome.err
    for part in ("Entity F1", "No-entity baseline", "Per class"):
        assert part in outcome.out
    report = json.loads((output / "1" / "report.json").read_text())
    assert report["evaluation"]["metric"] == "entity F1"
    # The model that is left is the one that was evaluated, and the one that is served.
    task = ke.tasks.get("token_classification")
    _, held_out = ke.data.split(task.read(tmp_path / "tags.conll"), validation=0.1)
    model, tokenizer = ke.models.load(output)
    data = ke.data.text(held_out, tokenizer, batch_size=8, max_length=32, shuffle=False)
    found = task.evaluate(model, data, held_out.label_names)
    assert found.entity_f1 == pytest.approx(report["evaluation"]["in_memory"], abs=1e-6)
    monkeypatch.setattr(
        predict_module,
        "_run",
        lambda version, *request: predict_script.predict(version, *request[:-1]),
    )
    rows = ke.serving.predict(output, list(held_out.texts))
    assert len(rows) == len(held_out)
    for row in rows:
        for entity in row["entities"]:
            assert entity["text"] == row["text"][entity["start"] : entity["end"]]
            assert entity["type"] in ("opinion", "part") and 0 < entity["score"] <= 1
    table = keras_efficient("predict", output, "--text", held_out.texts[0])
    assert table.code == 0 and "Entities" in table.out


@sampled()
@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_questions(library, bert, tmp_path, monkeypatch, in_process):
    rows = []
    for i, (text, _) in enumerate(review_rows(40)):
        word = text.split()[-2]
        answers = {"text": [word], "answer_start": [text.rindex(word)]}
        rows.append({"question": f"the film {i % 3}", "context": text, "answers": answers})
    rows[0]["context"] += " and the plot" * 20
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    output = tmp_path / "out"
    options = ("--task", "question_answering", "--library", library, "--quantize", "int8")
    outcome = finetune(tmp_path / "a.jsonl", bert, output, *options)
    assert outcome.code == 0, outcome
    assert "0 of them without an answer" in outcome.err and "real tokens only" in outcome.err
    for part in ("Answer F1", "Exact match", "always the whole"):
        assert part in outcome.out
    report = json.loads((output / "1" / "report.json").read_text())
    assert report["evaluation"]["metric"] == "answer F1"
    # The model that is left is the one that was evaluated, and the one that is served.
    task = ke.tasks.get("question_answering")
    _, held_out = ke.data.split(task.read(tmp_path / "a.jsonl"), validation=0.1)
    model, tokenizer = ke.models.load(output)
    data = ke.data.text(held_out, tokenizer, batch_size=8, max_length=32, shuffle=False)
    found = task.evaluate(model, data)
    assert found.f1 == pytest.approx(report["evaluation"]["in_memory"], abs=1e-6)
    monkeypatch.setattr(
        predict_module,
        "_run",
        lambda version, *request: predict_script.predict(version, *request[:-1]),
    )
    pairs = list(zip(held_out.texts, held_out.second_texts, strict=True))
    pairs.append((rows[0]["question"], rows[0]["context"]))
    served = ke.serving.predict(output, pairs)
    for pair, row in zip(pairs, served, strict=True):
        assert (row["question"], row["context"]) == pair
        assert row["answer"] == row["context"][row["start"] : row["end"]] != ""
        assert 0 < row["score"] < 1 and 0 <= row["no_answer_score"] < 1
    right = [[text for text, _ in row] for row in held_out.labels.answers]
    again = [row["answer"] for row in served[:-1]]
    report_ = ke.metrics.answer_report(again, right, held_out.second_texts)
    assert report_.f1 == pytest.approx(report["evaluation"]["served"], abs=1e-6)
    words = [
        word
        for name, text in zip(("text", "second-text"), pairs[0], strict=True)
        for word in (f"--{name}", text)
    ]
    table = keras_efficient("predict", output, *words)
    assert table.code == 0 and "Answer" in table.out
    long = keras_efficient("predict", output, "--text", "the " * 20, "--second-text", "a film")
    long.refused("does not truncate questions", "Shorten the question")


@sampled()
@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_masked_words_and_a_classifier_that_starts_from_them(
    library, bert, reviews, tmp_path, monkeypatch, in_process
):
    (tmp_path / "texts.txt").write_text("".join(f"{text}\n" for text, _ in review_rows(60)))
    adapted = tmp_path / "adapted"
    options = ("--task", "masked_lm", "--library", library, "--quantize", "int8")
    with pytest.warns(UserWarning, match="starts from new weights"):
        outcome = finetune(tmp_path / "texts.txt", bert, adapted, *options)
    assert outcome.code == 0, outcome
    assert "without labels" in outcome.err and "real tokens only" in outcome.err
    assert "Perplexity" in outcome.out and "Unigram baseline" in outcome.out
    assert "(for ke.models.load)" in outcome.out
    compress = ("--data", tmp_path / "texts.txt", "--target", "speedup=2", "--output", tmp_path)
    keras_efficient("compress", adapted, *compress).refused("compress takes models", "masked_lm")
    report = json.loads((adapted / "1" / "report.json").read_text())
    assert report["evaluation"]["metric"] == "log-likelihood per token"
    monkeypatch.setattr(
        predict_module,
        "_run",
        lambda version, *request: predict_script.predict(version, *request[:-1]),
    )
    table = keras_efficient("predict", adapted, "--text", "the film was [MASK]")
    assert table.code == 0 and "Masked" in table.out
    (row,) = ke.serving.predict(adapted, ["the film was [MASK]"])
    assert len(row["masked"]) == 1 and len(row["masked"][0]) == 5
    # Of the encoder that was adapted, not of the pretrained one.
    start, _ = ke.models.load(adapted, task="classification", num_labels=2)
    model, _ = ke.models.load(adapted)
    before, _ = ke.models.load(bert, library=library)
    tables = [
        next(w for w in m.get_weights() if w.ndim == 2 and len(w) == len(VOCABULARY))
        for m in (start, model, before)
    ]
    np.testing.assert_array_equal(tables[0], tables[1])
    assert np.abs(tables[0] - tables[2]).max() > 0
    outcome = finetune(reviews, adapted, tmp_path / "out", "--library", library)
    assert outcome.code == 0, outcome


@pytest.mark.full
def test_a_stopped_run_resumes_with_its_task(ratings, bert, tmp_path, exported, monkeypatch):
    output, columns = tmp_path / "out", ("--text-column", "a", "--label-column", "score")
    options = ("--task", "regression", *columns, "--epochs", 2)
    assert finetune(ratings, bert, output, *options).code == 0
    with monkeypatch.context() as patch:
        signal_after(patch, 11, signal.SIGINT)
        outcome = finetune(ratings, bert, output, *options)
    assert outcome.code == 130, outcome
    other = finetune(ratings, bert, output, *columns, "--epochs", 2, "--resume")
    other.refused("task", "regression")
    again = keras_efficient(*advised(outcome))
    assert again.code == 0 and "Resuming after epoch 1, step 4" in again.err, again
    whole, resumed = exported
    assert whole.largest_difference(resumed) <= 1e-6
    assert whole.facts["rmse"] == pytest.approx(resumed.facts["rmse"], abs=1e-6)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--task", "regresion"), ("--task must be one of classification",)),
        (("--task", "regression", "--metric", "accuracy"), ("--metric must be one of rmse, mae",)),
        (("--task", "regression", "--class-weights", "balanced"), ("one class per text",)),
        (("--label-column", "score", "--label-column", "a"), ("one class per text", "line 2")),
    ],
)
def test_options_that_do_not_fit(ratings, bert, tmp_path, options, parts):
    columns = ("--text-column", "b")
    if "--label-column" not in options:
        columns += ("--label-column", "score")
    finetune(ratings, bert, tmp_path / "out", *columns, *options).refused(*parts)
    assert not (tmp_path / "out").exists()


def test_pairs_of_options(tmp_path):
    (tmp_path / "texts").write_text("one\ttwo\nthree\n")
    keras_efficient(
        "predict", tmp_path, "--text", "a", "--second-text", "b", "--second-text", "c"
    ).refused("a --second-text for each --text", "1 and 2")
    keras_efficient("predict", tmp_path, "--file", tmp_path / "texts", "--pairs").refused(
        "two texts, with one tab between", "text 2"
    )
