"""`ke.data.augment_texts`: which words change, into which, and what never does."""

import re

import numpy as np
import pytest
import tensorflow as tf
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors
from zoo import keras_of

import keras_efficient as ke

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
GROUPS = [
    ["good", "great", "fine", "nice"],
    ["film", "movie", "picture", "flick"],
    ["the", "a", "this", "that"],
    ["was", "is", "seems", "looks"],
]
WORDS = [word for group in GROUPS for word in group]
VOCABULARY = [*SPECIAL, *WORDS, "act", "play", "##ing", "##ed", "3", ".", ",", "!", "@"]
ID = {token: number for number, token in enumerate(VOCABULARY)}
TEXTS = ["The film was good, 3 times!", "this  [MASK] movie\tis great.", "a flick"]


def tokenizer(inputs=ke.data.KERASHUB):
    """A BERT-like tokenizer of these words."""
    backend = tokenizers.Tokenizer(models.WordPiece(ID, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(SPECIAL)
    return ke.data.Tokenizer(backend, inputs=inputs, max_length=16)


def table():
    """Embeddings in which the words of a group are near to each other, and far from others."""
    rng = np.random.default_rng(0)
    made = rng.normal(size=(len(VOCABULARY), 8))
    for number, group in enumerate(GROUPS):
        for word in group:
            made[ID[word]] = 5 * np.eye(8)[number] + 0.1 * rng.normal(size=8)
    return made.astype("float32")


def augmented(texts=TEXTS, copies=200, **kwargs):
    settings = {"embeddings": table(), "replace": 1.0, "candidates": 3, "copies": copies}
    return ke.data.augment_texts(texts, tokenizer(), **{**settings, **kwargs})


def words_found(texts):
    """Which words stand at each place of texts with equally many words."""
    rows = [re.findall("[a-z]+", text.lower()) for text in texts]
    return [set(column) for column in zip(*rows, strict=True)]


def copies_of(new, origin):
    return {t for t, o in zip(new.records.texts, new.origins, strict=True) if o == origin}


def skeleton(text):
    """What stands between the words."""
    return re.sub(r"(?<!\[)[^\W\d]+(?!\])", "_", text)


def test_words_become_the_nearest_words_and_all_else_stays():
    new = augmented()
    others = {w: {x.lower() for x in group} - {w} for group in GROUPS for w in group}
    seen = {word: set() for word in others}
    for text, origin in zip(new.records.texts, new.origins, strict=True):
        assert skeleton(text) == skeleton(TEXTS[origin])
        rows = [re.findall("[a-zA-Z]+", t) for t in (TEXTS[origin], text)]
        for old, word in zip(*rows, strict=True):
            if old.lower() not in seen:
                assert word == old in ("MASK", "times")
            else:
                assert word.istitle() == old.istitle()
                seen[old.lower()].add(word.lower())
    assert all(words == others[word] for word, words in seen.items() if words)
    assert seen["film"] and seen["the"]
    assert new.records.labels is None
    assert (np.diff(new.origins) >= 0).all() and set(new.origins) == {0, 1, 2}


def test_copies_are_distinct_and_seeded():
    new = augmented(copies=50, replace=0.4)
    assert len(set(new.records.texts) | set(TEXTS)) == len(new.records) + len(TEXTS)
    # "a flick" has 3 · 3 + 3 + 3 copies that differ from it.
    assert np.bincount(new.origins)[2] <= 15
    assert new.dropped == 150 - len(new.records) > 0
    np.random.seed(1)
    assert augmented(copies=50, replace=0.4).records.texts == new.records.texts
    assert augmented(copies=50, replace=0.4, seed=1).records.texts != new.records.texts


def nearest(word, candidates, pieces, number):
    """By NumPy: the names of the nearest of several words, each a mean of its pieces."""
    vectors = {w: table()[[ID[p] for p in pieces[w]]].mean(0) for w in candidates}
    mean = np.mean([*vectors.values()], 0)
    units = {w: (v - mean) / np.linalg.norm(v - mean) for w, v in vectors.items()}
    order = sorted(units, key=lambda w: -units[w] @ units[word])
    return set(order[1 : number + 1])


def test_a_word_of_several_pieces_is_the_mean_of_them():
    """And no candidate for a word of one piece."""
    texts = ["acting played good", "playing acted act"]
    single = (*WORDS, "act", "play")
    pieces = {word: [word] for word in single}
    pieces |= {a + b: [a, "##" + b] for a in ("act", "play") for b in ("ing", "ed")}
    new = augmented(texts)
    found = {w: set() for text in texts for w in text.split()}
    for text, origin in zip(new.records.texts, new.origins, strict=True):
        for old, word in zip(texts[origin].split(), text.split(), strict=True):
            found[old].add(word)
    for word, near in found.items():
        assert near == nearest(word, single if word in single else pieces, pieces, 3)


def test_blocks_of_neighbours_are_those_of_one_block(monkeypatch):
    whole = augmented()
    monkeypatch.setattr("keras_efficient.data._candidate_words._ROWS", 2)
    assert augmented().records.texts == whole.records.texts


def test_words_that_are_not_known_stay():
    new = augmented(["good film by Zorg, x9 @film-3 http://good.film"])
    assert {text.split(" ", 2)[2] for text in new.records.texts} == {
        "by Zorg, x9 @film-3 http://good.film"
    }


def test_deleted_words_take_a_space_along_and_one_stays():
    texts = ["One two, three (four) 5!", "Word", "five six"]
    new = ke.data.augment_texts(texts, replace=0.0, delete=0.6, copies=200)
    found = [copies_of(new, number) for number in range(3)]
    assert found[1] == set() and found[2] == {"five", "six"}
    assert len(found[0]) == 2**4 - 2
    assert {"One two, three () 5!", "two, (four) 5!", "One, three (four) 5!"} <= found[0]
    assert all("  " not in text and text == text.strip() for text in found[0])


def test_swapped_words_are_those_of_the_text():
    texts = ["one, two three. 4", "single"]
    new = ke.data.augment_texts(texts, replace=0.0, swap=0.5, copies=200)
    assert set(new.origins) == {0} and len(new.records) == 5
    for text in new.records.texts:
        assert sorted(re.findall("[a-z]+", text)) == ["one", "three", "two"]
        assert skeleton(text) == "_, _ _. 4"


@pytest.mark.parametrize("name", ["replace", "delete", "swap"])
def test_rates_are_probabilities_per_word(name):
    words = ["good", "film", "this", "was"] * 25
    rates = {"replace": 0.0, name: 0.3}
    new = augmented([" ".join(words)], copies=40, candidates=3, **rates)
    counts = []
    for text in new.records.texts:
        there = text.split()
        changed = sum(a != b for a, b in zip(words, there, strict=False))
        counts.append(len(words) - len(there) if name == "delete" else changed)
    # An exchange moves two words, three quarters of them onto another word.
    expected = {"replace": 30, "delete": 30, "swap": 100 * (1 - 0.7 * np.exp(-0.3)) * 0.75}[name]
    assert abs(np.mean(counts) - expected) < 2


def test_a_masked_language_model_sees_one_masked_word():
    """This one predicts the words that follow the one before in the vocabulary."""
    seen = []

    def masked_lm(features):
        ids, mask = features["token_ids"].numpy(), features["padding_mask"].numpy()
        seen.extend(row[real > 0].tolist() for row, real in zip(ids, mask, strict=True))
        before = np.roll(ids, 1, axis=1)[..., None]
        return tf.constant(-((np.arange(len(VOCABULARY)) - before - 1.25) ** 2), tf.float32)

    new = augmented(TEXTS[:1], embeddings=None, masked_lm=masked_lm, candidates=2)
    plain = tokenizer().encode(TEXTS[:1])[0].tolist()
    assert sorted(seen) == sorted([*plain[:n], ID["[MASK]"], *plain[n + 1 :]] for n in (1, 2, 3, 4))
    after = [set(WORDS[WORDS.index(w) + 1 :][:2]) for w in ("the", "film", "was")]
    # Before "the" stands [CLS], and no model predicts a word in place of "times".
    assert words_found(new.records.texts) == [{"good", "great"}, *after, {"times"}]


def masked_model(library):
    if library == "tf_keras":
        import transformers

        config = transformers.BertConfig(
            len(VOCABULARY), 8, 1, 2, 16, max_position_embeddings=16, initializer_range=1.0
        )
        model = transformers.TFBertForMaskedLM(config)
        model(model.dummy_inputs)
        return model, tokenizer(ke.data.HUGGING_FACE)
    import keras_hub

    backbone = keras_hub.models.BertBackbone(len(VOCABULARY), 1, 2, 8, 16, max_sequence_length=16)
    model = keras_hub.models.BertMaskedLM(backbone)
    model.set_weights([20 * w for w in model.get_weights()])
    return model, tokenizer()


@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_masked_language_models_of_the_libraries(library):
    keras_of(library).utils.set_random_seed(0)
    model, names = masked_model(library)
    text = "the film was good"
    new = ke.data.augment_texts([text, "acting"], names, masked_lm=model, copies=200, candidates=3)
    # "acting" is two tokens, so its neighbours in the model's own table replace it.
    assert {0, 1} == set(new.origins)
    found = words_found(copies_of(new, 0))
    ids = names.encode([text])[0]
    allowed = np.isin(np.arange(len(VOCABULARY)), [ID[w] for w in (*WORDS, "act", "play")])
    for number, (old, words) in enumerate(zip(text.split(), found, strict=True), 1):
        masked = np.where(np.arange(len(ids)) == number, ID["[MASK]"], ids)[None].astype("int32")
        inputs = {names.inputs["ids"]: masked, names.inputs["mask"]: np.ones_like(masked)}
        inputs[names.inputs["segments"]] = np.zeros_like(masked)
        if library == "keras":
            logits = model({**inputs, "mask_positions": np.array([[number]])})[0, 0].numpy()
        else:
            logits = model(inputs).logits[0, number].numpy()
        logits = np.where(allowed & (np.array(VOCABULARY) != old), logits, -np.inf)
        assert words == {old} | {VOCABULARY[i] for i in np.argsort(logits)[-3:]}


def test_the_table_of_a_model():
    keras = keras_of("keras")
    ids = keras.Input((None,), dtype="int32")
    layer = keras.layers.Embedding(len(VOCABULARY), 8)
    model = keras.Model(ids, layer(ids))
    layer.set_weights([table()])
    assert augmented(embeddings=model).records.texts == augmented().records.texts


class Function(ke.data.Tokenizer):
    def __init__(self):
        super().__init__(lambda texts, n: [[1] for _ in texts], inputs=ke.data.KERASHUB)


BAD = {
    "no model": ({"embeddings": None}, "Replacing words needs a tokenizer, and `embeddings`"),
    "nothing to do": ({"replace": 0}, "Copies must differ from their texts"),
    "rate": ({"delete": 1.2}, "`delete` must be a probability"),
    "copies": ({"copies": 0}, "`copies` must be an integer of 1 or more"),
    "seed": ({"seed": -1}, "`seed` must be an integer of 0 or more"),
    "table": ({"embeddings": np.zeros((9, 4))}, r"a row for each token. Received: shape \[9, 4\]"),
    "texts": ({"texts": []}, "There must be at least one text"),
    "logits": (
        {"masked_lm": lambda x: tf.zeros([*x["token_ids"].shape, 7])},
        r"`masked_lm` must return logits .* Received: \[6, 7\]",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    kwargs, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        augmented(**{"texts": TEXTS[2:] + TEXTS[:1], **kwargs})


def test_models_and_tokenizers_that_do_not_fit():
    keras = keras_of("keras")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="a built model with a table of token embeddings"):
        augmented(embeddings=model)
    with pytest.raises(ValueError, match=r"if the tokenizer is a tokenizers\.Tokenizer"):
        ke.data.augment_texts(TEXTS, Function(), embeddings=table())
    backend = tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0, "good": 1}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    only = ke.data.Tokenizer(backend, inputs=ke.data.KERASHUB)
    with pytest.raises(ValueError, match="Replacing words needs other words"):
        ke.data.augment_texts(["good"], only, embeddings=table(), replace=1.0)
    with pytest.raises(ValueError, match="needs a mask token"):
        ke.data.augment_texts(["good"], only, masked_lm=lambda x: x, replace=1.0)


def test_of_pairs_the_first_text_is_altered():
    pairs = ke.data.Records(("a film", "a film"), second_texts=("this movie", "that flick"))
    new = augmented(pairs, copies=3)
    assert new.records.second_texts == tuple(pairs.second_texts[n] for n in new.origins)
    assert "a film" not in new.records.texts and set(new.origins.tolist()) == {0, 1}
    # The same altered text beside two others are two pairs.
    assert len(set(new.records.examples())) == len(new.records) > len(set(new.records.texts))
