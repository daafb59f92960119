"""Questions: files in, refusals by line and id, windows, answers compared, decoded and served."""

import gzip
import json

import numpy as np
import pytest
import tensorflow as tf
from bert_folder import SPECIAL, VOCABULARY, write
from safetensors.numpy import save_file
from tokenizers import BertWordPieceTokenizer

import keras_efficient as ke
from keras_efficient._errors import InputError
from keras_efficient.data._question_windows import QuestionWindows, window_starts
from keras_efficient.exporters.tokenizer_ops.text_tokenizer import text_function
from keras_efficient.exporters.tokenizer_ops.window_tokenizer import WindowTokenizer
from keras_efficient.metrics._answer_report import normalized_words
from keras_efficient.metrics._best_spans import best_spans
from keras_efficient.models._span_logits import MASKED, span_logits

TASK = ke.tasks.get("question_answering")
CONTEXT = "The film was very good and the actors were great."


def row(answer="very good", question="How was the film?", context=CONTEXT, **changes):
    texts = [answer] if isinstance(answer, str) else answer
    answers = {"text": texts, "answer_start": [context.index(text) for text in texts]}
    return {"question": question, "context": context, "answers": answers, **changes}


def squad(*questions, context=CONTEXT):
    paragraphs = [{"context": context, "qas": list(questions)}]
    return json.dumps({"version": "v2.0", "data": [{"title": "Film", "paragraphs": paragraphs}]})


def read(path, content, **options):
    path.write_text(content, encoding="utf-8")
    return TASK.read(path, **options)


# --- label format ---------------------------------------------------------------------------------


def test_squad_and_json_lines(tmp_path):
    answer = {"text": "great", "answer_start": 43}
    first = {"id": "a", "question": "Actors?", "answers": [answer], "is_impossible": False}
    none = {"id": "b", "question": "Price?", "answers": [], "is_impossible": True}
    found = read(tmp_path / "a.json", squad(first, none))
    assert found.texts == ("Actors?", "Price?") and found.second_texts == (CONTEXT, CONTEXT)
    assert found.labels.answers == ((("great", 43),), ())
    # Version 1.1 does not say what is impossible.
    old = {"id": "a", "question": "Actors?", "answers": [answer]}
    assert len(read(tmp_path / "b.json", squad(old))) == 1
    lines = json.dumps(row()) + "\n\n" + json.dumps(row(question="b", answers=[answer])) + "\n"
    found = read(tmp_path / "c.jsonl", lines)
    assert found.labels.answers == ((("very good", 13),), (("great", 43),))
    with gzip.open(tmp_path / "c.jsonl.gz", "wt") as file:
        file.write(lines)
    again = TASK.read([tmp_path / "c.jsonl.gz"])
    assert again.fingerprint == found.fingerprint != found.take([1, 0]).fingerprint
    assert found.take([1]).labels.answers == ((("great", 43),),)
    other = {"q": "x", "c": "a b", "a": {"text": ["b"], "answer_start": [2]}}
    named = {"text_column": ("q", "c"), "label_column": "a"}
    assert read(tmp_path / "d.ndjson", json.dumps(other), **named).second_texts == ("a b",)
    encoded = ke.data.Records.of(["x"], [[("b", 2)]], second_texts=["a b"], encode=TASK.encode)
    assert encoded.labels.answers == ((("b", 2),),) and "answers" in repr(encoded)
    array = {"text": np.array(["b"]), "answer_start": np.array([2])}
    assert TASK.records([{"question": "x", "context": "a b", "answers": array}]).labels.answers


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", json.dumps({"question": "a", "context": "b"}), "without 'answers'.*line 1"),
        ("a.jsonl", "\n" + json.dumps(row(question=" ")), "something in it.*line 2, question"),
        ("a.jsonl", json.dumps(row([], context="")), "something in it.*line 1, context"),
        ("a.jsonl", json.dumps(row(answers="great")), "lists of equal length.*line 1"),
        (
            "a.jsonl",
            json.dumps(row(answers={"text": ["a", "b"], "answer_start": [0]})),
            "lists of equal length.*line 1",
        ),
        (
            "a.jsonl",
            json.dumps(row(answers={"text": ["great"], "answer_start": [42]})),
            r"stand in its context.*'great' at 42.*' grea'.*line 1.*It is at 43",
        ),
        (
            "a.jsonl",
            json.dumps(row(answers={"text": ["e"], "answer_start": [0]})),
            "stand in its context.*occurs 6 times",
        ),
        (
            "a.jsonl",
            json.dumps(row(answers={"text": [" "], "answer_start": [3]})),
            "something in it.*an empty list of answers",
        ),
        (
            "a.jsonl",
            json.dumps(row(answers={"text": ["great"], "answer_start": [-1]})),
            "first character of the answer.*-1",
        ),
        ("a.jsonl", "[]", "must be a JSON object.*line 1"),
        ("a.txt", "a", r"from \.json files of SQuAD"),
        ("a.json", "{", "complete JSON"),
        ("a.json", json.dumps(row()), "layout of SQuAD.*without a list 'data'"),
        ("a.json", json.dumps({"data": []}), "at least one question"),
        (
            "a.json",
            json.dumps({"data": [{"title": "Film", "paragraphs": [{"context": "a"}]}]}),
            "paragraph 0 of 'Film' without a list 'qas'",
        ),
        (
            "a.json",
            squad({"id": "x7", "question": "a", "answers": [{"text": "b", "answer_start": 0}]}),
            r"stand in its context.*question 'x7'",
        ),
        ("a.json", squad({"id": "x7", "question": "a"}), "without 'answers'.*question 'x7'"),
        (
            "a.json",
            squad({"id": "x7", "question": "a", "answers": [], "is_impossible": False}),
            "unless `is_impossible`.*with 0 answers.*'x7'",
        ),
        ("a.json", squad("a"), "needs 'question'.*paragraph 0"),
    ],
)
def test_bad_questions_are_refused(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path / name, content)


