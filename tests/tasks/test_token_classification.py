"""Tagged words: files in, refusals by line, alignment with tokens, entities counted and served."""

import gzip
import json

import numpy as np
import pytest
import tensorflow as tf
from bert_folder import VOCABULARY as WORDS, write
from tokenizers import BertWordPieceTokenizer

import keras_efficient as ke
from keras_efficient._errors import InputError
from keras_efficient.data._read_tagged import word_spans
from keras_efficient.data._token_labels import token_words
from keras_efficient.exporters.tokenizer_ops.text_signature import TEXTS, _words
from keras_efficient.exporters.tokenizer_ops.text_tokenizer import TextTokenizer, text_function

TASK = ke.tasks.get("token_classification")
NAMES = ("O", "B-person", "I-person", "B-place", "I-place")
CONLL = "Anna B-person\nSmith I-person\nlives O\nin O\nRome B-place\n\t\nshe\tO\nleft\tO\n"


def read(path, content, **options):
    path.write_text(content, encoding="utf-8")
    return TASK.read(path, **options)


def line(**row):
    return json.dumps(row) + "\n"


ENTITIES = [{"start": 14, "end": 18, "label": "place"}, {"start": 0, "end": 10, "label": "person"}]
TEXT = "Anna Smith in Rome."


# --- label format ---------------------------------------------------------------------------------


def test_a_conll_file(tmp_path):
    found = read(tmp_path / "a.conll", CONLL)
    assert found.texts == ("Anna Smith lives in Rome", "she left") and found.label_names == NAMES
    words = found.labels.words[0]
    assert [found.texts[0][a:b] for a, b, _ in words] == found.texts[0].split()
    assert words[:, 2].tolist() == [1, 2, 0, 0, 3]
    other = found.take([1])
    assert other.labels.words[0][:, 2].tolist() == [0, 0]
    assert other.fingerprint != found.fingerprint == found.take([0, 1]).fingerprint
    train, validation = ke.data.split(found, validation=1)
    assert len(train) == len(validation) == 1
    # More columns, documents and Windows line ends.
    content = "-DOCSTART- -X- O\r\n\r\nRome NNP B-place\r\nis VBZ O\r\n"
    found = read(tmp_path / "b.txt", content, label_names=NAMES)
    assert found.texts == ("Rome is",) and found.labels.words[0][:, 2].tolist() == [3, 0]


def test_json_lines(tmp_path):
    tokens = line(tokens=["Anna", "left"], tags=["B-person", "O"])
    spans = line(text=TEXT, spans=ENTITIES)
    found = read(tmp_path / "a.jsonl", tokens + spans)
    assert found.texts == ("Anna left", TEXT) and found.label_names == NAMES
    tagged = [(TEXT[a:b], NAMES[c]) for a, b, c in found.labels.words[1]]
    assert tagged == [
        ("Anna", "B-person"),
        ("Smith", "I-person"),
        ("in", "O"),
        ("Rome", "B-place"),
        (".", "O"),
    ]
    named = {"text_column": "words", "label_column": "ner"}
    other = read(tmp_path / "b.jsonl", line(words=["Anna"], ner=["B-person"]), **named)
    assert other.label_names == NAMES[:3]
    rows = [{"tokens": ["Anna"], "tags": ["B-person"]}, {"text": TEXT, "entities": ENTITIES}]
    assert TASK.records(rows).labels.words[1].tolist() == found.labels.words[1].tolist()
    encoded = ke.data.Records.of(["Anna"], [[(0, 4, "B-person")]], encode=TASK.encode)
    assert encoded.labels.words[0].tolist() == [[0, 4, 1]]


def test_several_files_and_gzipped_ones(tmp_path):
    row = line(tokens=["Anna"], tags=["B-person"])
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write(row)
    (tmp_path / "b.jsonl").write_text(row)
    assert len(TASK.read(tmp_path / "a.jsonl.gz")) == 1
    for source in (str(tmp_path / "*.jsonl*"), [tmp_path / "a.jsonl.gz", tmp_path / "b.jsonl"]):
        assert len(TASK.read(source)) == 2
    for source, options, message in (
        (str(tmp_path / "c*"), {}, "matches none"),
        (tmp_path / "b.jsonl", {"delimiter": ";"}, "Leave it out"),
        ([{"tokens": ["Anna"]}], {}, "Give dicts to `records`"),
    ):
        with pytest.raises(ke.InputError, match=message):
            TASK.read(source, **options)


def test_words_of_a_text():
    text = "Ünïco\u0308de’s 電影 x_1"
    assert [text[a:b] for a, b in word_spans(text)] == [
        "Ünïco\u0308de",
        "’",
        "s",
        "電",
        "影",
        "x",
        "_",
        "1",
    ]


