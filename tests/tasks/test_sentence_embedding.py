"""Sentence embeddings: pooling, pairs of texts, training, reports, files and exports."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from bert_folder import write
from covering import sampled
from in_process_export import in_process  # noqa: F401
from scipy.stats import pearsonr, spearmanr
from zoo import keras_of

import keras_efficient as ke
from keras_efficient import flavor as flavors
from keras_efficient._errors import InputError
from keras_efficient.models._mean_pooling import mean_pooled

LIBRARIES = ("keras", "tf_keras")
libraries = pytest.mark.parametrize("library", LIBRARIES)
TASK, PAIRS = (ke.tasks.get("sentence_embedding", texts=texts) for texts in (1, 2))
FIRSTS = ["the film", "a good plot with actors", "bad actors", "very good and bad", "a plot"]
SECONDS = ["a great film was not very bad", "the plot", "films", "the actors and a plot", "films"]
RECORDS = ke.data.Records.of(FIRSTS, second_texts=SECONDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("bert") / "model")


@functools.cache
def loaded(folder, library):
    return ke.models.load(folder, task=TASK, library=library)


def fresh(folder, library):
    """A model of its own, compiled."""
    model, tokenizer = ke.models.load(folder, task=TASK, library=library)
    model.compile(keras_of(library).optimizers.SGD(0.1), jit_compile=False)
    return model, tokenizer


def embed(model, features):
    outputs = model(features)
    return np.asarray(getattr(outputs, "logits", outputs))


def pairs(tokenizer, records=RECORDS, **options):
    options = {"batch_size": 5, "max_length": 16, "shuffle": False} | options
    return PAIRS.batches(records, tokenizer, **options)


# --- model and batches ----------------------------------------------------------------------------


def test_the_mean_of_real_tokens_has_unit_length():
    hidden = np.random.default_rng(0).normal(size=(3, 4, 5)).astype("float32")
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    mean = [hidden[0, :2].mean(0), hidden[1].mean(0)]
    expected = [v / np.linalg.norm(v) for v in mean]
    # Padding may hold anything.
    hidden[mask == 0] = np.nan
    found = mean_pooled(hidden, mask).numpy()
    np.testing.assert_allclose(found[:2], expected, rtol=1e-5)
    np.testing.assert_array_equal(found[2], np.zeros(5))
    assert mean_pooled(tf.constant(hidden, tf.float16), mask).dtype == tf.float32


def test_both_libraries_make_the_same_embeddings(folder):
    import transformers

    found = {}
    for library in LIBRARIES:
        model, tokenizer = loaded(folder, library)
        (features,) = TASK.batches(FIRSTS, tokenizer, batch_size=5, max_length=16, shuffle=False)
        found[library] = embed(model, features)
    np.testing.assert_allclose(found["keras"], found["tf_keras"], atol=1e-4)
    # Of the encoder's hidden states.
    encoder = transformers.TFBertModel(model.config)
    encoder(encoder.dummy_inputs)
    encoder.set_weights(model.get_weights())
    hidden, mask = encoder(features).last_hidden_state, features["attention_mask"].numpy()
    mean = (hidden * mask[..., None]).numpy().sum(1) / mask.sum(1, keepdims=True)
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(found["tf_keras"], expected, atol=1e-5)


def test_the_texts_of_a_pair_are_inputs_of_their_own(folder):
    _, tokenizer = loaded(folder, "keras")
    labelled = ke.data.Records.of(FIRSTS, [1, 0, 1, 0, 1], second_texts=SECONDS)
    seen = {}
    for features, labels in pairs(tokenizer, labelled, batch_size=2, shuffle=True, max_length=8):
        ids, mask = (features[name].numpy() for name in ("token_ids", "padding_mask"))
        assert ids.shape == (len(labels), 2, ids.shape[2])
        assert (features["segment_ids"].numpy() == 0).all()
        for row, real, label in zip(ids, mask, labels.numpy(), strict=True):
            assert (row[real == 0] == tokenizer.pad_id).all()
            seen[tuple(tuple(r[m > 0]) for r, m in zip(row, real, strict=True))] = label
    first, second = (tokenizer.encode(texts, 8) for texts in (FIRSTS, SECONDS))
    texts = [tuple(map(tuple, pair)) for pair in zip(first, second, strict=True)]
    assert seen == dict(zip(texts, [1, 0, 1, 0, 1], strict=True))
    assert any(len(a) != len(b) for a, b in texts)


def test_what_does_not_go_with_separate_texts(folder):
    _, tokenizer = loaded(folder, "keras")
    with pytest.raises(InputError, match=r"is for pairs of texts, with a label .* Received: "):
        ke.data.text(FIRSTS, tokenizer, batch_size=2, separate=True)
    for options in ({"tokens_per_batch": 64}, {"batch_size": 2, "next_token": True}):
        with pytest.raises(InputError, match=r"Separate texts go with `batch_size`, without"):
            ke.data.text(RECORDS, tokenizer, separate=True, **options)


def test_tokens_on_a_disk_are_not_separate(folder, tmp_path):
    _, tokenizer = loaded(folder, "keras")
    rows = [{"text": text} for text in FIRSTS]
    stored = ke.data.tokenize_to_disk(
        rows, tokenizer, tmp_path / "tokens", label_column=None, max_length=16
    )
    with pytest.raises(InputError, match=r"pairs of texts in memory. Received: texts on a disk"):
        ke.data.text(stored, tokenizer, batch_size=2, separate=True)


# --- training -------------------------------------------------------------------------------------


@sampled()
@libraries
def test_microbatches_without_padding_are_one_batch_of_pairs(folder, library):
    weights, losses = [], []
    for change in (None, ke.unpad):
        model, tokenizer = fresh(folder, library)
        ke.contrastive(model)
        if change is not None:
            change(model)
            ke.accumulate(model, microbatch_size=2)
        losses.append(model.fit(pairs(tokenizer), verbose=0, epochs=2, shuffle=False).history)
        weights.append(model.get_weights())
    np.testing.assert_allclose(losses[0]["loss"], losses[1]["loss"], rtol=1e-4)
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert losses[0]["loss"][1] < losses[0]["loss"][0]


@sampled()
@libraries
def test_the_loss_is_that_of_the_embeddings(folder, library):
    model, tokenizer = fresh(folder, library)
    (features,) = pairs(tokenizer)
    rows = {name: tf.reshape(value, [10, -1]) for name, value in features.items()}
    z = embed(model, rows).reshape(5, 2, -1)
    expected = np.mean(ke.losses.multiple_negatives(z[:, 0], z[:, 1]))
    ke.accumulate(ke.contrastive(model), 3)
    found = model.fit(pairs(tokenizer), verbose=0, shuffle=False).history["loss"]
    np.testing.assert_allclose(found, [expected], rtol=1e-4)


@sampled()
@libraries
def test_low_rank_adapters_learn_by_simcse(folder, library):
    model, tokenizer = fresh(folder, library)
    ke.lora(model, rank=2)
    before = [flavors.of(model).value(v).numpy() for v in model.non_trainable_variables]
    data = TASK.batches(FIRSTS, tokenizer, batch_size=5, max_length=16, shuffle=False)
    ke.accumulate(ke.contrastive(model, "simcse", temperature=0.5), microbatch_size=2)
    model.fit(data, verbose=0, epochs=2, shuffle=False)
    after = [flavors.of(model).value(v).numpy() for v in model.non_trainable_variables]
    floats = [(a, b) for a, b in zip(before, after, strict=True) if a.dtype.kind == "f"]
    assert floats and all(np.array_equal(a, b) for a, b in floats)


# --- files and exports ----------------------------------------------------------------------------


@sampled()
@libraries
def test_a_trained_encoder_is_saved_and_starts_another_task(folder, library, tmp_path):
    model, tokenizer = fresh(folder, library)
    ke.contrastive(model)
    model.fit(pairs(tokenizer), verbose=0, shuffle=False)
    (features,) = TASK.batches(FIRSTS, tokenizer, batch_size=5, max_length=16, shuffle=False)
    ke.models.save(model, tokenizer, tmp_path / "trained", task=TASK)
    again, _ = ke.models.load(tmp_path / "trained")
    np.testing.assert_allclose(embed(again, features), embed(model, features), atol=1e-6)
    other, _ = ke.models.load(tmp_path / "trained", task="classification", num_labels=3)
    assert embed(other, features).shape == (5, 3)


@sampled()
@libraries
def test_the_signature_of_strings_answers_with_embeddings(folder, library, tmp_path, in_process):  # noqa: F811
    model, tokenizer = loaded(folder, library)
    (features,) = TASK.batches(FIRSTS, tokenizer, batch_size=5, max_length=16, shuffle=False)
    report = ke.export(model, tmp_path / "export", sample=features, tokenizer=tokenizer, task=TASK)
    served = tf.saved_model.load(str(report.directory)).signatures["text"]
    answers = served(text=tf.constant(FIRSTS))
    np.testing.assert_allclose(answers["embedding"], embed(model, features), atol=1e-4)


# --- evaluation -----------------------------------------------------------------------------------


def test_scores_are_compared_by_ranks():
    random = np.random.default_rng(0)
    z, scores = random.normal(size=(40, 2, 3)), random.normal(size=40)
    norms = np.linalg.norm(z, axis=-1)
    cosine = np.sum(z[:, 0] * z[:, 1], -1) / norms[:, 0] / norms[:, 1]
    report = ke.metrics.embedding_report(z, scores)
    assert report.spearman == pytest.approx(spearmanr(scores, cosine).statistic, abs=1e-9)
    assert report.pearson == pytest.approx(pearsonr(scores, cosine).statistic, abs=1e-9)
    assert report.score == report.spearman and report.interval[0] < 0 < report.interval[1]
    assert report.warnings == ("The embeddings are not clearly better than chance on these pairs.",)
    perfect = ke.metrics.embedding_report(z, cosine**3)
    assert perfect.spearman == pytest.approx(1) and not perfect.warnings
    assert "Spearman: 1.0000" in str(perfect)


def test_recall_counts_each_second_text_once():
    angles = np.radians([[0, 2], [90, 45], [44, 100], [180, 2]])
    z = np.stack([np.cos(angles), np.sin(angles)], -1)
    # Ranks: 1; 100° is nearer to 90° than 45°; 100° is the last one of 44°; 2° is far from 180°.
    report = ke.metrics.embedding_report(z)
    assert report.candidates == 3
    assert report.recall == {1: 0.25, 5: 1.0, 10: 1.0}
    assert report.mrr == pytest.approx(np.mean([1, 1 / 2, 1 / 3, 1 / 3]))
    assert report.measures()["recall_at_1"] == 0.25
    assert ke.metrics.embedding_report(z, keys=[0, 1, 2, 3]).candidates == 4
    # Equally similar texts are no answer.
    assert ke.metrics.embedding_report(np.ones((4, 2, 3)), keys=range(4)).recall[1] == 0.0


@sampled()
@libraries
def test_evaluation_does_not_depend_on_batches(folder, library):
    model, tokenizer = loaded(folder, library)
    reports = [PAIRS.evaluate(model, pairs(tokenizer, batch_size=n)) for n in (5, 2)]
    assert reports[0] == reports[1] and reports[0].candidates == 4
    scored = ke.data.Records.of(
        FIRSTS, [1.0, 0.0, 2.5, 0.5, 1.5], second_texts=SECONDS, encode=PAIRS.encode
    )
    report = PAIRS.evaluate(model, pairs(tokenizer, scored))
    assert report.scored and report.examples == 5 and report.recall == {}


def test_reports_need_pairs(folder):
    with pytest.raises(InputError, match=r"two embeddings for each of two or more pairs"):
        ke.metrics.embedding_report(np.ones((3, 4)))
    with pytest.raises(InputError, match=r"scores of shape \(2,\)"):
        ke.metrics.embedding_report(np.ones((3, 2, 4)), [1.0, 2.0])
    with pytest.raises(InputError, match=r"must be finite. Received: NaN"):
        ke.metrics.embedding_report(np.full((3, 2, 4), np.nan))
    model, tokenizer = loaded(folder, "keras")
    single = TASK.batches(FIRSTS, tokenizer, batch_size=5, max_length=16)
    with pytest.raises(InputError, match=r"evaluated on pairs of texts, features \[batch, 2"):
        TASK.evaluate(model, single)


# --- task -----------------------------------------------------------------------------------------


def test_data_with_columns_and_labels(tmp_path):
    (tmp_path / "a.csv").write_text("first,second,score\na film,films,2.5\nbad,good,0\n")
    columns = {"text_column": ("first", "second")}
    found = PAIRS.read(tmp_path / "a.csv", **columns)
    assert found.labels is None and found.second_texts == ("films", "good")
    assert PAIRS.read(tmp_path / "a.csv", label_column="score", **columns).labels.tolist() == [
        2.5,
        0,
    ]
    PAIRS.check(found)
    with pytest.raises(InputError, match=r"two or more examples of 1 texts.* Received: 2 of 2"):
        TASK.check(found)
    assert PAIRS.describe(found, found)[1] == "chance finds 1 of 2 texts"


def test_arguments_are_refused():
    with pytest.raises(
        InputError, match=r"Embeddings have the width of the model. Received: num_l"
    ):
        TASK.head_size(3)
    with pytest.raises(InputError, match=r"numbers of an embedding have no names. Received: 1"):
        TASK.label_names(["a"], 8)
    assert TASK.inputs == PAIRS.inputs == ("text",) and TASK.loss(None) is None
    assert TASK.decode({"embedding": [[0.5, 1]]}, None) == [{"embedding": [0.5, 1.0]}]
    with pytest.raises(ValueError, match=r"not finite numbers"):
        TASK.decode({"embedding": [[float("nan")]]}, None)


def test_the_command_line_does_not_train_it():
    from keras_efficient.cli._finetune import Settings

    with pytest.raises(InputError, match=r"`finetune` trains by a loss of single examples"):
        Settings.definition.fget(type("Given", (), {"text_column": "text", "task": TASK.name})())
