"""`ke.data.trim_vocabulary`: the same tokens for the same texts, whatever the tokenizer."""

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors, trainers

import keras_efficient as ke

CORPUS = [
    "the film was very good and the plot great",
    "a bad film, not good: the actors act badly!",
    "greatest plots and filming; actors' goodness",
]
TEXTS = ["the film was good", "a bad plot, greatly acted!"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def _trained(kind):
    model, trainer = {
        "WordPiece": (models.WordPiece, trainers.WordPieceTrainer),
        "WordLevel": (models.WordLevel, trainers.WordLevelTrainer),
        "BPE": (models.BPE, trainers.BpeTrainer),
        "Unigram": (models.Unigram, trainers.UnigramTrainer),
    }[kind]
    options = {} if kind == "Unigram" else {"unk_token": "[UNK]"}
    tokenizer = tokenizers.Tokenizer(model(**options))
    byte_level = kind == "BPE"
    tokenizer.pre_tokenizer = (
        pre_tokenizers.ByteLevel() if byte_level else pre_tokenizers.BertPreTokenizer()
    )
    settings = {"unk_token": "[UNK]"} if kind == "Unigram" else {}
    tokenizer.train_from_iterator(
        CORPUS * 20,
        trainer(vocab_size=150, special_tokens=SPECIAL, show_progress=False, **settings),
    )
    ids = [(token, tokenizer.token_to_id(token)) for token in ("[SEP]", "[CLS]")]
    tokenizer.post_processor = (
        processors.RobertaProcessing(*ids) if byte_level else processors.BertProcessing(*ids)
    )
    return ke.data.Tokenizer(tokenizer, inputs=ke.data.KERASHUB, max_length=32)


@pytest.mark.parametrize("kind", ["WordPiece", "WordLevel", "BPE", "Unigram"])
def test_kept_texts_have_the_same_tokens(kind):
    tokenizer = _trained(kind)
    ids, small = ke.data.trim_vocabulary(tokenizer, TEXTS)
    assert small.largest_id == len(ids) - 1 < tokenizer.largest_id
    for old, new in zip(tokenizer.encode(TEXTS), small.encode(TEXTS), strict=True):
        np.testing.assert_array_equal(ids[new], old)
        assert [small.backend.id_to_token(i) for i in new] == [
            tokenizer.backend.id_to_token(i) for i in old
        ]
    assert small.pad_id == tokenizer.pad_id == 0
    assert small.inputs == tokenizer.inputs and small.max_length == 32


@pytest.mark.parametrize("kind", ["WordPiece", "BPE", "Unigram"])
def test_other_texts_consist_of_characters_where_they_did(kind):
    tokenizer = _trained(kind)
    _, small = ke.data.trim_vocabulary(tokenizer, ["good"])
    (ids,) = small.encode(["greatest actors"])
    assert small.backend.token_to_id("[UNK]") not in ids
    assert small.backend.token_to_id("greatest") is None


@pytest.mark.parametrize("kind", ["WordPiece", "WordLevel", "BPE", "Unigram"])
def test_rare_tokens_are_left_out(kind):
    tokenizer = _trained(kind)
    texts = ["the film was good", "the film was bad", "the film was bad"]
    ids, small = ke.data.trim_vocabulary(tokenizer, texts, min_frequency=2)
    whole = ke.data.trim_vocabulary(tokenizer, texts).ids
    good, bad = tokenizer.encode(["good"])[0], tokenizer.encode(["bad"])[0]
    left_out = set(whole) - set(ids)
    assert left_out & set(good) and not left_out & set(bad)
    # Texts of other tokens are tokenized as before.
    np.testing.assert_array_equal(ids[small.encode(texts[1:2])[0]], tokenizer.encode(texts[1:2])[0])
    if kind != "WordLevel":
        assert (
            small.backend.decode(small.encode(["good"])[0])
            .replace(" ", "")
            .replace("##", "")
            .endswith("good")
        )


def test_a_template_is_renumbered():
    tokenizer = _trained("WordPiece").backend
    words = [(t, tokenizer.token_to_id(t)) for t in ("[CLS]", "great")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A great", special_tokens=words
    )
    ids, small = ke.data.trim_vocabulary(
        ke.data.Tokenizer(tokenizer, inputs=ke.data.KERASHUB), ["bad"]
    )
    assert small.backend.id_to_token(int(small.encode(["bad"])[0][-1])) == "great"
    assert words[1][1] in ids


def test_what_cannot_be_trimmed():
    with pytest.raises(ke.InputError, match="`min_frequency` must be a whole number >= 1"):
        ke.data.trim_vocabulary(_trained("BPE"), TEXTS, min_frequency=0)
    with pytest.raises(ke.InputError, match="`texts` must hold typical texts"):
        ke.data.trim_vocabulary(_trained("WordPiece"), [])
    function = ke.data.Tokenizer(lambda texts, n: [[1]] * len(texts), inputs=ke.data.KERASHUB)
    with pytest.raises(
        ke.InputError, match="The vocabulary of a tokenizer can be trimmed if it is a tokenizers"
    ):
        ke.data.trim_vocabulary(function, ["a"])
    prefixed = tokenizers.Tokenizer(models.BPE({"a": 0}, [], continuing_subword_prefix="##"))
    with pytest.raises(ke.InputError, match="one with 'continuing_subword_prefix'"):
        ke.data.trim_vocabulary(prefixed, ["a"])
