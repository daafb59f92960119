import itertools
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tokenizers
from covering import covering, sampled

import keras_efficient
from keras_efficient._errors import InputError
from keras_efficient.data import KERASHUB, Records, Tokenizer, text

ROOT = pathlib.Path(keras_efficient.__file__).parent.parent


def make_records(n=107, seed=0):
    """Make different texts of 1 to 40 words, whose labels follow from their first words."""
    rng = np.random.default_rng(seed)
    sizes = np.minimum(rng.geometric(0.1, size=n), 40)
    texts = [
        " ".join([f"w{i}", *(f"w{j}" for j in rng.integers(0, 200, size=size - 1))])
        for i, size in enumerate(sizes)
    ]
    return Records.of(texts, np.arange(n) % 3)


def contents(batch):
    """Return the ids, without padding, and the label of each text of a batch."""
    features, labels = batch
    ids, mask = features["token_ids"].numpy(), features["padding_mask"].numpy()
    return [
        (tuple(row[keep == 1].tolist()), int(label))
        for row, keep, label in zip(ids, mask, labels.numpy(), strict=True)
    ]


def epoch(dataset):
    return [contents(batch) for batch in dataset]


def firsts(dataset):
    """Return the numbers of the texts in order; the first word of text i is w<i>."""
    return [row[1] - 4 for batch in dataset for row in batch[0]["token_ids"].numpy().tolist()]


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_epoch_has_each_text_once_with_its_label(tokenizer, shuffle):
    records = make_records()
    ids = [tuple(row.tolist()) for row in tokenizer.encode(records.texts)]
    expected = sorted(zip(ids, records.labels.tolist(), strict=True))
    dataset = text(records, tokenizer, batch_size=8, max_length=64, shuffle=shuffle)
    for _ in range(3):
        batches = epoch(dataset)
        assert [len(batch) for batch in batches] == [8] * 13 + [3]
        assert sorted(itertools.chain(*batches)) == expected
    assert dataset.cardinality() == dataset.stats.batches == 14


def test_features_are_padded_masked_and_typed(backend):
    tokenizer = Tokenizer(backend, inputs=KERASHUB, pad_id=1)
    dataset = text(make_records(), tokenizer, batch_size=8)
    for features, labels in dataset:
        ids, mask = features["token_ids"].numpy(), features["padding_mask"].numpy()
        assert ((ids == 1) == (mask == 0)).all()
        assert (np.diff(mask, axis=1) <= 0).all()  # padding only at the end
        assert (features["segment_ids"].numpy() == 0).all()
        assert {f.dtype for f in features.values()} | {labels.dtype} == {tf.int32}
        assert {f.shape.as_list()[1] for f in features.values()} == {ids.shape[1]}


@sampled()
@pytest.mark.parametrize(
    "batch_size, shuffle",
    covering([1, 7, 8, 200], [True, False], strength=1),
)
def test_stats_are_the_counted_ones_in_every_epoch(tokenizer, shuffle, batch_size):
    dataset = text(make_records(), tokenizer, batch_size=batch_size, shuffle=shuffle)
    stats = dataset.stats
    for _ in range(3):
        tokens, shapes = 0, {}
        for features, _ in dataset:
            shape = tuple(features["token_ids"].shape)
            shapes[shape] = shapes.get(shape, 0) + 1
            tokens += int(tf.reduce_sum(features["padding_mask"]))
        padded = sum(batch * length * count for (batch, length), count in shapes.items())
        assert {(batch, length): count for batch, length, count in stats.shapes} == shapes
        assert (stats.tokens, stats.padded_tokens) == (tokens, padded)
        assert stats.padding_share == pytest.approx(1 - tokens / padded)
    assert f"{stats.padding_share:.1%} padding" in str(stats)


def test_few_shapes_and_less_padding_than_unbucketed(tokenizer):
    records = make_records()
    dataset = text(records, tokenizer, batch_size=8, buckets=(8, 16, 24, 48))
    assert len(dataset.stats.shapes) <= 4 + 1
    assert {length for _, length, _ in dataset.stats.shapes} <= {8, 16, 24, 48}
    plain = text(records, tokenizer, batch_size=8, buckets=(8, 16, 24, 48), shuffle=False)
    assert dataset.stats.padding_share < 0.7 * plain.stats.padding_share


def test_batches_of_different_lengths_are_mixed(tokenizer):
    dataset = text(make_records(), tokenizer, batch_size=8)
    lengths = [features["token_ids"].shape[1] for features, _ in dataset]
    assert lengths[:-1] != sorted(lengths[:-1])


def test_without_shuffling_the_order_is_the_inputs(tokenizer):
    dataset = text(make_records(), tokenizer, batch_size=8, shuffle=False)
    for _ in range(2):
        assert firsts(dataset) == list(range(107))


