"""Sequence to sequence: data, cached decoding, reports and exports, in both libraries."""

import functools
import json

import numpy as np
import pytest
import tensorflow as tf
from covering import sampled
from in_process_export import in_process as in_process
from tokenizers import (
    BertWordPieceTokenizer,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
)

import keras_efficient as ke
from keras_efficient._errors import InputError

LIBRARIES = ("keras", "tf_keras")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
LETTERS, PHONEMES = list("acdt"), ["K", "AE1", "T", "D"]
TOKENS = [*SPECIAL, *LETTERS, *(f"##{x}" for x in LETTERS), *PHONEMES]
#: Of very unequal lengths, so that a mean over texts is another one than that over tokens.
ROWS = [
    ("cat", "K AE1 T"),
    ("a", "AE1"),
    ("tatat", "T AE1 T AE1 T"),
    ("cad", "K AE1 D"),
    ("dadacata", "D AE1 D AE1 K AE1 T AE1"),
    ("ta", "T AE1"),
    ("act", "AE1 K T"),
    ("d", "D"),
]
TASK = ke.tasks.Seq2Seq(max_tokens=6)
RECORDS = ke.data.Records.of(*zip(*ROWS, strict=True), encode=TASK.encode)


def words():
    vocabulary = {token: number for number, token in enumerate(TOKENS)}
    backend = BertWordPieceTokenizer(vocabulary, lowercase=False)
    return ke.data.Tokenizer(backend, inputs=ke.data.HUGGING_FACE, max_length=32)


def new_model(library):
    """A small model whose outputs are far from uniform."""
    model, tokenizer = ke.models.create(
        words(),
        task=TASK,
        num_layers=1,
        hidden_dim=16,
        intermediate_dim=32,
        dropout=0.0,
        library=library,
    )
    rng = np.random.default_rng(0)
    weights = [w + 0.5 * rng.normal(size=w.shape) for w in model.get_weights()]
    for array in weights:
        # Without it the most probable token ends the text at once.
        if array.shape[0] == len(TOKENS):
            array[3] *= 0.5
    model.set_weights(weights)
    return model, tokenizer


@functools.cache
def loaded(library):
    return new_model(library)


def batches(tokenizer, batch_size=8):
    return ke.data.text(RECORDS, tokenizer, batch_size=batch_size, shuffle=False)


def answers(library, texts, task=TASK):
    """Return what the model in memory generates, and the scores."""
    model, tokenizer = loaded(library)
    ids = tf.ragged.constant(tokenizer.encode(texts)).to_tensor()
    features = {tokenizer.inputs["ids"]: ids, tokenizer.inputs["mask"]: tf.cast(ids > 0, tf.int32)}
    found = task.answer(model, features, tokenizer)
    texts = [text.decode() for text in found["generated_text"].numpy()]
    return texts, found["log_probability"].numpy()


def test_batches_hold_what_the_decoder_reads_and_what_follows():
    _, tokenizer = loaded("keras")
    ((features, labels),) = batches(tokenizer)
    assert set(features) == set(tokenizer.inputs.values())
    ids, mask = features["decoder_token_ids"].numpy(), features["decoder_padding_mask"].numpy()
    for (_, target), row, real, following in zip(ROWS, ids, mask, labels.numpy(), strict=True):
        numbers = [TOKENS.index(token) for token in target.split()]
        count = len(numbers) + 1
        assert row[:count].tolist() == [2, *numbers] and not row[count:].any()
        assert following[:count].tolist() == [*numbers, 3] and (following[count:] == -100).all()
        assert real.tolist() == [1] * count + [0] * (len(real) - count)


@pytest.mark.parametrize("library", LIBRARIES)
def test_cached_decoding_gives_the_logits_of_the_model(library):
    model, tokenizer = loaded(library)
    ((features, labels),) = batches(tokenizer)
    outputs = model(features)
    expected = np.asarray(getattr(outputs, "logits", outputs))
    decoder = ke.generation.decoder_of(model)
    ids, mask, targets = (
        features[tokenizer.inputs[role]] for role in ("ids", "mask", "target_ids")
    )
    state = decoder.start(ids, mask, labels.shape[1])
    for index in range(labels.shape[1]):
        logits, state = decoder.step(targets[:, index], tf.constant(index), state)
        real = labels.numpy()[:, index] >= 0
        np.testing.assert_allclose(logits.numpy()[real], expected[:, index][real], atol=1e-5)


