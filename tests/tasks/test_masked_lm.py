"""Masked language modelling: heads in, encoders and words out."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from bert_folder import HIDDEN, VOCABULARY, arrays, write
from covering import sampled
from task_models import losses

import keras_efficient as ke
from keras_efficient._errors import InputError
from keras_efficient.exporters.tokenizer_ops.text_tokenizer import text_function

TASK = ke.tasks.get("masked_lm")
LIBRARIES = ("keras", "tf_keras")
TEXTS = [
    "the film",
    "a good plot with actors and a great film was not very bad",
    "bad actors",
    "very very good and bad and bad and good and the film was with a plot",
    "the actors",
    "a plot and a film and the plot",
    "great films",
    "goodly films and plots was not good",
]
RECORDS = ke.data.Records.of(TEXTS)


def checkpoint(prefix="bert."):
    """A checkpoint with the head of BERT's pretraining."""
    random = np.random.default_rng(3)
    tensors = {f"{prefix}{name}": array for name, array in arrays().items()}
    head = {
        "transform.dense.weight": (HIDDEN, HIDDEN),
        "transform.dense.bias": (HIDDEN,),
        "transform.LayerNorm.weight": (HIDDEN,),
        "transform.LayerNorm.bias": (HIDDEN,),
        "bias": (len(VOCABULARY),),
    }
    for name, shape in head.items():
        tensors[f"cls.predictions.{name}"] = random.normal(0.2, 0.5, shape).astype("float32")
    return tensors


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("bert") / "model", tensors=checkpoint())


@functools.cache
def loaded(folder, library):
    return ke.models.load(folder, task=TASK, library=library)


def logits(model, features):
    outputs = model(features)
    return np.asarray(getattr(outputs, "logits", outputs))


def batch(tokenizer, **options):
    options = {"batch_size": 8, "max_length": 32, "shuffle": False} | options
    (found,) = TASK.batches(RECORDS, tokenizer, training=False, **options)
    return found


# --- model ----------------------------------------------------------------------------------------


def test_both_libraries_read_the_head_of_a_checkpoint(folder, recwarn):
    found = {}
    for library in LIBRARIES:
        model, tokenizer = loaded(folder, library)
        features, labels = batch(tokenizer)
        found[library] = logits(model, features)
        assert found[library].shape == (*labels.shape, len(VOCABULARY))
    np.testing.assert_allclose(found["keras"], found["tf_keras"], atol=1e-4)
    assert not [w for w in recwarn if "starts from new weights" in str(w.message)]
    # The head in NumPy, on the hidden states of the masked positions.
    model, tokenizer = loaded(folder, "tf_keras")
    features, _ = batch(tokenizer)
    inputs = {name: x for name, x in features.items() if name != "mask_positions"}
    hidden = model.bert(inputs)[0].numpy()
    x = np.take_along_axis(hidden, features["mask_positions"].numpy()[..., None], 1)
    own = {k.removeprefix("cls.predictions."): v for k, v in checkpoint().items() if "cls." in k}
    x = x @ own["transform.dense.weight"].T + own["transform.dense.bias"]
    x = tf.nn.gelu(x).numpy()
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
    x = x * own["transform.LayerNorm.weight"] + own["transform.LayerNorm.bias"]
    table = checkpoint()["bert.embeddings.word_embeddings.weight"]
    np.testing.assert_allclose(found["keras"], x @ table.T + own["bias"], atol=1e-4)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_trained_encoder_starts_another_task(library, folder, tmp_path):
    model, tokenizer = loaded(folder, library)
    ke.models.save(model, tokenizer, tmp_path / "adapted", task=TASK)
    same, others = ke.models.load(tmp_path / "adapted")
    features, _ = batch(others)
    np.testing.assert_array_equal(logits(same, features), logits(model, features))
    start, names = ke.models.load(tmp_path / "adapted", task="classification", num_labels=3)
    assert "mask_positions" not in names.inputs and start.get_weights()[-1].shape == (3,)
    pretrained, _ = ke.models.load(folder, num_labels=3, library=library)
    missing = 2 * (library == "tf_keras")  # The pooler, which TFBertForMaskedLM has not.
    expected = {(*w.shape, w.sum()) for w in pretrained.get_weights()}
    found = {(*w.shape, w.sum()) for w in start.get_weights()}
    assert len(expected - found) <= missing
    finder, names = ke.models.load(tmp_path / "adapted", task="question_answering")
    ids = np.array([names.encode(["film"])[0]])
    features = {name: np.ones_like(ids) for name in names.inputs.values()}
    features[names.inputs["ids"]] = ids
    assert logits(finder, features).shape == (1, 2, ids.shape[1])
    with pytest.raises(InputError, match="keeps its task"):
        trained = tmp_path / "classifier"
        ke.models.save(start, names, trained)
        ke.models.load(trained, task=TASK)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_checkpoint_without_a_head(library, tmp_path):
    plain = write(tmp_path / "plain")
    with pytest.warns(UserWarning, match="starts from new weights"):
        model, tokenizer = ke.models.load(plain, task=TASK, library=library, seed=4)
    features, _ = batch(tokenizer)
    other, _ = ke.models.load(plain, task=TASK, library=library, seed=4)
    np.testing.assert_array_equal(logits(model, features), logits(other, features))


