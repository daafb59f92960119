import json

import numpy as np
import pytest

from keras_efficient._errors import InputError
from keras_efficient.data import HUGGING_FACE, KERASHUB, Tokenizer, as_tokenizer

TEXTS = ["w1 w2 w3", "w4", "unknown w5", " ".join(f"w{i}" for i in range(40))]


def words(texts, max_length):
    """Encode like the tokenizer, as a function backend: 2 <word ids> 3."""
    rows = [[2, *(4 + int(word[1:]) for word in text.split()), 3] for text in texts]
    return [row if len(row) <= max_length else [*row[: max_length - 1], 3] for row in rows]


def lists(rows):
    return [row.tolist() for row in rows]


def test_equals_the_backend_one_by_one(tokenizer, backend):
    encoded = tokenizer.encode(TEXTS)
    assert lists(encoded) == [backend.encode(text).ids for text in TEXTS]
    assert all(row.dtype == np.int32 for row in encoded)


def test_chunks_join_in_order(tokenizer, monkeypatch):
    monkeypatch.setattr("keras_efficient.data._tokenizer._CHUNK", 3)
    many = [f"w{i}" for i in range(10)]
    assert lists(tokenizer.encode(many)) == [[2, 4 + i, 3] for i in range(10)]


def test_truncation_keeps_the_closing_token_and_is_counted(tokenizer):
    ids, cut, longest = tokenizer.encode_and_count(TEXTS, 5)
    assert longest == max(len(row) for row in tokenizer.encode(TEXTS))
    assert ids[3].tolist() == [2, 4, 5, 6, 3] and cut == 1
    assert ids[0].tolist() == [2, 5, 6, 7, 3]  # exactly full, not cut


def test_the_callers_object_stays_as_it_is(backend):
    backend.enable_padding(length=50)
    backend.enable_truncation(4)
    before = backend.to_str()
    tokenizer = Tokenizer(backend, inputs=KERASHUB)
    assert [len(row) for row in tokenizer.encode(TEXTS, 64)] == [5, 3, 4, 42]
    assert backend.to_str() == before


def test_function_and_object_backends(tokenizer):
    class Object:
        encode_batch = staticmethod(words)

    known = [TEXTS[0], TEXTS[1], TEXTS[3]]
    for backend in (words, Object()):
        for length in (5, 64):
            mine = Tokenizer(backend, inputs={"ids": "tokens"}, max_length=64)
            ids, cut, _ = mine.encode_and_count(known, length)
            expected, expected_cut, _ = tokenizer.encode_and_count(known, length)
            assert lists(ids) == lists(expected) and cut == expected_cut


def test_directory_prefers_tokenizer_json(tmp_path, backend, vocabulary):
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"do_lower_case": False, "model_max_length": 40, "pad_token": "[PAD]"})
    )
    plain = Tokenizer.from_directory(tmp_path, inputs=KERASHUB)
    assert plain.max_length == 40 and plain.pad_id == 0
    assert lists(plain.encode(["w1 W1"])) == [[2, 5, 1, 3]]  # cased, as configured
    backend.save(str(tmp_path / "tokenizer.json"))
    full = Tokenizer.from_directory(tmp_path, inputs=HUGGING_FACE, max_length=20)
    assert lists(full.encode(["w1 W1"])) == [[2, 5, 5, 3]]
    assert full.max_length == 20 and full.inputs["ids"] == "input_ids"


def test_directory_without_configuration_lower_cases(tmp_path, vocabulary):
    moved = [*vocabulary[1:], "[PAD]"]
    (tmp_path / "vocab.txt").write_text("\n".join(moved) + "\n")
    tokenizer = Tokenizer.from_directory(tmp_path, inputs=KERASHUB)
    assert lists(tokenizer.encode(["W1"])) == [[1, 4, 2]]
    assert tokenizer.max_length == 512 and tokenizer.pad_id == len(vocabulary) - 1


def test_bad_directories(tmp_path):
    with pytest.raises(InputError, match=r"must hold tokenizer\.json or vocab\.txt"):
        Tokenizer.from_directory(tmp_path, inputs=KERASHUB)
    (tmp_path / "vocab.txt").write_text("only\nwords\n")
    with pytest.raises(InputError, match=r"must be readable.*vocab\.txt"):
        Tokenizer.from_directory(tmp_path, inputs=KERASHUB)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"must be readable.*tokenizer\.json"):
        Tokenizer.from_directory(tmp_path, inputs=KERASHUB)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer_config\.json must be readable JSON"):
        Tokenizer.from_directory(tmp_path, inputs=KERASHUB)


