"""Rows of several texts: best fit, what is in them, and their order."""

import numpy as np
import pytest
import tensorflow as tf

import keras_efficient as ke
from keras_efficient._errors import InputError
from keras_efficient.data import Records
from keras_efficient.data._pack import best_fit

#: 60 texts of 1 to 21 words, each of one token, which begin with their number.
COUNTS = np.random.default_rng(0).integers(0, 21, 60)
TEXTS = [" ".join([f"w{i}", *["w199"] * count]) for i, count in enumerate(COUNTS)]
LABELS = [f"{i:02}" for i in range(60)]


@pytest.mark.parametrize("most", [1, 3, 100])
def test_rows_are_full_and_have_space(most):
    lengths = np.sort(np.random.default_rng(1).integers(1, 17, 200))
    rows = best_fit(lengths, 16, most)
    places = rows[rows >= 0]
    assert sorted(places) == list(range(200)) and rows.shape[1] == most
    sums = np.where(rows < 0, 0, lengths[np.maximum(rows, 0)]).sum(1)
    assert sums.max() <= 16
    if most == 100:
        # No two rows fit into one, and the space is close to the least possible.
        assert (np.sort(sums)[:2].sum()) > 16 and len(rows) <= 1.05 * lengths.sum() / 16 + 1
    if most == 1:
        assert len(rows) == 200


def unpacked(data):
    """Return the ids of each text and its label, from packed batches."""
    found = []
    for features, labels, weights in data:
        ids, mask = features["token_ids"].numpy(), features["padding_mask"].numpy()
        there = weights.numpy() > 0
        np.testing.assert_allclose(
            weights.numpy()[there], weights.numpy().size / there.sum(), rtol=1e-6
        )
        for row in range(len(ids)):
            numbers = mask[row]
            count = numbers.max()
            assert there[row].tolist() == [i < count for i in range(there.shape[1])]
            real = numbers[numbers > 0]
            assert (np.diff(real) >= 0).all() and (numbers[len(real) :] == 0).all()
            assert (ids[row][numbers == 0] == 0).all()
            for text in range(1, count + 1):
                own = ids[row][numbers == text].tolist()
                found.append((int(labels[row, text - 1]), own))
    return found


def make(tokenizer, records=None, **options):
    options = {"batch_size": 4, "row_length": 32, "texts_per_row": 5} | options
    return ke.data.pack(records or Records.of(TEXTS, LABELS), tokenizer, **options)


def test_every_text_is_once_in_an_epoch_as_it_is_alone(tokenizer, vocabulary):
    data = make(tokenizer)
    spec = data.element_spec
    assert spec[0]["token_ids"].shape == (4, 32) and spec[1].shape == spec[2].shape == (4, 5)
    alone = {
        label: [vocabulary.index("[CLS]"), *(vocabulary.index(w) for w in text.split()), 3]
        for label, text in enumerate(TEXTS)
    }
    epochs = [unpacked(data) for _ in range(2)]
    for epoch in epochs:
        assert len(epoch) == 60 and dict(epoch) == alone
    assert epochs[0] != epochs[1]
    stats = data.stats
    assert stats.batches == len(list(data)) and stats.padded_tokens == 128 * stats.batches
    assert stats.tokens == sum(map(len, alone.values())) and stats.padding_share < 0.2
    assert unpacked(make(tokenizer, first_epoch=1)) == epochs[1]
    assert unpacked(make(tokenizer, seed=1)) != epochs[0]
    fixed = make(tokenizer, shuffle=False)
    assert unpacked(fixed) == unpacked(fixed)


def test_long_texts_are_truncated(tokenizer):
    data = make(tokenizer, row_length=10)
    assert max(len(ids) for _, ids in unpacked(data)) == 10 and data.stats.truncated > 5


def test_saved_iterators_go_on(tokenizer, tmp_path):
    expected = [b[0]["token_ids"].numpy() for b in make(tokenizer).repeat(2)]
    iterator = iter(make(tokenizer).repeat(2))
    for _ in range(len(expected) // 2 + 2):
        next(iterator)
    path = tf.train.Checkpoint(iterator=iterator).save(str(tmp_path / "position"))
    iterator = iter(make(tokenizer).repeat(2))
    tf.train.Checkpoint(iterator=iterator).restore(path)
    rest = [b[0]["token_ids"].numpy() for b in iterator]
    np.testing.assert_array_equal(rest, expected[len(expected) // 2 + 2 :])


def test_texts_without_labels_pairs_and_texts_on_a_disk(tokenizer, tmp_path):
    (features,) = make(tokenizer, Records.of(TEXTS[:8]), batch_size=8).take(1)
    assert sorted(features) == ["padding_mask", "segment_ids", "token_ids"]
    pairs = Records.of(TEXTS[:8], LABELS[:8], second_texts=["w1 w2"] * 8)
    for features, _, _ in make(tokenizer, pairs):
        mask, segments = (features[k].numpy() for k in ("padding_mask", "segment_ids"))
        for text in range(1, mask.max() + 1):
            counts = [(segments[row][mask[row] == text] == 1).sum() for row in range(len(mask))]
            assert set(counts) <= {0, 3}
    (tmp_path / "a.txt").write_text("\n".join(TEXTS))
    stored = ke.data.tokenize_to_disk(
        tmp_path / "a.txt", tokenizer, tmp_path / "tokens", label_column=None, max_length=32
    )
    pairs = zip(make(tokenizer, stored), make(tokenizer, Records.of(TEXTS)), strict=True)
    for one, other in pairs:
        np.testing.assert_array_equal(one["token_ids"], other["token_ids"])
    with pytest.raises(InputError, match="Each text must fit into a row of 12 tokens"):
        make(tokenizer, stored, row_length=12)


def test_arguments_that_cannot_be_used(tokenizer, backend):
    for name in ("batch_size", "row_length", "texts_per_row"):
        with pytest.raises(InputError, match=f"`{name}` must be an integer"):
            make(tokenizer, **{name: 0})
    bare = ke.data.Tokenizer(backend, inputs={"ids": "ids"}, max_length=32)
    with pytest.raises(InputError, match="told apart by the padding mask"):
        make(bare)
    targets = ke.data.Records.of(TEXTS[:2], ["w1", "w2"], encode=ke.tasks.get("seq2seq").encode)
    with pytest.raises(InputError, match="Labels of packed texts are classes, numbers or tags"):
        make(tokenizer, targets)