# --- report and answers ---------------------------------------------------------------------------


@sampled()
@pytest.mark.parametrize("library", LIBRARIES)
def test_an_evaluation_is_of_the_tokens_that_count(library, folder):
    model, tokenizer = loaded(folder, library)
    features, labels = batch(tokenizer)
    values, counts = losses("masked_lm", labels, logits(model, features))
    report = TASK.evaluate(model, [(features, labels)])
    assert report.tokens == int(np.sum(counts)) < counts.shape.num_elements()
    assert report.loss == pytest.approx(np.sum(values * counts) / report.tokens, rel=1e-5)


def test_the_report_is_that_of_the_softmax():
    random = np.random.default_rng(0)
    scores = random.normal(size=(30, 4, 50)).astype("float32")
    labels = np.where(random.random((30, 4)) < 0.7, random.integers(0, 50, (30, 4)), -100)
    found = TASK.scores({"logits": scores}, labels)
    weights = random.uniform(0, 2, 30)
    report = TASK.report(labels, found, sample_weight=weights)
    z = scores.astype("float64")
    z -= np.log(np.exp(z).sum(-1, keepdims=True))
    own = np.take_along_axis(z, np.maximum(labels, 0)[..., None], -1)[..., 0]
    counted = weights[:, None] * (labels >= 0)
    assert report.loss == pytest.approx(-(counted * own).sum() / counted.sum(), rel=1e-5)
    low, high = report.perplexity_interval
    assert low < report.perplexity < high
    assert report.perplexity == pytest.approx(np.exp(report.loss))
    assert report.score == -report.loss and report.tokens == (labels >= 0).sum()
    right = (scores.argmax(-1) == labels) * counted
    assert report.accuracy == pytest.approx(right.sum() / counted.sum())
    assert "not below that of the frequencies" in report.warnings[0]
    assert set(report.measures()) == {"perplexity", "loss", "accuracy"}
    assert "Unigram baseline" in str(report)
    for library in LIBRARIES:
        metric = ke.metrics.perplexity(library=library)
        metric.update_state(labels[:20], scores[:20], sample_weight=weights[:20])
        metric.update_state(labels[20:], scores[20:], sample_weight=weights[20:])
        assert float(metric.result()) == pytest.approx(report.perplexity, rel=1e-4)


def test_the_baseline_is_the_entropy_of_the_distribution():
    random = np.random.default_rng(0)
    shares = 1 / np.arange(1, 2001)
    shares /= shares.sum()
    entropy = -(shares * np.log(shares)).sum()
    for size, tolerance in ((300, 0.4), (5000, 0.1)):
        labels = random.choice(2000, (size, 1), p=shares)
        report = ke.metrics.language_model_report(labels, np.zeros(labels.shape))
        assert np.log(report.baseline_perplexity) == pytest.approx(entropy, abs=tolerance)


