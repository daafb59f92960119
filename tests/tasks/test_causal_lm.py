"""Causal language modelling: the next token as label, prompts left out, models of both kinds."""

import functools
import json

import numpy as np
import pytest
import tensorflow as tf
from covering import sampled
from task_models import losses

import keras_efficient as ke
from keras_efficient._errors import InputError

TASK = ke.tasks.get("causal_lm")
LIBRARIES = ("keras", "tf_keras")
TEXTS = [
    "the film",
    "a good plot with actors and a great film was not bad",
    "bad",
    "very good and bad and bad and good",
    "the actors",
    "a plot and a film and the plot",
]
RECORDS = ke.data.Records.of(TEXTS)
WIDTH, LAYERS = 16, 2


@functools.cache
def trained_tokenizer():
    return ke.data.train_tokenizer(TEXTS, vocabulary_size=290, max_length=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Hugging Face folder of a tiny GPT-2, with PyTorch's names and layout."""
    from safetensors.numpy import save_file

    path, random = tmp_path_factory.mktemp("gpt2"), np.random.default_rng(0)

    def normal(*shape):
        return random.normal(0, 0.3, shape).astype("float32")

    tokenizer = trained_tokenizer()
    tensors = {
        "wte.weight": normal(tokenizer.largest_id + 1, WIDTH),
        "wpe.weight": normal(32, WIDTH),
    }
    norms, products = ["ln_f"], {}
    for i in range(LAYERS):
        norms += [f"h.{i}.ln_1", f"h.{i}.ln_2"]
        products |= {
            f"h.{i}.attn.c_attn": (WIDTH, 3 * WIDTH),
            f"h.{i}.attn.c_proj": (WIDTH, WIDTH),
            f"h.{i}.mlp.c_fc": (WIDTH, 4 * WIDTH),
            f"h.{i}.mlp.c_proj": (4 * WIDTH, WIDTH),
        }
    for name in norms:
        tensors |= {f"{name}.weight": 1 + normal(WIDTH), f"{name}.bias": normal(WIDTH)}
    for name, shape in products.items():
        tensors |= {f"{name}.weight": normal(*shape), f"{name}.bias": normal(shape[1])}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_head": 2}
    config |= {"vocab_size": len(tensors["wte.weight"]), "n_positions": 32, "n_embd": WIDTH}
    config |= {"n_layer": LAYERS, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_text(tokenizer.serialized)
    return path


@functools.cache
def loaded(folder, library):
    return ke.models.load(folder, task=TASK, library=library)


def logits(model, features):
    outputs = model(features)
    return np.asarray(getattr(outputs, "logits", outputs))


def batch(tokenizer, records=RECORDS, task=TASK, **options):
    options = {"batch_size": len(records), "max_length": 32, "shuffle": False} | options
    (found,) = task.batches(records, tokenizer, **options)
    return found


# --- data -----------------------------------------------------------------------------------------


def test_the_next_token_is_the_label(tmp_path):
    tokenizer = trained_tokenizer()
    end = tokenizer.end_id
    features, labels = batch(tokenizer)
    ids, mask = features["input_ids"].numpy(), features["attention_mask"].numpy()
    for row, kept, wanted, text in zip(ids, mask, labels.numpy(), TEXTS, strict=True):
        own = tokenizer.encode_without_special([text])[0].tolist()
        assert row[kept > 0].tolist() == [end, *own]
        assert wanted[kept > 0].tolist() == [*own, end] and (wanted[kept == 0] == -100).all()
    # Of a text that is truncated the end is not learned.
    features, labels = batch(tokenizer, max_length=5)
    assert features["attention_mask"].numpy().sum(1).max() == 4
    assert end not in labels[1].numpy() and end in labels[2].numpy()
    rows = ({"text": text} for text in TEXTS)
    texts = TASK.tokenize_to_disk(rows, tokenizer, tmp_path, max_length=5)
    TASK.check(texts)
    assert len(texts) == len(TEXTS) and "next tokens" in repr(texts)
    options = {"batch_size": 2, "max_length": 5}
    stats = [TASK.batches(found, tokenizer, **options).stats for found in (texts, RECORDS)]
    assert stats[0] == stats[1]
    for a, b in zip(
        tf.nest.flatten(batch(tokenizer, texts, max_length=5)),
        tf.nest.flatten((features, labels)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(InputError, match="Texts must be tokenized for the task"):
        ke.data.text(texts, tokenizer, batch_size=1)
    assert tokenizer.decode([[end, *own, end]]) == [TEXTS[-1]]


def test_prompts_are_read_and_only_completions_count(tmp_path):
    tokenizer, task = trained_tokenizer(), ke.tasks.get("causal_lm", texts=2)
    rows = [
        {"prompt": "a good", "completion": " film"},
        {"prompt": "the", "completion": " plot was"},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    records = task.read(tmp_path / "a.jsonl", text_column=("prompt", "completion"))
    task.check(records)
    features, labels = batch(tokenizer, records, task)
    for row, ids, wanted in zip(rows, features["input_ids"].numpy(), labels.numpy(), strict=True):
        prompt, completion = tokenizer.encode_without_special([row["prompt"], row["completion"]])
        first = len(prompt)
        assert (wanted[:first] == -100).all() and ids[1 : first + 1].tolist() == prompt.tolist()
        length = len(completion) + 1
        assert wanted[first : first + length].tolist() == [*completion, tokenizer.end_id]
    with pytest.raises(InputError, match="of whose completion 3 tokens leave none"):
        batch(tokenizer, records, task, max_length=3)
    # The same from a disk.
    options = {"text_column": ("prompt", "completion"), "max_length": 32}
    texts = task.tokenize_to_disk(tmp_path / "a.jsonl", tokenizer, tmp_path / "tokens", **options)
    task.check(texts)
    assert "tokens to train on" in task.describe(texts, records)[0]
    found = batch(tokenizer, texts, task)
    for a, b in zip(tf.nest.flatten(found), tf.nest.flatten((features, labels)), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(InputError, match="Prompts have completions"):
        TASK.check(records)
    with pytest.raises(InputError, match="Prompts have completions"):
        task.check(RECORDS)


def test_data_and_tokenizers_that_cannot_be_used(tmp_path):
    tokenizer = trained_tokenizer()
    function = ke.data.Tokenizer(lambda texts, n: [[1]] * len(texts), inputs=ke.data.KERASHUB)
    for method in (function.encode_without_special, function.decode):
        with pytest.raises(InputError, match=r"tokenizers\.Tokenizer"):
            method(["a"])
    options = {"batch_size": 1, "next_token": True, "max_length": 32}
    with pytest.raises(InputError, match="tokens for the start and the end"):
        ke.data.text(["a"], function, **options)
    with pytest.raises(InputError, match="next tokens are labels or masked ones"):
        ke.data.text(["a"], tokenizer, masking=ke.data.Masking(), **options)
    with pytest.raises(InputError, match="at least one text"):
        ke.data.text(ke.data.Records(()), tokenizer, **options)
    with pytest.raises(InputError, match="is trained on texts"):
        ke.data.train_tokenizer([])
    with pytest.raises(InputError, match="`vocabulary_size` must be an int of 257"):
        ke.data.train_tokenizer(["a"], vocabulary_size=100)
    with pytest.raises(InputError, match="`kind` must be"):
        ke.data.train_tokenizer(["a"], kind="letters")
    with pytest.raises(InputError, match="must be positive ints"):
        ke.models.create(tokenizer, hidden_dim=10, num_heads=3)
    with pytest.raises(InputError, match="`library` must be one of"):
        ke.models.create(tokenizer, library="torch")
    with pytest.raises(InputError, match="whose number of tokens is known"):
        ke.models.create(function)


# --- models ---------------------------------------------------------------------------------------


def test_both_libraries_load_gpt2(folder):
    found = []
    for library in LIBRARIES:
        model, tokenizer = loaded(folder, library)
        assert "segments" not in tokenizer.inputs
        features, labels = batch(tokenizer)
        found.append(logits(model, features)[labels.numpy() >= 0])
    np.testing.assert_allclose(*found, atol=1e-4)
    assert np.abs(found[0]).max() > 1


@pytest.mark.parametrize("library", LIBRARIES)
def test_models_from_scratch_are_saved_and_restored(library, tmp_path):
    sizes = {"num_layers": 1, "hidden_dim": 8, "num_heads": 2, "library": library}
    model, tokenizer = ke.models.create(trained_tokenizer(), seed=1, **sizes)
    other, _ = ke.models.create(trained_tokenizer(), seed=1, **sizes)
    features, _ = batch(tokenizer)
    expected = logits(model, features)
    np.testing.assert_array_equal(logits(other, features), expected)
    ke.models.save(model, tokenizer, tmp_path / "saved", task=TASK)
    restored, names = ke.models.load(tmp_path / "saved")
    assert names.inputs == tokenizer.inputs
    np.testing.assert_allclose(logits(restored, features), expected, atol=1e-6)
    with pytest.raises(InputError, match="keeps its task"):
        ke.models.load(tmp_path / "saved", task="classification")
    words = ke.data.train_tokenizer(TEXTS, vocabulary_size=60, kind="wordpiece", max_length=32)
    encoder, words = ke.models.create(words, task="masked_lm", **sizes)
    (features, labels) = batch(words, task=ke.tasks.get("masked_lm"))
    assert logits(encoder, features).shape[:2] == labels.shape


# --- evaluation -----------------------------------------------------------------------------------


@sampled()
@pytest.mark.parametrize("library", LIBRARIES)
def test_an_evaluation_is_of_the_tokens_that_count(library, folder):
    model, tokenizer = loaded(folder, library)
    features, labels = batch(tokenizer)
    values, counts = losses("causal_lm", labels, logits(model, features))
    report = TASK.evaluate(model, [(features, labels)])
    assert report.tokens == int(np.sum(counts)) < counts.shape.num_elements()
    assert report.loss == pytest.approx(np.sum(values * counts) / report.tokens, rel=1e-5)


# --- generation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("library", LIBRARIES)
def test_cached_keys_and_values_give_the_tokens_of_the_whole_sequence(library, folder):
    model, tokenizer = loaded(folder, library)
    prompts, most = ["a good", "the film was"], 6
    found = ke.models.generate_text(model, tokenizer, prompts, max_tokens=most)
    for prompt, text in zip(prompts, found, strict=True):
        ids = [tokenizer.start_id, *tokenizer.encode_without_special([prompt])[0]]
        given = len(ids)
        while len(ids) < given + most:
            row = np.array([ids], "int32")
            names = tokenizer.inputs
            scores = logits(model, {names["ids"]: row, names["mask"]: np.ones_like(row)})
            ids.append(int(scores[0, -1].argmax()))
            if ids[-1] == tokenizer.end_id:
                break
        assert text == tokenizer.decode([ids[given:]])[0]


@sampled()
@pytest.mark.parametrize("library", LIBRARIES)
def test_an_export_continues_texts(library, tmp_path):
    words = ke.data.train_tokenizer(TEXTS, vocabulary_size=80, kind="wordpiece", max_length=32)
    sizes = {"num_layers": 1, "hidden_dim": 8, "num_heads": 2, "library": library}
    strategy = ke.generation.Sample(top_p=0.9)
    task = ke.tasks.CausalLM(texts=2, max_tokens=5, strategy=strategy)
    model, tokenizer = ke.models.create(words, task=task, **sizes)
    flavor = ke.flavor.of(model)
    for variable in model.weights:
        flavor.value(variable).assign(10 * flavor.value(variable))
    sample = batch(tokenizer)
    ke.export(model, tmp_path / "out", sample=sample, tokenizer=tokenizer, task=task)
    prompts = ["the film", "A good"]
    found = ke.serving.predict(tmp_path / "out", prompts)
    options = {"max_tokens": 5, "strategy": strategy}
    expected = ke.models.generate_text(model, tokenizer, prompts, **options)
    for answer, text in zip(found, expected, strict=True):
        # Python's decoder keeps the mark of a piece that it begins with.
        assert answer["generated_text"].replace(" ", "") == text.replace(" ", "").removeprefix("##")
        assert answer["log_probability"] <= 0
    with pytest.raises(InputError, match="room for a text and what follows"):
        long = ke.tasks.CausalLM(max_tokens=31)
        ke.export(model, tmp_path / "long", sample=sample, tokenizer=tokenizer, task=long)


def test_answers_that_are_not_those_of_the_task():
    with pytest.raises(ValueError, match="finite log-probability"):
        TASK.decode({"generated_text": ["a"], "log_probability": [float("nan")]}, None)
    with pytest.raises(InputError, match="`max_tokens` must be a number"):
        ke.tasks.CausalLM(max_tokens=0)


def test_prompts_that_cannot_be_continued(folder):
    model, tokenizer = loaded(folder, "keras")
    with pytest.raises(InputError, match="may have 32 tokens"):
        ke.models.generate_text(model, tokenizer, ["a"], max_tokens=64)
    with pytest.raises(InputError, match="`prompts` must be a list of strings"):
        ke.models.generate_text(model, tokenizer, "a")
    keras = ke.flavor.of(model).keras
    other = keras.Sequential([keras.layers.Dense(2)])
    with pytest.raises(InputError, match="generated by a causal language model"):
        ke.models.generate_text(other, tokenizer, ["a"])