def test_arrays_and_arguments(tmp_path):
    records = TASK.records([row()])
    for call, message in (
        (lambda: TASK.read([row()]), "Give dicts to `records`"),
        (lambda: TASK.read("a.json", delimiter=";"), "stand in JSON"),
        (lambda: TASK.read("a.jsonl", text_column="q"), "`text_column` must name 2 keys"),
        (lambda: TASK.encode(["b"], None, str), "a list of .text, first character"),
        (lambda: ke.tasks.get("question_answering", texts=1), "a question and its context"),
        (lambda: TASK.head_size(3), "has two outputs"),
        (lambda: TASK.label_names(["a", "b"], 2), "two outputs, without names"),
        (lambda: TASK.batch_labels(np.zeros((2, 2), int), "evaluate"), r"labels \[batch, 3\]"),
        (lambda: TASK.with_data([]), "as ke.data.text returned it"),
        (lambda: TASK.check(ke.data.Records.of(["a"])), "learns where answers stand"),
        (lambda: TASK.check(TASK.records([row([])])), "must be an answer to learn"),
        (lambda: ke.data.Records(("a",), records.labels), "Answers need contexts"),
        (lambda: ke.data.Records(("a",), records.labels, second_texts=("b",)), "stand in its con"),
        (lambda: ke.data.split(records.take([0, 0]), validation=1), "must have a context"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    assert TASK.describe(records, records) == (
        "questions about 1 texts, 0 of them without an answer",
        "always answering with the whole context has F1 0.4000 and is exactly right for 0.0%",
    )


def test_questions_about_a_text_stay_together():
    contexts = ["a film", "a plot", "actors"]
    rows = [row([], context=contexts[i % 3]) for i in range(9)]
    train, validation = ke.data.split(TASK.records(rows), validation=2)
    assert (len(train), len(validation)) == (6, 3)
    assert not set(train.second_texts) & set(validation.second_texts)


# --- windows --------------------------------------------------------------------------------------

LONG = "the film was very good and the actors was great . a plot with films was not bad"
ROWS = [
    row("very good", "was the film good", LONG),
    row(["films", "bad"], "plot", LONG),
    row([], "the actors", "a bad plot"),
]
OPTIONS = {"batch_size": 4, "shuffle": False, "max_length": 16, "stride": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("bert") / "model")


@pytest.fixture(scope="module")
def tokenizer(folder):
    return ke.data.Tokenizer.from_directory(folder, inputs=ke.data.KERASHUB, max_length=32)


def test_windows_cover_the_context(tokenizer):
    data = ke.data.text(TASK.records(ROWS), tokenizer, **OPTIONS)
    windows, ids = data.windows, [row.numpy() for f, _ in data for row in f["token_ids"]]
    assert data.stats.examples == len(windows) == len(ids) and data.stats.truncated == 0
    labels = np.concatenate([labels.numpy() for _, labels in data])
    np.testing.assert_array_equal(labels, windows.labels)
    answers = ["very good", "films", None]
    whole = tokenizer.encode([LONG])[0][1:-1]
    for question, expected in enumerate(answers):
        numbers = np.flatnonzero(windows.question == question)
        found = set()
        for number in numbers:
            begin, end = np.flatnonzero(windows.ends[number])[[0, -1]]
            first, last, name = windows.labels[number]
            assert name == number and len(windows.ids[number]) <= 16
            if first:
                text = windows.records.second_texts[question]
                found.add(text[windows.starts[number][first] : windows.ends[number][last]])
            assert (first == last == 0) or begin <= first <= last <= end
        assert found == ({expected} if expected else set())
        if question < 2:
            parts = [windows.ids[n][windows.ends[n] > 0] for n in numbers]
            joined = np.concatenate([parts[0], *(part[4:] for part in parts[1:])])
            np.testing.assert_array_equal(joined, whole)
    assert len(windows.question) > 4
    # "films" is a word of two tokens.
    ((number,),) = np.where((windows.question == 1) & (windows.labels[:, 0] > 0))
    first, last, _ = windows.labels[number]
    assert last == first + 1


@pytest.mark.parametrize("tokens", [0, 1, 5, 6, 7, 8, 20, 23])
def test_the_number_of_windows(tokens):
    space, stride = 6, 2
    starts = list(window_starts(tokens, space, stride))
    assert starts == [4 * n for n in range(len(starts))]
    assert starts[-1] + space >= tokens and (len(starts) == 1 or starts[-2] + space < tokens)


def test_questions_that_do_not_fit(tokenizer):
    def windows(question="a film", context=LONG, answer=(), max_length=16, stride=None):
        records = TASK.records([row(list(answer), question, context)])
        return QuestionWindows(records, tokenizer, max_length, stride)

    assert windows().stride == 5
    with pytest.raises(InputError, match=r"not truncated.*`stride` = 5.*with 11 tokens before"):
        windows("very " * 9)
    for stride in (-1, 16, True):
        with pytest.raises(InputError, match="`stride` must be the number of tokens"):
            windows(stride=stride)
    with pytest.raises(InputError, match="must not contain the token that separates"):
        windows("a [SEP] film")
    with pytest.raises(InputError, match="Each context must have a token"):
        windows(context="\u200d")
    with pytest.raises(InputError, match="An answer must have a token"):
        windows(context="a \u200d film", answer=["\u200d"])
    function = ke.data.Tokenizer(lambda texts, n: [[1]] * len(texts), inputs=ke.data.KERASHUB)
    single = BertWordPieceTokenizer({word: i for i, word in enumerate(VOCABULARY)})
    single._tokenizer.post_processor = None
    for other in (function, ke.data.as_tokenizer(single)):
        with pytest.raises(InputError, match=r"joins them as in \[CLS\]"):
            ke.data.text(TASK.records(ROWS), other, **OPTIONS)
    with pytest.raises(InputError, match="`stride` is for the contexts of questions"):
        ke.data.text(["a"], tokenizer, **OPTIONS)


def test_windows_on_a_disk_have_no_stride(tokenizer, tmp_path):
    rows = [{"text": "a film", "label": "x"}]
    texts = ke.data.tokenize_to_disk(rows, tokenizer, tmp_path, max_length=16)
    with pytest.raises(InputError, match="`stride` is for questions in memory"):
        ke.data.text(texts, tokenizer, **OPTIONS)


def test_windows_in_the_graph_are_those_of_python(tokenizer):
    questions = ["was the film good", "plot", "the [UNK] actors?", "bad"]
    contexts = [LONG, LONG + " Goodly, [MASK]films 電影.", "films", "the " * 40]
    tokenize = tf.function(WindowTokenizer(tokenizer, 16, 4))
    features, tokens = tokenize(tf.constant(questions), tf.constant(contexts))
    rows = [row([], q, c) for q, c in zip(questions, contexts, strict=True)]
    windows = QuestionWindows(TASK.records(rows), tokenizer, 16, 4)
    assert tokens["rows"].numpy().tolist() == windows.question.tolist()
    assert [text.decode() for text in tokens["texts"].numpy()] == contexts
    for number, ids in enumerate(windows.ids):
        expected = {
            "token_ids": ids,
            "segment_ids": windows.segments[number],
            "padding_mask": np.ones_like(ids),
            "starts": windows.starts[number],
            "ends": windows.ends[number],
        }
        for name, values in expected.items():
            found = {**features, **tokens}[name][number].numpy()
            assert found[: len(ids)].tolist() == values.tolist(), (name, number)
            assert not found[len(ids) :].any()
    with pytest.raises(tf.errors.InvalidArgumentError, match="does not truncate questions"):
        tokenize(tf.constant(["very " * 9]), tf.constant(["a"]))
    vocabulary = {word: i for i, word in enumerate((*SPECIAL, "Ab"))}
    backend = BertWordPieceTokenizer(vocabulary)
    backend.add_tokens(["Ab"])
    with pytest.raises(InputError, match="before the text is normalized"):
        WindowTokenizer(ke.data.as_tokenizer(backend))


# --- scores ---------------------------------------------------------------------------------------


def test_answers_are_normalized_as_by_the_script_of_squad():
    assert normalized_words(" The  (U.S.) an' A-team’s\n") == ["us", "ateam’s"]
    assert normalized_words("theatre of the a.") == ["theatre", "of"]


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "f1"),
    [
        ("Rome", ["Rome"], 1, 1),
        ("the city of Rome!", ["Rome"], 0, 2 / 4),
        ("very very good", ["very good good"], 0, 2 * 2 / 6),
        ("black cat", ["dog", "a black cat"], 1, 1),
        ("cat", ["black cat", "white dog"], 0, 2 / 3),
        ("", ["Rome"], 0, 0),
        ("Rome", [], 0, 0),
        ("", [], 1, 1),
        ("the", [], 1, 1),
        ("the", ["the"], 1, 1),
    ],
)
def test_scores_of_an_answer(prediction, answers, exact, f1):
    report = ke.metrics.answer_report([prediction], [answers], ["context"])
    assert (report.exact_match, report.f1) == (exact, pytest.approx(f1))