def entity(start, end, label="place"):
    return line(text=TEXT, entities=[{"start": start, "end": end, "label": label}])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.conll", "Anna\n", r"a word and its tag.*'Anna'.*line 1"),
        ("a.conll", "Anna O\n\tO\n", r"a word and its tag.*line 2"),
        (
            "a.conll",
            "Anna O\nSmith I-person\n",
            r"continues an entity.*after O.*line 2.*'B-person'",
        ),
        ("a.conll", "A B-place\nB I-person\n", r"'I-person' after B-place.*line 2"),
        ("a.conll", "A I-place\n", r"after the beginning of the text.*line 1"),
        ("a.conll", "A S-place\n", r"A tag is O outside.*'S-place'.*line 1.*BIOES"),
        ("a.conll", "\n\t\n", "at least one row"),
        ("a.conll", "-DOCSTART- O\n", "at least one text"),
        ("a.jsonl", line(tokens=["a", "b"], tags=["O"]), "2 tokens and 1 tags.*line 1"),
        ("a.jsonl", line(tokens=[], tags=[]), r"at least one.*\[\].*line 1"),
        ("a.jsonl", line(tokens=[" "], tags=["O"]), "something in it.*line 1"),
        ("a.jsonl", line(tokens=["a"], tags=[1]), "A tag is O outside.*1 .*line 1"),
        ("a.jsonl", line(tokens=["a"]), "needs 'tags' or 'entities' or 'spans'.*line 1"),
        ("a.jsonl", line(text="a", entities=3), "must be a list.*line 1"),
        ("a.jsonl", "\n" + entity(14, 20), "lie in its text, of 19.*14 to 20.*line 2"),
        ("a.jsonl", entity(-1, 3), "lie in its text.*line 1"),
        ("a.jsonl", entity(1, 4), r"begin and end with a word.*'nna'"),
        ("a.jsonl", entity(0, 5), r"begin and end with a word.*'Anna '"),
        ("a.jsonl", entity(0, 4, " "), "needs a type.*line 1"),
        ("a.jsonl", entity(0, None), r"An entity is .*line 1"),
        (
            "a.jsonl",
            line(text=TEXT, entities=[*ENTITIES, {"start": 5, "end": 10, "label": "person"}]),
            "must not overlap.*line 1",
        ),
    ],
)
def test_bad_lines_are_refused(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path / name, content)


def test_records_from_which_nothing_can_be_learned(tmp_path):
    with pytest.raises(InputError, match=r"'B-thing', unseen in training .*line 1"):
        read(tmp_path / "a.conll", "Rome B-thing\n", label_names=NAMES)
    with pytest.raises(InputError, match=r"The classes of tags are O, then.*'x', 'y', 'z'"):
        read(tmp_path / "a.conll", CONLL, label_names=("x", "y", "z"))
    found = read(tmp_path / "a.conll", CONLL)
    TASK.check(found)
    with pytest.raises(InputError, match=r"an entity to learn.*every word is tagged 'O'"):
        TASK.check(found.take([1]))
    one = ke.data.Records.of(["Anna"], [[(0, 4, "B-person")]], NAMES, encode=TASK.encode)
    with pytest.raises(InputError, match=r"must occur in the training part.*'place' never"):
        TASK.check(one, found)
    with pytest.raises(InputError, match="learns a tag for each word"):
        TASK.check(ke.data.Records.of(["a"]))
    assert TASK.describe(found, found) == (
        "2 entities to train on, of 2 types: person, place",
        "finding no entity has F1 0 and is right on 57.1% of the words",
    )


def test_arrays_and_arguments():
    for words in ([[0, 9, 1]], [[2, 4, 0], [0, 1, 0]], []):
        with pytest.raises(InputError, match="lie in it, one after the other"):
            ke.data.Records(("Anna",), ke.data.TokenLabels([words]), NAMES)
    with pytest.raises(InputError, match="class of a word must be an index into the 5"):
        ke.data.Records(("Anna",), ke.data.TokenLabels([[[0, 4, 5]]]), NAMES)
    with pytest.raises(InputError, match="one label per text"):
        ke.data.Records(("Anna",), ke.data.TokenLabels([]), NAMES)
    with pytest.raises(InputError, match="belong to the words of one text"):
        ke.tasks.get("token_classification", texts=2)
    for number in (None, 2, 4):
        with pytest.raises(InputError, match="`num_labels` must be the number of tags"):
            TASK.head_size(number)
    with pytest.raises(InputError, match="`num_classes` must be 1 and two"):
        ke.metrics.entity_f1(4)
    with pytest.raises(InputError, match="`evaluate` compares a class for each token"):
        TASK.batch_labels(np.array([1, 0]), "evaluate")
    with pytest.raises(InputError, match=r"\[examples, tokens, classes\]"):
        TASK.scores({"logits": np.zeros((2, 5))})
    with pytest.raises(InputError, match="`label_column` must name one column"):
        TASK.read("a.jsonl", label_column=("a", "b"))