@sampled()
@pytest.mark.parametrize("library", LIBRARIES)
def test_an_export_generates_what_memory_does(library, tmp_path):
    model, tokenizer = loaded(library)
    task = ke.tasks.Seq2Seq(max_tokens=6, strategy=ke.generation.Beam(3))
    sample = next(iter(batches(tokenizer)))
    report = ke.export(
        model, tmp_path / "m", sample=sample, tokenizer=tokenizer, task=task, latency=False
    )
    assert report.max_abs_difference <= 1e-4
    texts = [text for text, _ in ROWS]
    expected, scores = answers(library, texts, task)
    assert len(set(expected)) > 2
    served = tf.saved_model.load(str(report.directory)).signatures["text"](text=tf.constant(texts))
    assert [text.decode() for text in served["generated_text"].numpy()] == expected
    np.testing.assert_allclose(served["log_probability"], scores, atol=1e-5)
    rows = ke.serving.predict(tmp_path / "m", texts[:2])
    assert [row["generated_text"] for row in rows] == expected[:2]


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_saved_model_is_restored(library, tmp_path):
    model, tokenizer = loaded(library)
    ke.models.save(model, tokenizer, tmp_path / "m", task=TASK)
    again, words = ke.models.load(tmp_path / "m")
    assert words.inputs == tokenizer.inputs and words.ends == tokenizer.ends
    for a, b in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    ((features, _),) = batches(words)
    a, b = (np.asarray(getattr(x, "logits", x)) for x in (model(features), again(features)))
    np.testing.assert_array_equal(a, b)


def test_evaluation_compares_generated_texts_with_the_targets():
    model, tokenizer = loaded("keras")
    found = TASK.evaluate(model, batches(tokenizer, 3), tokenizer=tokenizer)
    generated, _ = answers("keras", [text for text, _ in ROWS])
    expected = ke.metrics.generation_report([target for _, target in ROWS], generated)
    assert found == expected and found.examples == len(ROWS)
    with pytest.raises(InputError, match=r"evaluated as strings. Received: no tokenizer"):
        TASK.evaluate(model, batches(tokenizer))


def test_a_report_counts_words():
    report = ke.metrics.generation_report(["a b c", "a b", "d", "a b"], ["a x c", "a b c", "d", ""])
    # One replaced, one inserted, none, two deleted, of eight words.
    assert report.word_error_rate == 4 / 8 and report.exact_match == 1 / 4
    assert (report.baseline, report.baseline_exact_match) == ("a b", 0.5)
    # "a b" for "a b c" and for "d": one deleted, and one replaced and one inserted.
    assert report.baseline_word_error_rate == 3 / 8
    assert json.loads(json.dumps(report.to_dict()))["word_error_rate"] == 0.5
    assert "word error rate 0.3750 (always 'a b')" in str(report)
    constant = ke.metrics.generation_report(["a", "b"], ["c", "c"])
    assert constant.warnings == ("The model generates one text only: 'c', for all 2 examples.",)
    with pytest.raises(InputError, match=r"1 references and 2 generated"):
        ke.metrics.generation_report(["a"], ["a", "b"])
    with pytest.raises(InputError, match=r"an empty text, number 1"):
        ke.metrics.generation_report(["a", " "], ["a", "b"])


