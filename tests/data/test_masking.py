"""Masks of texts: which tokens, what replaces them, and what they depend on."""

import numpy as np
import pytest
from bert_folder import TEXTS, write
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordLevel

import keras_efficient as ke
from keras_efficient._errors import InputError

ROWS = [*TEXTS, "the badly plots and a greatly film", "films and actors ."] * 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("bert") / "model")


@pytest.fixture(scope="module")
def tokenizer(folder):
    inputs = ke.data.KERASHUB | ke.data.MASK_POSITIONS
    return ke.data.Tokenizer.from_directory(folder, inputs=inputs, max_length=32)


def masked(tokenizer, texts=ROWS, *, batch_size=50, shuffle=False, **options):
    settings = {"max_length": 32, "batch_size": batch_size, "shuffle": shuffle, "seed": 5}
    names = ("first_epoch", "group_by_length", "buckets", "tokens_per_batch")
    settings |= {name: options.pop(name) for name in names if name in options}
    if "tokens_per_batch" in settings:
        del settings["batch_size"]
    return ke.data.text(texts, tokenizer, masking=ke.data.Masking(**options), **settings)


def rows(data):
    """Return for each text its original ids, the selected positions, and what is seen there."""
    found = []
    for features, labels in data:
        ids, where = features["token_ids"].numpy().copy(), features["mask_positions"].numpy()
        for row, positions, wanted in zip(ids, where, labels.numpy(), strict=True):
            kept = wanted >= 0
            assert (np.diff(positions[kept]) > 0).all() and not positions[~kept].any()
            seen = row[positions[kept]].tolist()
            row[positions[kept]] = wanted[kept]
            found.append((tuple(row[row > 0]), tuple(positions[kept]), tuple(seen)))
    return found


def test_shares_of_the_tokens(tokenizer):
    found = rows(masked(tokenizer, ROWS * 3, mask_selection_rate=0.3))
    pairs = [
        (o, s) for ids, where, seen in found for o, s in zip(np.take(ids, where), seen, strict=True)
    ]
    original, seen = np.array(pairs).T
    assert abs((seen == 4).mean() - 0.8) < 0.04
    # A random token is the original one in one of 16 draws.
    assert abs((seen == original).mean() - 0.1) < 0.04
    assert original.min() >= 5 and seen[seen != 4].min() >= 5
    for ids, where, _ in found:
        words = sum(number >= 5 for number in ids)
        assert len(where) == max(1, round(0.3 * words + 1e-6))


@pytest.mark.parametrize("unit", ["word", "span"])
def test_whole_words_and_runs_of_them(tokenizer, unit):
    starts = np.array([not token.startswith("##") for token in tokenizer.vocabulary])
    long = "the film was good and bad and great with a plot and actors and a film films badly ."
    options = {"unit": unit, "mask_selection_rate": 0.4, "group_by_length": True, "shuffle": True}
    runs = []
    for ids, where, seen in rows(masked(tokenizer, [long] * 300, **options)):
        chosen = np.zeros(len(ids), bool)
        chosen[list(where)] = True
        word = np.cumsum(starts[list(ids)])
        for number in set(word):
            assert len(set(chosen[word == number])) == 1
        first = np.unique(word, return_index=True)[1]
        runs += [len(run) for run in "".join("01"[int(i)] for i in chosen[first]).split("0") if run]
        if unit == "span" and len(where) == max(where) - min(where) + 1:
            # What covers a text at once is replaced in one way.
            assert len({s == 4 for s in seen} | {False}) <= 2
    assert (1.2 < np.mean(runs) < 2.0) if unit == "word" else (2.2 < np.mean(runs) < 5)


def test_masks_depend_on_seed_epoch_text_and_token_alone(tokenizer):
    texts = [f"the film was {'very ' * i}good and bad" for i in range(12)]
    expected = {row[0]: row for row in rows(masked(tokenizer, texts, shuffle=True))}
    data = masked(tokenizer, texts, shuffle=True, batch_size=5, group_by_length=True)
    epochs = [rows(data), rows(data)]
    assert {row[0]: row for row in epochs[0]} == expected
    assert {row[0]: row for row in epochs[1]} != expected
    # Resumed, and in the order of the texts, with a budget of tokens.
    resumed = rows(masked(tokenizer, texts, shuffle=True, first_epoch=1))
    assert {row[0]: row for row in resumed} == {row[0]: row for row in epochs[1]}
    budget = masked(tokenizer, texts, tokens_per_batch=100, first_epoch=1)
    assert sorted(rows(budget)) == sorted(epochs[1])
    static = masked(tokenizer, texts, shuffle=True, static=True)
    first, second = sorted(rows(static)), sorted(rows(static))
    assert first == second


def test_shapes_for_xla_and_labels_per_token(tokenizer, folder):
    data = masked(tokenizer, TEXTS, buckets=[20], batch_size=3)
    assert data.element_spec[0]["mask_positions"].shape[1] == 3 == data.element_spec[1].shape[1]
    ((features, labels),) = data
    plain = ke.data.Tokenizer.from_directory(folder, inputs=ke.data.KERASHUB, max_length=32)
    ((others, per_token),) = masked(plain, TEXTS, buckets=[20], batch_size=3)
    assert "mask_positions" not in others
    np.testing.assert_array_equal(others["token_ids"], features["token_ids"])
    expected = np.full((3, 20), -100)
    for row in range(3):
        for where, label in zip(features["mask_positions"][row], labels[row], strict=True):
            if label >= 0:
                expected[row, where] = label
    np.testing.assert_array_equal(per_token, expected)


def test_positions_of_mask_tokens_without_masking(tokenizer):
    texts = ["[MASK] film [MASK]", "bad"]
    options = {"batch_size": 2, "max_length": 32, "shuffle": False}
    (features,) = ke.data.text(texts, tokenizer, **options)
    assert features["mask_positions"].numpy().tolist() == [[1, 3], [0, 0]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_selection_rate": 0}, "`mask_selection_rate` must be a share from 0 to 1, above 0"),
        ({"mask_token_rate": 1.5}, "`mask_token_rate` must be a share"),
        ({"mask_token_rate": 0.9, "random_token_rate": 0.2}, "of at most 1 together"),
        ({"unit": "letter"}, "`unit` must be one of token, word, span"),
        ({"max_span_length": 0}, "`max_span_length` must be an int"),
    ],
)
def test_settings_that_cannot_be_used(settings, message):
    with pytest.raises(InputError, match=message):
        ke.data.Masking(**settings)


def test_tokenizers_that_cannot_mask():
    function = ke.data.Tokenizer(lambda texts, n: [[1]] * len(texts), inputs=ke.data.KERASHUB)
    assert function.mask_id is None and function.vocabulary == []
    with pytest.raises(InputError, match="with a mask token"):
        ke.data.text(["a"], function, batch_size=1, masking=ke.data.Masking())
    backend = Backend(WordLevel({"a": 0, "[UNK]": 1, "[MASK]": 2}, "[UNK]"))
    words = ke.data.as_tokenizer(backend)
    with pytest.raises(InputError, match="marks where words begin"):
        ke.data.text(["a"], words, batch_size=1, masking=ke.data.Masking(unit="word"))


def test_a_file_with_one_text_per_line(tmp_path):
    (tmp_path / "a.txt").write_text("a good film\n\n  bad \n")
    found = ke.data.read_records(tmp_path / "a.txt", label_column=None)
    assert found.texts == ("a good film", "bad") and found.labels is None
    with pytest.raises(InputError, match="one text per line, and neither labels"):
        ke.data.read_records(tmp_path / "a.txt")