def test_as_tokenizer(tokenizer, backend):
    assert as_tokenizer(tokenizer) is tokenizer
    renamed = as_tokenizer(tokenizer, inputs={"ids": "x"})
    assert renamed.inputs == {"ids": "x"} and renamed.max_length == 128
    assert as_tokenizer(backend).inputs == HUGGING_FACE
    with pytest.raises(TypeError, match=r"fast Hugging Face tokenizer.*type function"):
        as_tokenizer(words)


def test_as_tokenizer_of_hugging_face(backend):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[UNK]",
        model_max_length=30,
        model_input_names=["input_ids", "attention_mask"],
    )
    mine = as_tokenizer(theirs)
    assert mine.inputs == {"ids": "input_ids", "mask": "attention_mask"}
    assert (mine.pad_id, mine.max_length) == (1, 30)
    assert lists(mine.encode(TEXTS, 6)) == theirs(TEXTS, truncation=True, max_length=6).input_ids


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"inputs": {"mask": "m"}}, '`inputs` must map "ids"'),
        ({"inputs": {"ids": "a", "types": "b"}}, '`inputs` must map "ids"'),
        ({"inputs": {"ids": "a", "mask": "a"}}, "different input names"),
        ({"inputs": ["ids"]}, '`inputs` must map "ids"'),
        ({"pad_id": -1}, "`pad_id` must be a token id"),
        ({"pad_id": None}, "`pad_id` must be a token id"),
        ({"max_length": 2}, "`max_length` must be an integer of 3"),
    ],
)
def test_bad_construction(backend, kwargs, message):
    with pytest.raises(InputError, match=message):
        Tokenizer(backend, **{"inputs": KERASHUB, **kwargs})


def test_bad_backend():
    with pytest.raises(TypeError, match="`backend` must be"):
        Tokenizer("vocab.txt", inputs=KERASHUB)


def test_a_backend_with_python_parts_needs_a_function(backend):
    from tokenizers.pre_tokenizers import PreTokenizer

    class Custom:
        def pre_tokenize(self, pretokenized):
            pass

    backend.pre_tokenizer = PreTokenizer.custom(Custom())
    with pytest.raises(InputError, match=r"can be saved.*Wrap it in a function"):
        Tokenizer(backend, inputs=KERASHUB)


def test_bad_calls(tokenizer):
    with pytest.raises(InputError, match="Received one string"):
        tokenizer.encode("w1")
    for length in (2, 129, True, 8.0):
        with pytest.raises(InputError, match="from 3 to the tokenizer's 128"):
            tokenizer.encode(["w1"], length)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda texts, n: [[1]], "one sequence per text. Received: 1 for 2"),
        (lambda texts, n: [[1.5]] * 2, "int sequences.*float64"),
        (lambda texts, n: [[[1]]] * 2, r"int sequences.*\(1, 1\)"),
        (lambda texts, n: [[1] * (n + 1)] * 2, "at most max_length=8"),
    ],
)
def test_bad_functions(function, message):
    with pytest.raises(InputError, match=message):
        Tokenizer(function, inputs=KERASHUB).encode(["a", "b"], 8)


def test_pairs_are_those_of_the_backend(tokenizer, backend):
    seconds = [TEXTS[3], "w1 w2", TEXTS[3], "w7"]
    for length in (7, 8, 12, 128):
        backend.enable_truncation(length)
        expected = backend.encode_batch(list(zip(TEXTS, seconds, strict=True)))
        ids, segments, cut, longest = tokenizer.encode_pairs(TEXTS, seconds, length)
        assert lists(ids) == [encoding.ids for encoding in expected]
        assert lists(segments) == [encoding.type_ids for encoding in expected]
        assert cut == sum(bool(encoding.overflowing) for encoding in expected)
        assert longest == 46  # 3 + 40 words and [CLS], [SEP], [SEP], whatever the limit


def test_pairs_need_a_tokenizer_that_joins_them():
    mine = Tokenizer(words, inputs={"ids": "tokens"}, max_length=64)
    with pytest.raises(InputError, match="Pairs of texts need a tokenizers"):
        mine.encode_pairs(["w1"], ["w2"])