def byte_level():
    """Byte-level BPE of single bytes, and a merge."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*alphabet, "Ġa"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("Ġ", "a")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def sentence_piece():
    pieces = [("<unk>", 0.0), ("▁good", -1.0), ("▁", -3.0), ("film", -2.0), ("s", -2.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


@pytest.mark.parametrize(
    ("make", "text"), [(byte_level, "naïve — a 电影\nx"), (sentence_piece, "good films good")]
)
def test_detokenizing_is_that_of_the_library(make, text):
    backend = make()
    tokenizer = ke.data.Tokenizer(backend, inputs={"ids": "x"}, pad_id=10_000)
    (ids,) = tokenizer.encode([text])
    assert backend.decode(ids.tolist()) == text
    assert ke.data.Detokenizer(tokenizer)(ids[None]).numpy()[0].decode() == text


@pytest.fixture
def t5(tmp_path):
    """A folder of a small T5 of transformers, and its logits for two texts."""
    import transformers

    backend = sentence_piece()
    backend.add_special_tokens(["</s>", "<pad>"])
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 5)]
    )
    sizes = {"d_model": 16, "d_kv": 8, "num_heads": 2, "num_layers": 2, "d_ff": 24}
    sizes |= {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12}
    kinds = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "dropout_rate": 0.0}
    config = transformers.T5Config(
        vocab_size=7, decoder_start_token_id=6, pad_token_id=6, eos_token_id=5, **sizes, **kinds
    )
    model = transformers.TFT5ForConditionalGeneration(config)
    features = {
        "input_ids": [[1, 3, 5, 6], [3, 4, 2, 5]],
        "attention_mask": [[1] * 3 + [0], [1] * 4],
    }
    features |= {"decoder_input_ids": [[6, 1, 3, 4, 2, 1, 3, 3]] * 2}
    features = {name: tf.constant(rows) for name, rows in features.items()}
    model(features)
    random = np.random.default_rng(0)
    model.set_weights([random.normal(0, 0.3, w.shape) for w in model.get_weights()])
    model.save_pretrained(tmp_path / "t5")
    (tmp_path / "t5" / "tokenizer.json").write_text(backend.to_str())
    padding = {"pad_token": "<pad>"}
    (tmp_path / "t5" / "tokenizer_config.json").write_text(json.dumps(padding))
    return tmp_path / "t5", features, model(features).logits.numpy()


def test_t5(t5, tmp_path, in_process):
    """Norms stand first, distances have a bias, and targets begin with the padding token."""
    folder, features, expected = t5
    model, tokenizer = ke.models.load(folder, task=TASK, library="tf_keras")
    assert tokenizer.target_ends == (6, 5) and tokenizer.pad_id == 6
    ids, mask, targets = features.values()
    decoder = ke.generation.decoder_of(model)
    state = decoder.start(ids, mask, targets.shape[1])
    for index in range(targets.shape[1]):
        logits, state = decoder.step(targets[:, index], tf.constant(index), state)
        np.testing.assert_allclose(logits.numpy(), expected[:, index], atol=1e-5)
    records = ke.data.Records.of(["good", "films"], ["film", "good"], encode=TASK.encode)
    ((batch, labels),) = ke.data.text(records, tokenizer, batch_size=2, shuffle=False)
    assert batch["decoder_input_ids"].numpy().tolist() == [[6, 2, 3], [6, 1, 6]]
    assert labels.numpy().tolist() == [[2, 3, 5], [1, 5, -100]]
    wanted = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
    found = TASK.answer(model, {"input_ids": ids, "attention_mask": mask}, tokenizer)
    backend = tokenizer.backend
    assert [text.decode() for text in found["generated_text"].numpy()] == [
        backend.decode(row).strip() for row in wanted.numpy().tolist()
    ]
    # Token ids in and texts out, since no graph holds a SentencePiece tokenizer.
    options = {"sample": batch, "tokenizer": tokenizer, "task": TASK, "latency": False}
    report = ke.export(model, tmp_path / "served", **options)
    signatures = tf.saved_model.load(str(report.directory)).signatures
    assert set(signatures) == {"serving_default", "tokens", "generate"}
    served = signatures["generate"](input_ids=ids, attention_mask=mask)
    assert served["generated_text"].numpy().tolist() == found["generated_text"].numpy().tolist()
    np.testing.assert_allclose(served["log_probability"], found["log_probability"], atol=1e-5)
    with pytest.raises(InputError, match="for tasks that generate texts"):
        ke.export(model, tmp_path / "no", sample=batch, tokenizer=tokenizer, signatures="generate")
    ke.models.save(model, tokenizer, tmp_path / "m", task=TASK)
    _, again = ke.models.load(tmp_path / "m")
    assert again.target_ends == (6, 5)
    trimmed = ke.data.trim_vocabulary(tokenizer, ["good", "film"])
    assert trimmed.tokenizer.decoder_start_id == trimmed.tokenizer.pad_id == len(trimmed.ids) - 1


def test_bad_input(tmp_path):
    with pytest.raises(InputError, match=r"target, .*row 2.*empty|empty text .*target"):
        (tmp_path / "d.csv").write_text("text,phonemes\ncat,K\ndog, \n")
        TASK.read(tmp_path / "d.csv", label_column="phonemes")
    with pytest.raises(InputError, match=r"at least two different ones"):
        TASK.check(ke.data.Records.of(["a", "b"], ["K", "K"], encode=TASK.encode))
    with pytest.raises(InputError, match=r"texts=2"):
        ke.tasks.Seq2Seq(texts=2)
    with pytest.raises(InputError, match=r"a token before and another one after each"):
        ke.models.create(byte_level(), task=TASK)
    with pytest.raises(InputError, match=r"`decoder_start_id` must be a token id"):
        ke.data.Tokenizer(byte_level(), inputs={"ids": "x"}, decoder_start_id=-1)
    bare = ke.data.Tokenizer(byte_level(), inputs={"ids": "x"}, decoder_start_id=1)
    with pytest.raises(InputError, match=r"a token after each text"):
        bare.encode_targets(["a"])
    _, tokenizer = loaded("keras")
    with pytest.raises(InputError, match=r"Targets must not be longer than 5 tokens"):
        ke.data.text(RECORDS, tokenizer, batch_size=8, max_length=5)
    with pytest.raises(InputError, match=r"Generation knows the decoders of"):
        ke.generation.decoder_of(object())
    with pytest.raises(InputError, match=r"whose backend is a function"):
        ke.data.Detokenizer(ke.data.Tokenizer(lambda texts, n: [[1]], inputs={"ids": "x"}))