def test_reports():
    predictions, answers = ["Rome", "the city", ""], [["Rome"], ["city of Rome"], []]
    contexts = ["in Rome", "the city of Rome", "a plot"]
    report = ke.metrics.answer_report(predictions, answers, contexts)
    assert report.f1 == report.score == pytest.approx((1 + 2 / 4 + 1) / 3)
    assert report.exact_match == pytest.approx(2 / 3) and report.baseline == "the whole context"
    assert report.baseline_f1 == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert (report.unanswerable, report.unanswerable_accuracy) == (1, 1.0)
    low, high = report.interval
    assert low <= report.f1 <= high and "Unanswerable" in str(report)
    weighted = ke.metrics.answer_report(predictions, answers, contexts, sample_weight=[0, 1, 0])
    assert weighted.f1 == pytest.approx(0.5)
    report = ke.metrics.answer_report(["a plot"], [[]], contexts[:1])
    assert report.baseline == "no answer" and "not better than always giving" in report.warnings[0]
    with pytest.raises(InputError, match="for each question"):
        ke.metrics.answer_report(predictions, answers[:1], contexts)


def test_the_best_span_is_the_one_of_all_pairs():
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (5, 2, 40)).astype("float32")
    context = np.zeros((5, 40), bool)
    context[:4, 3:37] = True
    first, last, score, none = (x.numpy() for x in best_spans(logits, context))
    allowed = context.copy()
    allowed[:, 0] = True
    odds = np.exp(logits) * allowed[:, None]
    scores = odds / odds.sum(-1, keepdims=True)
    for n in range(4):
        pairs = {
            (i, j): scores[n, 0, i] * scores[n, 1, j]
            for i in range(3, 37)
            for j in range(i, min(i + 30, 37))
        }
        best = max(pairs, key=lambda pair: pairs[pair])
        assert (first[n], last[n]) == best and score[n] == pytest.approx(pairs[best], rel=1e-5)
    np.testing.assert_allclose(none, scores[:, 0, 0] * scores[:, 1, 0], rtol=1e-5)
    assert score[4] == 0 and none[4] == pytest.approx(1)
    # The end comes before the start, and too far behind it.
    logits = np.zeros((1, 2, 40), "float32")
    logits[0, 0, 20], logits[0, 1, [10, 25]] = 9, (9, 1)
    assert [int(x[0]) for x in best_spans(logits, np.ones((1, 40)))[:2]] == [20, 25]
    logits = np.zeros((1, 2, 40), "float32")
    logits[0, 0, 2], logits[0, 1, [33, 31]] = 9, (9, 1)
    assert [int(x[0]) for x in best_spans(logits, np.ones((1, 40)))[:2]] == [2, 31]