def test_answers_for_mask_tokens(folder):
    model, tokenizer = loaded(folder, "keras")
    serve = text_function(lambda **features: {"logits": model(features)}, tokenizer, task=TASK)
    texts = ["the [MASK] was [MASK] .", "bad", "[MASK]"]
    served = {name: value.numpy() for name, value in serve(tf.constant(texts)).items()}
    assert served["words"].shape == served["probabilities"].shape == (3, 2, 5)
    ids = tokenizer.encode(texts[:1])[0][None]
    features = {
        "token_ids": ids,
        "padding_mask": np.ones_like(ids),
        "segment_ids": np.zeros_like(ids),
        "mask_positions": np.array([[2, 4]], "int32"),
    }
    expected = tf.nn.softmax(model(features)).numpy()[0]
    found = TASK.decode(
        {
            "words": served["words"].astype(str).tolist(),
            "probabilities": served["probabilities"].tolist(),
            "text": texts,
        },
        None,
    )
    assert [len(row["masked"]) for row in found] == [2, 0, 1]
    for place in (0, 1):
        best = found[0]["masked"][place]
        order = np.argsort(-expected[place])[:5]
        assert [word["word"] for word in best] == [VOCABULARY[i] for i in order]
        shares = [word["probability"] for word in best]
        np.testing.assert_allclose(shares, expected[place][order], atol=1e-5)
    with pytest.raises(ValueError, match="not a probability"):
        TASK.decode({"words": [[["a"]]], "probabilities": [[[float("nan")]]]}, None)


def test_arguments_and_data_that_cannot_be_used(tmp_path):
    with pytest.raises(InputError, match="learns from single texts"):
        ke.tasks.get("masked_lm", texts=2)
    with pytest.raises(InputError, match="has no classes"):
        TASK.head_size(3)
    with pytest.raises(InputError, match="are the tokens of its tokenizer"):
        TASK.label_names(["a"], 3)
    with pytest.raises(InputError, match="compares an id for each token"):
        TASK.batch_labels(np.array([1.0]), "evaluate")
    with pytest.raises(InputError, match="compared with the id of each token"):
        TASK.scores({"logits": np.zeros((2, 3, 4))}, np.zeros((2, 2)))
    with pytest.raises(InputError, match="the label of each token"):
        ke.metrics.language_model_report([[-100]], [[0.0]])
    with pytest.raises(InputError, match="texts to train on"):
        TASK.check(ke.data.Records(()))
    (tmp_path / "a.csv").write_text("body,other\na film,1\n")
    found = TASK.read(tmp_path / "a.csv", text_column="body", label_column="other")
    assert found.texts == ("a film",) and found.labels is None
    assert TASK.encode([1], None, str) == (None, ())
    assert TASK.describe(found, found)[0] == "6 characters to train on, without labels"


@pytest.mark.parametrize("family", ["Roberta", "DistilBert"])
def test_heads_of_other_families_read_masked_positions(family):
    transformers = pytest.importorskip("transformers")
    from keras_efficient.models._hugging_face_masked_lm import at_mask_positions, head_variables

    sizes = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    if family == "DistilBert":
        sizes = {"vocab_size": 30, "dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 16}
    config = getattr(transformers, f"{family}Config")(**sizes)
    model = at_mask_positions(getattr(transformers, f"TF{family}ForMaskedLM"))(config)
    ids, where = tf.constant([[3, 4, 5, 6], [7, 8, 9, 2]]), tf.constant([[1, 2], [3, 0]])
    inputs = {"input_ids": ids, "attention_mask": tf.ones_like(ids)}
    every = model(inputs).logits
    found = model(inputs | {"mask_positions": where}).logits
    np.testing.assert_allclose(found, tf.gather(every, where, batch_dims=1), atol=1e-6)
    shapes = [tuple(variable.shape) for variable in head_variables(model)]
    assert shapes == [(8, 8), (8,), (8,), (8,), (30,)]


def test_models_without_a_head_or_a_table():
    from types import SimpleNamespace

    from keras_efficient.models._hugging_face_masked_lm import head_variables
    from keras_efficient.models._masked_language_model import MaskedLanguageModel

    with pytest.raises(InputError, match="knows the heads of BERT"):
        head_variables(SimpleNamespace())
    with pytest.raises(InputError, match="needs a table of tokens"):
        MaskedLanguageModel(SimpleNamespace())
