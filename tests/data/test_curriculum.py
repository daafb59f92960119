"""Curricula: the easiest texts first, and short batches first."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

import keras_efficient as ke
from keras_efficient._errors import InputError
from keras_efficient.data import Records

TEXTS = [f"w{i} " * (1 + i % 7) for i in range(20)]


@pytest.fixture
def records():
    return Records.of(TEXTS, [f"{i:02}" for i in range(20)])


def test_epochs_of_the_easiest_texts_come_first(tokenizer, records):
    scores = np.random.default_rng(0).permutation(20)
    data = ke.data.curriculum(
        records,
        scores,
        lambda easy: ke.data.text(easy, tokenizer, batch_size=4, seed=1),
        shares=(0.25, 0.6),
    )
    seen = [labels.numpy().tolist() for _, labels in data.take(2 + 3 + 5 + 5)]
    order = np.argsort(scores)
    epochs = [list(itertools.chain(*seen[a:b])) for a, b in ((0, 2), (2, 5), (5, 10), (10, 15))]
    assert [len(batch) for batch in seen[:2]] == [4, 1]
    for epoch, share in zip(epochs, (5, 12, 20), strict=False):
        assert sorted(epoch) == sorted(order[:share].tolist())
    assert epochs[2] != epochs[3] and data.stats.batches == 5


def test_saved_positions_go_on_across_epochs(tokenizer, records, tmp_path):
    def make():
        data = ke.data.curriculum(
            records,
            np.arange(20),
            lambda r: ke.data.text(r, tokenizer, batch_size=4),
            shares=(0.3,),
        )
        return iter(data)

    whole = make()
    expected = [next(whole)[1].numpy().tolist() for _ in range(12)]
    first = make()
    for _ in range(5):
        next(first)
    path = tf.train.Checkpoint(iterator=first).save(str(tmp_path / "position"))
    again = make()
    tf.train.Checkpoint(iterator=again).restore(path)
    assert [next(again)[1].numpy().tolist() for _ in range(7)] == expected[5:]


def test_scores_and_shares_that_cannot_be_used(records):
    for scores in (np.arange(19), [np.nan] * 20, None):
        with pytest.raises(InputError, match="`scores` must be a finite number for each"):
            ke.data.curriculum(records, np.asarray(scores, float), lambda r: r)
    for shares in ((0.5, 0.4), (0.5, 1.0), (0,)):
        with pytest.raises(InputError, match="`shares` must increase"):
            ke.data.curriculum(records, np.arange(20), lambda r: r, shares=shares)


def test_lengths_grow_by_steps(tokenizer):
    data = ke.data.text(TEXTS, tokenizer, batch_size=20, shuffle=False, buckets=[64]).repeat()
    short = ke.data.length_warmup(data, steps=6, start=10)
    lengths = [batch["token_ids"].shape[1] for batch in short.take(9)]
    assert lengths == [8, 16, 24, 32, 40, 48, 64, 64, 64]
    whole = next(iter(data))
    first = next(iter(short))
    for name, tensor in first.items():
        np.testing.assert_array_equal(tensor, whole[name][:, :8])
    # Labels of tokens are cut, labels of texts are not.
    both = tf.data.Dataset.from_tensors((tf.zeros([2, 30]), (tf.zeros([2, 30]), tf.zeros([2]))))
    x, (tags, label) = next(iter(ke.data.length_warmup(both, steps=3, start=16)))
    assert (x.shape[1], tags.shape[1], label.shape) == (16, 16, (2,))
    # Batches that are shorter than the start stay whole.
    tiny = tf.data.Dataset.from_tensors(tf.zeros([2, 5])).repeat()
    assert next(iter(ke.data.length_warmup(tiny, steps=3, start=16))).shape == (2, 5)


def test_length_warmup_refuses(tokenizer):
    data = tf.data.Dataset.from_tensors(tf.zeros([2, 5]))
    with pytest.raises(InputError, match="`steps` must be an int of 1 or more"):
        ke.data.length_warmup(data, steps=0)
    with pytest.raises(InputError, match="Length warm-up shortens tensors"):
        ke.data.length_warmup(tf.data.Dataset.from_tensors(tf.zeros([2])), steps=2)