def test_windows_of_a_question_are_joined(tokenizer):
    data = ke.data.text(TASK.records(ROWS), tokenizer, **OPTIONS)
    windows = data.windows
    logits = np.zeros((len(windows), 16, 2), "float32")
    # Each window says so where it has the answer, and otherwise that there is none.
    for number, (first, last, _) in enumerate(windows.labels):
        logits[number, first, 0] = logits[number, last, 1] = 5
    order = np.random.default_rng(0).permutation(len(windows))
    report = TASK.with_data(data).report(windows.labels[order], logits[order])
    assert (report.exact_match, report.f1, report.examples) == (1, 1, 3)
    # A window elsewhere that is less sure does not matter, and one that is surer does.
    other = next(n for n, x in enumerate(windows.labels) if windows.question[n] == 0 and not x[0])
    place = int(np.flatnonzero(windows.ends[other])[-1])
    logits[other, place] = 4
    assert TASK.with_data(data).report(windows.labels, logits).exact_match == 1
    logits[other, 0], logits[other, place] = 0, 30
    assert TASK.with_data(data).report(windows.labels, logits).exact_match == pytest.approx(2 / 3)
    # Where all questions have an answer, each gets one.
    some = windows.question < 2
    logits[:, 0] = 40
    logits[other, place] = 0
    report = TASK.with_data(data).report(windows.labels[some], logits[some])
    assert report.unanswerable == 0 and report.f1 > 0