def test_epochs_differ_and_seeds_repeat(tokenizer):
    records = make_records()
    one = text(records, tokenizer, batch_size=8, seed=3)
    first = [firsts(one) for _ in range(3)]
    assert first[0] != first[1] != first[2] != first[0]
    tf.random.set_seed(99)
    again = text(records, tokenizer, batch_size=8, seed=3)
    assert [firsts(again) for _ in range(3)] == first
    assert firsts(text(records, tokenizer, batch_size=8, seed=4)) != first[0]
    assert firsts(text(records, tokenizer, batch_size=8, seed=3, first_epoch=2)) == first[2]
    repeated = text(records, tokenizer, batch_size=8, seed=3).repeat(3)
    assert firsts(repeated) == list(itertools.chain(*first))


OTHER_PROCESS = """
import sys, keras_efficient.data as data
heavy = {'tensorflow', 'keras', 'tf_keras', 'transformers', 'tensorflow_model_optimization'}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
data.text
import keras_efficient.data._text
assert callable(data.text) and not heavy & set(sys.modules) - {'tensorflow', 'keras'}

import tensorflow as tf
sys.path[:0] = sys.argv[1:]
from conftest import word_piece
from test_data_text import KERASHUB, WAYS, Tokenizer, firsts, make_records, text
tf.random.set_seed(7)
for options in WAYS:
    dataset = text(make_records(), Tokenizer(word_piece(), inputs=KERASHUB), seed=3, **options)
    print([firsts(dataset) for _ in range(2)])
"""
WAYS = ({"batch_size": 8}, {"batch_size": 8, "group_by_length": True}, {"tokens_per_batch": 100})


@pytest.mark.full
def test_another_process_sees_the_same_epochs_and_imports_no_model_library(tokenizer):
    datasets = [text(make_records(), tokenizer, seed=3, **options) for options in WAYS]
    here = [str([firsts(dataset) for _ in range(2)]) for dataset in datasets]
    done = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESS, *map(str, pathlib.Path(__file__).parents[:2])],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == here


def test_two_replicas_see_the_same_epochs(tokenizer):
    def make():
        return text(make_records(), tokenizer, batch_size=8, seed=3)

    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    distributed = strategy.experimental_distribute_dataset(make())

    def replicas():
        for batch in distributed:
            ids = strategy.experimental_local_results(batch[0]["token_ids"])
            assert len(ids) == 2 and ids[0].shape[1] == ids[1].shape[1], ids
            yield ({"token_ids": tf.concat(ids, 0)},)

    dataset = make()
    for _ in range(2):
        assert firsts(replicas()) == firsts(dataset)


def test_an_iterators_checkpoint_continues(tokenizer, tmp_path):
    records = make_records()

    def iterator():
        return iter(text(records, tokenizer, batch_size=2, seed=3).repeat(2))

    running = iterator()
    for _ in range(10):
        next(running)
    path = tf.train.Checkpoint(iterator=running).save(str(tmp_path / "c"))
    restored = iterator()
    tf.train.Checkpoint(iterator=restored).restore(path)
    assert firsts(restored) == firsts(running)


def test_drop_remainder_leaves_out_others_each_time(tokenizer):
    records = make_records(n=43)
    dataset = text(records, tokenizer, batch_size=8, drop_remainder=True)
    seen, counts = set(), []
    for _ in range(12):
        numbers = firsts(dataset)
        assert len(set(numbers)) == len(numbers) == 40 == dataset.stats.examples
        seen.update(numbers)
        padded = sum(int(tf.size(features["token_ids"])) for features, _ in dataset)
        assert padded == dataset.stats.padded_tokens
        counts.append(sum(len(records.texts[i].split()) + 2 for i in numbers))
    assert seen == set(range(43))
    assert min(counts) <= dataset.stats.tokens <= max(counts)
    assert dataset.element_spec[0]["token_ids"].shape.as_list() == [8, None]
    plain = text(records, tokenizer, batch_size=8, drop_remainder=True, shuffle=False)
    assert firsts(plain) == list(range(40))


def test_static_shapes(tokenizer):
    records = make_records()
    dynamic = text(records, tokenizer, batch_size=8)
    assert dynamic.element_spec[0]["token_ids"].shape.as_list() == [None, None]
    fixed = text(records, tokenizer, batch_size=8, buckets=(48,), drop_remainder=True)
    assert fixed.element_spec[0]["padding_mask"].shape.as_list() == [8, 48]
    assert fixed.element_spec[1].shape.as_list() == [8]