# --- tokens ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = write(tmp_path_factory.mktemp("bert") / "model")
    return ke.data.Tokenizer.from_directory(folder, inputs=ke.data.KERASHUB, max_length=32)


def test_the_first_token_of_a_word_has_its_label(tokenizer):
    rows = [
        {"tokens": ["great", "films", ",badly"], "tags": ["B-place", "I-place", "O"]},
        {"tokens": ["bad"] * 40, "tags": ["B-place"] * 40},
    ]
    records = TASK.records(rows)
    options = {"batch_size": 2, "shuffle": False, "max_length": 12}
    ((features, labels),) = ke.data.text(records, tokenizer, **options)
    assert labels.shape == features["token_ids"].shape
    # [CLS] great film ##s , [UNK] [SEP]: the comma is the first token of ",badly".
    skipped = -100
    assert labels[0].numpy().tolist() == [skipped, 1, 2, skipped, 0] + [skipped] * 7
    assert labels[1].numpy().tolist() == [skipped] + [1] * 10 + [skipped]
    assert ke.data.text(records, tokenizer, **options).stats.truncated == 1
    with pytest.raises(InputError, match="a word of which a token is left"):
        ke.data.text(TASK.records([{"tokens": ["\u200d"], "tags": ["O"]}]), tokenizer, **options)
    function = ke.data.Tokenizer(lambda texts, n: [[1]] * len(texts), inputs=ke.data.KERASHUB)
    with pytest.raises(InputError, match=r"Labels of words need a tokenizers\.Tokenizer"):
        ke.data.text(records, function, **options)


def test_words_are_tagged_by_a_model(tokenizer):
    """Those of the tokenizer, each as its first token."""
    texts = ke.data.Records(("great films ,badly", "\u200d", "bad films" * 9))

    def predict(features):
        ids = features["token_ids"].numpy()
        # A class for each token of its own; that of "##s" is no word's.
        return np.eye(len(NAMES))[(ids == WORDS.index("great")) + 3 * (ids == WORDS.index("##s"))]

    options = {"batch_size": 3, "max_length": 8}
    found = TASK.pseudo_label(texts, tokenizer, predict, NAMES, **options)
    # A text without a word is left out, as are words that are cut off.
    assert found.texts == texts.texts[::2] and found.label_names == NAMES
    words = [(found.texts[0][a:b], c) for a, b, c in found.labels.words[0].tolist()]
    assert words == [("great", 1), ("films", 0), (",", 0), ("badly", 0)]
    assert 0 < len(found.labels.words[1]) < 9
    # Characters that belong to two words, or to none, are left to the first.
    spans = np.array([[0, 0, -1], [0, 2, 0], [2, 3, 0], [2, 4, 1], [4, 4, 2], [4, 5, 3]])
    assert token_words(spans, np.arange(6)).tolist() == [[0, 3, 1], [4, 5, 5]]


def test_words_in_the_graph_are_those_of_the_tokenizer(tokenizer):
    texts = [*TEXTS, "[MASK]great films, not [UNK]", " the\u200d \u200b film", "電影"]
    features, words = tf.function(TextTokenizer(tokenizer).with_words)(tf.constant(texts))
    ids, spans, *_ = tokenizer.encode_words(texts)
    for number, (row, span) in enumerate(zip(ids, spans, strict=True)):
        assert features["token_ids"][number, : len(row)].numpy().tolist() == row.tolist()
        for name, expected in _words(span).items():
            found = words[name][number].numpy()
            assert found[: len(row)].tolist() == expected[0].numpy().tolist(), (name, texts[number])
            assert not found[len(row) :].any()


def test_added_tokens_of_normalized_texts_are_refused():
    vocabulary = {word: i for i, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "Ab"))}
    backend = BertWordPieceTokenizer(vocabulary)
    backend.add_tokens(["Ab"])
    tokenizer = ke.data.as_tokenizer(backend)
    with pytest.raises(InputError, match="before the text is normalized"):
        text_function(lambda **_: {}, tokenizer, task=TASK)


# --- scores ---------------------------------------------------------------------------------------