def test_questions_are_labelled_by_a_model(tokenizer):
    """One that knows the answers; the last question has none."""
    records = TASK.records(ROWS)
    options = {name: value for name, value in OPTIONS.items() if name != "shuffle"}
    labels = iter(ke.data.text(records, tokenizer, **OPTIONS).windows.labels)

    def predict(features):
        logits = np.zeros((len(features["token_ids"]), 2, features["token_ids"].shape[1]))
        for row_, (first, last, _) in zip(logits, labels, strict=False):
            row_[0, first] = row_[1, last] = 9
        return logits

    options["batch_size"] = 100
    found = TASK.pseudo_label(records.without_labels(), tokenizer, predict, **options)
    assert found.labels.answers == tuple(answers[:1] for answers in records.labels.answers)
    assert found.second_texts == records.second_texts and next(labels, None) is None


# --- models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_a_smaller_vocabulary_has_another_separator(library, folder, tmp_path):
    model, tokenizer = ke.models.load(folder, task=TASK, library=library)
    before = tokenizer.separator
    ids = np.setdiff1d(np.arange(len(VOCABULARY)), [SPECIAL.index("[UNK]")])
    small, _ = ke.shrink(model, vocabulary=ids)
    features = next(iter(ke.data.text(TASK.records(ROWS), tokenizer, **OPTIONS)))[0]
    name = tokenizer.inputs["ids"]
    assert before in ids and not (features[name] == SPECIAL.index("[UNK]")).numpy().any()
    others = {**features, name: tf.cast(np.searchsorted(ids, features[name]), tf.int32)}
    pairs = ((model, features), (small, others))
    logits = [np.asarray(getattr(m(x), "logits", m(x))) for m, x in pairs]
    np.testing.assert_allclose(*logits, atol=1e-6)
    with pytest.raises(ValueError, match=r"must contain the (token between|special tokens)"):
        ke.shrink(model, vocabulary=np.setdiff1d(ids, [before]))


def test_only_the_context_can_be_chosen():
    ids = tf.constant([[2, 7, 3, 8, 9, 3, 0], [2, 7, 8, 9, 3, 3, 8]])
    mask = tf.constant([[1, 1, 1, 1, 1, 1, 0], [1] * 7])
    logits = tf.random.stateless_normal([2, 7, 2], [0, 0])
    found = span_logits(logits, ids, mask, 3).numpy()
    kept = np.array([[1, 0, 0, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0, 1]], bool)
    for row_, keep, expected in zip(found, kept, logits.numpy(), strict=True):
        assert (row_[:, ~keep] == MASKED).all()
        np.testing.assert_array_equal(row_[:, keep], expected.T[:, keep])
    # A text without a separator is all context.
    alone = span_logits(logits, tf.fill([2, 7], 8), mask, 3).numpy()
    assert (alone != MASKED).sum() == 2 * (6 + 7)