def test_sources_and_missing_labels(tokenizer, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\nw1 w2,pos\nw3,neg\n")
    pairs = [("w1 w2", "pos"), ("w3", "neg")]
    expected = [[((2, 5, 6, 3), 1), ((2, 7, 3), 0)]]
    for records in (str(path), path, pairs, Records.of(pairs)):
        assert epoch(text(records, tokenizer, batch_size=2, shuffle=False)) == expected
    (features,) = text(["w1 w2", "w3"], tokenizer, batch_size=2, shuffle=False)
    assert features["token_ids"].numpy().tolist() == [[2, 5, 6, 3] + [0] * 4, [2, 7, 3] + [0] * 5]


def test_only_the_models_inputs_are_fed(backend):
    tokenizer = Tokenizer(backend, inputs={"ids": "x"})
    assert set(text(["w1"], tokenizer, batch_size=1).element_spec) == {"x"}
    assert set(text(["w1"], backend, batch_size=1).element_spec) == {
        "input_ids",
        "attention_mask",
        "token_type_ids",
    }


def test_truncated_texts_are_counted(tokenizer):
    dataset = text(["w1 w2 w3", "w1 w2 w3 w4", "w1"], tokenizer, batch_size=3, max_length=5)
    assert dataset.stats.truncated == 1
    assert dataset.stats.shapes == ((3, 5, 1),)


def test_stats_tell_how_much_is_cut(tokenizer, backend):
    """Texts cut at `max_length` were not mentioned anywhere before training."""
    texts = ["w1 " * 40, "w1 w2 w3 w4", "w1"]
    stats = text(texts, tokenizer, batch_size=3, max_length=5).stats
    assert stats.longest == 42
    assert stats.truncation == "2 of 3 texts (66.7%) are cut at 5 tokens, the longest has 42"
    assert stats.truncation in str(stats)
    assert text(texts[1:], tokenizer, batch_size=3).stats.truncation == "no text is cut"
    # Truncation on the left cuts off the beginning, and is counted like the other.
    left = tokenizers.Tokenizer.from_str(backend.to_str())
    left.enable_truncation(50, direction="left")
    stats = text(texts, Tokenizer(left, inputs=KERASHUB), batch_size=3, max_length=6).stats
    assert (stats.truncated, stats.longest) == (1, 42)

    def function(texts, max_length):
        return tokenizer.encode(texts, max_length)

    wrapped = Tokenizer(function, inputs=KERASHUB, max_length=64)
    stats = text(texts, wrapped, batch_size=3, max_length=5).stats
    assert stats.truncation == "2 of 3 texts (66.7%) are cut at 5 tokens"


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be an integer of 1 or more. Received: 0"),
        ({"batch_size": True}, "`batch_size` must be"),
        ({"batch_size": 2.0}, "`batch_size` must be"),
        ({"seed": -1}, "`seed` must be"),
        ({"seed": None}, "`seed` must be"),
        ({"first_epoch": -1}, "`first_epoch` must be"),
        ({"max_length": 2}, "from 3 to the tokenizer's 128"),
        ({"max_length": 129}, "from 3 to the tokenizer's 128.*Received: 129"),
        ({"buckets": (16, 8)}, "must ascend"),
        ({"buckets": (0, 64)}, "must be positive integers"),
        ({"buckets": (8, 16)}, "must hold the longest text, 42 tokens"),
        ({"buckets": (64, 136)}, "exceed the tokenizer's max_length=128"),
        ({"batch_size": 200, "drop_remainder": True}, "must be a full batch.*107 texts"),
        ({"records": []}, "at least one text"),
        ({"records": ["w1", ("w2", 1)]}, "Either every item or none"),
        ({"records": "missing.csv"}, "must exist"),
    ],
)
def test_bad_arguments(tokenizer, kwargs, message):
    kwargs = {"records": make_records(), "batch_size": 8, "max_length": 64, **kwargs}
    with pytest.raises(InputError, match=message):
        text(kwargs.pop("records"), tokenizer, **kwargs)


def test_a_text_without_tokens():
    tokenizer = Tokenizer(lambda texts, n: [[5]] * (len(texts) - 1) + [[]], inputs=KERASHUB)
    with pytest.raises(InputError, match=r"must have a token\. Received: 'b'.*item 1"):
        text(["a", "b"], tokenizer, batch_size=1)


def test_type_errors(tokenizer):
    with pytest.raises(TypeError, match="batchsize"):
        text(["w1"], tokenizer, batchsize=8)
    with pytest.raises(TypeError, match="`tokenizer` must be"):
        text(["w1"], "bert", batch_size=8)


def test_pairs_have_segments_and_labels_keep_their_kind(tokenizer):
    """Of pairs of texts the second one is marked; labels may be numbers or rows."""
    firsts, seconds = ["w1 w2", "w3"], ["w4", "w5 w6 w7"]
    numbers = Records(tuple(firsts), [0.5, 2.0], second_texts=tuple(seconds))
    features, labels = next(iter(text(numbers, tokenizer, batch_size=2, shuffle=False)))
    ids, segments, *_ = tokenizer.encode_pairs(firsts, seconds)
    for row in range(2):
        length = len(ids[row])
        assert features["token_ids"][row, :length].numpy().tolist() == ids[row].tolist()
        assert features["segment_ids"][row, :length].numpy().tolist() == segments[row].tolist()
        assert not features["segment_ids"][row, length:].numpy().any()
    assert labels.dtype == tf.float32 and labels.numpy().tolist() == [0.5, 2.0]
    several = Records(tuple(firsts), [[1, 0, 1], [0, 0, 1]], ("a", "b", "c"))
    _, labels = next(iter(text(several, tokenizer, batch_size=2, shuffle=False)))
    assert labels.numpy().tolist() == [[1, 0, 1], [0, 0, 1]]