def random_tags(seed):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 5, (40, 9))
    others = random.integers(0, 5, (40, 9))
    predictions = np.where(random.random((40, 9)) < 0.6, labels, others)
    counted = random.random((40, 9)) < 0.7
    counted[:, 4] = True
    return np.where(counted, labels, -100), predictions


def test_scores_are_those_of_seqeval():
    seqeval = pytest.importorskip("seqeval.metrics")
    labels, predictions = random_tags(0)
    report = ke.metrics.entity_report(labels, predictions, NAMES)
    truth = [[NAMES[a] for a in row if a >= 0] for row in labels]
    pairs = [zip(a, b, strict=True) for a, b in zip(labels, predictions, strict=True)]
    found = [[NAMES[b] for a, b in row if a >= 0] for row in pairs]
    assert report.entity_f1 == pytest.approx(seqeval.f1_score(truth, found))
    assert report.precision == pytest.approx(seqeval.precision_score(truth, found))
    assert report.recall == pytest.approx(seqeval.recall_score(truth, found))
    assert report.token_accuracy == pytest.approx(seqeval.accuracy_score(truth, found))
    per_type = seqeval.classification_report(truth, found, output_dict=True)
    for entry in report.classes:
        expected = per_type[entry["label"]]
        assert entry["f1"] == pytest.approx(expected["f1-score"])
        assert entry["examples"] == expected["support"]
    low, high = report.interval
    assert low < report.entity_f1 < high
    assert report.words == (labels >= 0).sum() and "No-entity baseline" in str(report)


@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_the_metric_counts_as_the_report_does(library):
    labels, predictions = random_tags(1)
    metric = ke.metrics.entity_f1(5, library=library)
    for part in (slice(0, 25), slice(25, 40)):
        metric.update_state(labels[part], tf.one_hot(predictions[part], 5))
    expected = ke.metrics.entity_report(labels, predictions, NAMES).entity_f1
    assert float(metric.result()) == pytest.approx(expected, abs=1e-6)
    metric.reset_state()
    assert float(metric.result()) == 0
    # Texts that are left out by their weight.
    weights = np.arange(40) < 25
    metric.update_state(labels, tf.one_hot(predictions, 5), sample_weight=weights)
    expected = ke.metrics.entity_report(labels, predictions, NAMES, sample_weight=weights * 1.0)
    assert float(metric.result()) == pytest.approx(expected.entity_f1, abs=1e-6)


def test_reports_that_mislead_or_cannot_be_made():
    report = ke.metrics.entity_report([[1, 0]], [[0, 0]], NAMES)
    assert report.score == 0 and report.baseline_token_accuracy == 0.5
    assert "Never predicted: 'person'" in report.warnings[0] and "No entity" in report.warnings[1]
    for labels, predictions, message in (
        ([[1, 0]], [[0]], "a class for each token"),
        ([[-100]], [[0]], "some must count"),
        ([[7]], [[0]], "indices into the 5 names"),
    ):
        with pytest.raises(InputError, match=message):
            ke.metrics.entity_report(labels, predictions, NAMES)


# --- served answers -------------------------------------------------------------------------------


def test_entities_are_decoded_from_what_is_served(tokenizer):
    """A model that tags "film" and "plot" by their ids, in the signature of strings."""
    words = json.loads(tokenizer.serialized)["model"]["vocab"]

    def tokens(token_ids, **_):
        film, great = (tf.cast(token_ids == words[word], tf.float32) for word in ("film", "great"))
        rest = 0.5 * tf.ones_like(film)
        return {"logits": 9 * tf.stack([rest, great, film, 0 * film, 0 * film], -1)}

    serve = text_function(tokens, tokenizer, NAMES, task=TASK)
    texts = ["Great films, film!", "not bad"]
    served = {name: value.numpy() for name, value in serve(tf.constant(texts)).items()}
    assert set(TASK.serves) | {"logits"} == set(served)
    plain = {name: served[name].tolist() for name in TASK.serves}
    plain["tags"] = served["tags"].astype(str).tolist()
    found = TASK.decode({**plain, "text": texts}, NAMES)
    first, second = found[0]["entities"]
    assert (first["text"], first["type"]) == ("Great films", "person")
    assert (first["start"], first["end"]) == (0, 11) and 0.9 < first["score"] <= 1
    assert (second["text"], second["start"]) == ("film", 13) and found[1] == {"entities": []}
    plain["ends"][0][1] = 99
    with pytest.raises(ValueError, match="characters of the text"):
        TASK.decode({**plain, "text": texts}, NAMES)
    with pytest.raises(InputError, match="must name each class"):
        text_function(tokens, tokenizer, ["a"], task=TASK)(tf.constant(texts))