@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_trained_heads_are_loaded_and_saved(library, folder, tmp_path):
    """Those of a Hugging Face checkpoint for question answering, with its prefix."""
    from safetensors.numpy import load_file

    random = np.random.default_rng(3)
    head = {
        "qa_outputs.weight": random.normal(0, 1, (2, 16)).astype("float32"),
        "qa_outputs.bias": np.array([0.5, -1.5], "float32"),
    }
    arrays = {f"bert.{k}": v for k, v in load_file(folder / "model.safetensors").items()}
    write(tmp_path / "qa", tensors=arrays | head)
    model, tokenizer = ke.models.load(tmp_path / "qa", task=TASK, library=library)
    dense = getattr(model, "output_dense", None) or model.qa_outputs
    np.testing.assert_array_equal(dense.get_weights()[0], head["qa_outputs.weight"].T)
    np.testing.assert_array_equal(dense.get_weights()[1], head["qa_outputs.bias"])
    data = ke.data.text(TASK.records(ROWS), tokenizer, **OPTIONS)
    features = next(iter(data))[0]
    info = ke.models.save(model, tokenizer, tmp_path / "saved", task=TASK)
    assert (info.head, info.texts) == ("span", 2)
    again, _ = ke.models.load(tmp_path / "saved")
    logits = [np.asarray(getattr(m(features), "logits", m(features))) for m in (model, again)]
    assert logits[0].shape == (4, 2, 16)
    np.testing.assert_allclose(*logits, atol=1e-5)
    # Other heads are new, from the seed.
    fresh, _ = ke.models.load(folder, task=TASK, library=library)
    kernel = (getattr(fresh, "output_dense", None) or fresh.qa_outputs).get_weights()[0]
    assert 0.01 < kernel.std() < 0.03


def test_both_libraries_give_the_same_logits(folder):
    found = []
    for library in ("keras", "tf_keras"):
        model, tokenizer = ke.models.load(folder, task=TASK, library=library)
        data = ke.data.text(TASK.records(ROWS), tokenizer, **OPTIONS)
        outputs = model(next(iter(data))[0])
        found.append(np.asarray(getattr(outputs, "logits", outputs)))
    np.testing.assert_allclose(*found, atol=1e-4)


def test_models_without_a_tokenizer_folder_are_refused(tmp_path, monkeypatch):
    from keras_efficient.models import _hugging_face, _kerashub

    for loader in (_hugging_face, _kerashub):
        with pytest.raises(InputError, match="whose tokenizer tells which words"):
            loader._separator("name", None)


def test_span_head_of_a_checkpoint_without_one(tmp_path):
    from keras_efficient.models._classification_head import span_head

    save_file({"qa_outputs.bias": np.zeros(3, "float32")}, tmp_path / "model.safetensors")
    assert span_head(tmp_path) is None and span_head("a name") is None


# --- served answers -------------------------------------------------------------------------------


def test_answers_are_decoded_from_what_is_served(tokenizer):
    """A model that finds "great" and "plot" by their ids, in the signature of strings."""
    words = json.loads(tokenizer.serialized)["model"]["vocab"]

    def tokens(token_ids, **_):
        great, plot = (tf.cast(token_ids == words[word], tf.float32) for word in ("great", "plot"))
        return {"logits": 9 * tf.stack([great, plot], 1)}

    data = ke.data.text(TASK.records(ROWS), tokenizer, **OPTIONS)
    task = TASK.with_data(data)
    serve = text_function(tokens, tokenizer, None, task=task)
    questions, contexts = ["plot", "great plot", "bad"], [LONG, "Great, plot!", "a film"]
    served = serve(tf.constant(questions), tf.constant(contexts))
    assert set(served) == set(TASK.serves)
    plain = {name: value.numpy().tolist() for name, value in served.items()}
    plain["answer"] = [answer.decode() for answer in plain["answer"]]
    first, second, third = TASK.decode({**plain, "context": contexts}, None)
    assert first["answer"] == "great . a plot" and LONG[first["start"] :].startswith("great . a pl")
    assert (second["answer"], second["start"], second["end"]) == ("Great, plot", 0, 11)
    assert second["score"] > 0.9 > 0.5 > third["score"] > 0
    assert third["no_answer_score"] == pytest.approx(1 / 9, abs=1e-6)
    for name, value, message in (
        ("start", -1, "characters in the context"),
        ("answer", "film", "characters in the context"),
        ("score", float("nan"), "a finite score"),
    ):
        bad = {**plain, name: [value, *plain[name][1:]]}
        with pytest.raises(ValueError, match=message):
            TASK.decode({**bad, "context": contexts}, None)
    with pytest.raises(InputError, match="windows, 2, tokens"):
        text_function(lambda **_: {"logits": tf.zeros([1, 2])}, tokenizer, task=TASK)(
            tf.constant(["a"]), tf.constant(["b"])
        )
