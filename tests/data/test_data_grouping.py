"""Batches of texts of similar length: `group_by_length` and `tokens_per_batch`."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from covering import covering
from test_data_text import make_records

from keras_efficient._errors import InputError
from keras_efficient.data import Records, choose_buckets, padded_tokens, text
from keras_efficient.data._batch_plan import plan_batches

BUCKETS = (8, 16, 48)
#: Arguments of `text`, by what they do.
WAYS = {
    "grouped": {"batch_size": 8, "group_by_length": True},
    "grouped, bucketed": {"batch_size": 8, "group_by_length": True, "buckets": BUCKETS},
    "budget": {"tokens_per_batch": 100},
    "budget, bucketed": {"tokens_per_batch": 100, "buckets": BUCKETS},
}
IN_ORDER = {"tokens_per_batch": 100, "shuffle": False}


def records_of(n):
    """Texts of 3 to 42 tokens, whose labels are their numbers."""
    return Records.of(make_records(n).texts, np.arange(n))


def numbers(dataset):
    """Return the numbers of the texts of each batch."""
    return [labels.numpy().tolist() for _, labels in dataset]


def flat(batches):
    return list(itertools.chain(*batches))


def realistic_lengths(n, seed=0):
    """Lengths like those of the demo's reviews: 27 tokens on average, the longest 79."""
    rng = np.random.default_rng(seed)
    return np.clip(rng.normal(26.9, 11, n).round(), 4, 79).astype(int)


def plan_of(lengths, **options):
    """Return a plan and the lengths of its ranks."""
    defaults = {
        "batch_size": None,
        "tokens_per_batch": None,
        "shuffle": True,
        "mix": True,
        "drop_remainder": False,
    }
    ranked = np.sort(lengths)
    return plan_batches(ranked, **defaults | options), ranked


def dealt(plan, rng):
    """Return the ranks of each batch of an epoch: what the pipeline does with a plan."""
    ranks = plan.ranks
    if plan.chunks is not None:
        order = rng.permutation(len(ranks))
        order = order[np.argsort(plan.chunks[order], kind="stable")]
        ranks = ranks[order][plan.slots]
    return np.split(ranks, np.cumsum(plan.sizes)[:-1])


# --- plans: NumPy only ---------------------------------------------------------------------------

LENGTHS = {
    "realistic": realistic_lengths(1000),
    "all equal": np.full(300, 17),
    "all different": np.arange(1, 200),
    "an outlier": np.array([5] * 100 + [90]),
    "two lengths": np.array([3] * 41 + [64] * 9),
    "one text": np.array([12]),
    "two texts": np.array([12, 80]),
    "hardly a batch": realistic_lengths(9),
}


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_each_text_occurs_once_in_batches_of_the_planned_shapes(lengths):
    rng = np.random.default_rng(0)
    cases = [
        *({"batch_size": size, "mix": mix} for size in (1, 3, 8, 400) for mix in (True, False)),
        *(
            {"tokens_per_batch": max(tokens, int(lengths.max())), "mix": mix}
            for tokens in (0, 256, 10**6)
            for mix in (True, False)
        ),
    ]
    for options in cases:
        plan, ranked = plan_of(lengths, **options)
        planned = sorted(zip(plan.longest(ranked), plan.sizes, strict=True))
        for _ in range(3):
            batches = dealt(plan, rng)
            assert sorted(flat(batches)) == list(range(len(lengths))), options
            assert sorted((ranked[b].max(), len(b)) for b in batches) == planned, options
        if "batch_size" in options:
            full, rest = divmod(len(lengths), options["batch_size"])
            expected = [options["batch_size"]] * full + [rest] * bool(rest)
            assert plan.sizes.tolist() == expected, options
        else:
            assert (plan.longest(ranked) * plan.sizes).max() <= options["tokens_per_batch"]


def test_padding_is_at_most_five_percent_at_batch_32():
    """Six buckets leave about 15% on these lengths."""
    lengths = realistic_lengths(10_605)
    buckets = choose_buckets(lengths, max_length=128)
    assert lengths.sum() < 0.87 * padded_tokens(lengths, buckets)
    for options in ({"batch_size": 32}, {"tokens_per_batch": 1024}):
        plan, ranked = plan_of(lengths, **options)
        padded = (plan.longest(ranked) * plan.sizes).sum()
        assert lengths.sum() > 0.95 * padded, options


def test_budgets_are_used():
    lengths = realistic_lengths(10_605)
    plan, ranked = plan_of(lengths, tokens_per_batch=1024)
    padded = plan.longest(ranked) * plan.sizes
    assert padded.mean() > 0.9 * 1024
    # With buckets all batches but the last one are as large as the budget lets them be.
    bucketed = np.array((16, 32, 48, 80))[np.searchsorted((16, 32, 48, 80), lengths)]
    plan, ranked = plan_of(bucketed, tokens_per_batch=1024, mix=False)
    shapes = set(zip(plan.sizes[:-1].tolist(), plan.longest(ranked)[:-1].tolist(), strict=True))
    assert shapes == {(12, 80), (21, 48), (32, 32), (64, 16)}


def test_a_text_meets_others_in_each_epoch_also_among_the_longest():
    """Sorting by length alone lets the longest texts meet in every epoch."""
    rng = np.random.default_rng(0)
    for options in ({"batch_size": 8}, {"tokens_per_batch": 2048}):
        plan, _ = plan_of(np.arange(1, 256), **options)
        pairs = []
        for _ in range(2):
            batches = dealt(plan, rng)
            pairs.append({p for b in batches for p in itertools.combinations(sorted(b), 2)})
        longest = [{p for p in epoch if min(p) >= 245} for epoch in pairs]
        for one, two in (pairs, longest):
            assert len(one) > 2 and len(one & two) < 0.8 * len(one), options


def test_an_incomplete_batch_consists_of_frequent_lengths():
    lengths = np.array([5] * 50 + [9] * 40 + [60] * 5)
    plan, ranked = plan_of(lengths, batch_size=10)
    assert plan.sizes[-1] == 5 and plan.longest(ranked)[-1] <= 9
    plan, ranked = plan_of(lengths, batch_size=10, drop_remainder=True)
    assert len(plan.ranks) == 90 and (ranked[plan.ranks] == 60).sum() == 5


# --- datasets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("way, n", [*covering([*WAYS, "in order"], [1, 107])])
def test_three_epochs_have_each_text_once_and_the_stats_shapes(tokenizer, way, n):
    options = WAYS.get(way, IN_ORDER)
    records = records_of(n)
    dataset = text(records, tokenizer, **options)
    stats = dataset.stats
    expected = [row.tolist() for row in tokenizer.encode(records.texts)]
    assert dataset.cardinality() == stats.batches
    for _ in range(3):
        seen, shapes, tokens = [], {}, 0
        for features, labels in dataset:
            ids, mask = features["token_ids"].numpy(), features["padding_mask"].numpy()
            for row, real, label in zip(ids, mask, labels.numpy(), strict=True):
                assert row[real == 1].tolist() == expected[label]
            longest = mask.sum(1).max()
            if "buckets" in options:
                longest = BUCKETS[np.searchsorted(BUCKETS, longest)]
            assert ids.shape[1] == longest
            assert ids.size <= options.get("tokens_per_batch", ids.size)
            shapes[ids.shape] = shapes.get(ids.shape, 0) + 1
            tokens += mask.sum()
            seen += labels.numpy().tolist()
        assert sorted(seen) == list(range(n))
        assert {(batch, length): count for batch, length, count in stats.shapes} == shapes
        assert (stats.examples, stats.tokens, stats.batches) == (n, tokens, sum(shapes.values()))
        assert stats.padded_tokens == sum(b * length * c for (b, length), c in shapes.items())
    if way == "in order":
        assert seen == list(range(n))


@pytest.mark.parametrize("way", ["grouped", "budget"])
def test_epochs_differ_and_seeds_repeat(tokenizer, way):
    options = {**WAYS[way], "seed": 3}
    records = records_of(107)
    one = text(records, tokenizer, **options)
    first = [numbers(one) for _ in range(3)]
    assert first[0] != first[1] != first[2] != first[0]
    # Not only the order of the batches differs.
    for a, b in itertools.combinations(first, 2):
        assert len(set(map(frozenset, a)) & set(map(frozenset, b))) < 0.5 * len(a)
    lengths = [features["token_ids"].shape[1] for features, _ in one]
    assert lengths != sorted(lengths) and lengths != sorted(lengths, reverse=True)
    tf.random.set_seed(99)
    again = text(records, tokenizer, **options).repeat(3)
    assert numbers(again) == flat(first)
    assert numbers(text(records, tokenizer, **options, first_epoch=2)) == first[2]
    assert numbers(text(records, tokenizer, **options | {"seed": 4})) != first[0]


@pytest.mark.parametrize("way", ["grouped", "budget"])
def test_an_iterators_checkpoint_continues_in_the_middle_of_an_epoch(tokenizer, tmp_path, way):
    """Also with one batch left: then the pipeline has read ahead to the end of the epoch."""

    def iterator():
        return iter(text(records_of(107), tokenizer, seed=3, **WAYS[way]).repeat(2))

    whole = numbers(iterator())
    for batches in (5, len(whole) // 2 - 1):
        running = iterator()
        for _ in range(batches):
            next(running)
        path = tf.train.Checkpoint(iterator=running).save(str(tmp_path / "c"))
        restored = iterator()
        tf.train.Checkpoint(iterator=restored).restore(path)
        assert numbers(restored) == numbers(running) == whole[batches:]


@pytest.mark.parametrize("way", ["grouped", "budget"])
def test_two_replicas_share_each_batch(tokenizer, way):
    """With sizes taken from a neighbour, texts of different padded lengths would be joined."""

    def make():
        return text(records_of(107), tokenizer, seed=3, **WAYS[way] | {"max_length": 64})

    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    distributed = strategy.experimental_distribute_dataset(make())
    shared = []
    for features, labels in distributed:
        ids = strategy.experimental_local_results(features["token_ids"])
        assert len(ids) == 2 and ids[0].shape[1] == ids[1].shape[1]
        labels = strategy.experimental_local_results(labels)
        assert 0 <= len(labels[0]) - len(labels[1]) <= 1
        shared.append(tf.concat(labels, 0).numpy().tolist())
    assert shared == numbers(make())


def test_batches_of_one_text_reach_two_replicas(tokenizer):
    """Two of the texts fill the budget alone, so that one replica gets no text."""
    texts = ["w1 " * 40, "w2 " * 40, "w3", "w4"]
    dataset = text(Records.of(texts, np.arange(4)), tokenizer, tokens_per_batch=50, seed=3)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    shared = []
    for _, labels in strategy.experimental_distribute_dataset(dataset):
        shared.append(
            [label.numpy().tolist() for label in strategy.experimental_local_results(labels)]
        )
    assert sorted(flat(flat(shared))) == list(range(4))
    assert sorted(len(flat(batch)) for batch in shared) == [1, 1, 2]


def test_drop_remainder_leaves_out_others_each_time(tokenizer):
    records = records_of(43)
    dataset = text(
        records, tokenizer, batch_size=8, group_by_length=True, drop_remainder=True, seed=1
    )
    seen = set()
    for _ in range(12):
        batches = numbers(dataset)
        assert [len(batch) for batch in batches] == [8] * 5
        assert len(set(flat(batches))) == 40 == dataset.stats.examples
        # The omitted ones have the same lengths in each epoch.
        assert sum(len(records.texts[i].split()) + 2 for i in flat(batches)) == dataset.stats.tokens
        seen.update(flat(batches))
    assert seen == set(range(43))
    assert dataset.cardinality() == dataset.stats.batches == 5
    assert dataset.element_spec[0]["token_ids"].shape.as_list() == [8, None]


def test_a_single_bucket_makes_the_length_static(tokenizer):
    records = records_of(20)
    budget = text(records, tokenizer, tokens_per_batch=100, buckets=(48,))
    assert budget.element_spec[0]["token_ids"].shape.as_list() == [None, 48]
    assert budget.stats.shapes == ((2, 48, 10),)
    fixed = text(
        records,
        tokenizer,
        batch_size=8,
        group_by_length=True,
        buckets=(48,),
        drop_remainder=True,
    )
    assert fixed.element_spec[0]["token_ids"].shape.as_list() == [8, 48]


def test_texts_of_one_length(tokenizer):
    texts = [f"w{i} w1 w2" for i in range(30)]
    for options, sizes in (
        ({"batch_size": 8, "group_by_length": True}, [8, 8, 8, 6]),
        # 30 texts of 5 tokens: 8 would fit, and 4 batches are needed.
        ({"tokens_per_batch": 40}, [7, 7, 8, 8]),
    ):
        dataset = text(Records.of(texts, np.arange(30)), tokenizer, **options)
        first, second = numbers(dataset), numbers(dataset)
        assert sorted(map(len, first)) == sorted(map(len, second)) == sorted(sizes)
        assert not set(map(frozenset, first)) & set(map(frozenset, second))
        assert dataset.stats.padding_share == 0


def test_stats_print_budgets_and_many_shapes(tokenizer):
    stats = text(records_of(107), tokenizer, tokens_per_batch=100).stats
    assert (stats.batch_size, stats.tokens_per_batch) == (None, 100)
    first, shapes, _ = str(stats).splitlines()
    assert first.startswith(f"107 texts in {stats.batches} batches of at most 100 tokens: ")
    assert shapes.startswith(f"batches: {len(stats.shapes)} shapes, ") and ", ..., " in shapes
    assert shapes.count(" of [") == 4
    few = text(records_of(107), tokenizer, **WAYS["grouped, bucketed"]).stats
    assert str(few).splitlines()[1].count(" of [") == len(few.shapes) and few.batch_size == 8


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "either `batch_size`.*or `tokens_per_batch`.*batch_size=None, tokens_per_batch=None"),
        ({"batch_size": 8, "tokens_per_batch": 64}, "either `batch_size`.*=8, .*=64"),
        ({"tokens_per_batch": 0}, "`tokens_per_batch` must be an integer of 1 or more"),
        ({"tokens_per_batch": 64.0}, "`tokens_per_batch` must be an integer"),
        ({"tokens_per_batch": True}, "`tokens_per_batch` must be an integer"),
        ({"tokens_per_batch": 41}, "must fit into tokens_per_batch=41.*42 tokens, padded to 42"),
        ({"tokens_per_batch": 41, "shuffle": False}, "must fit into tokens_per_batch=41"),
        ({"tokens_per_batch": 47, "buckets": (48,)}, "must fit.*padded to 48.*Raise"),
        ({"tokens_per_batch": 64, "drop_remainder": True}, "`drop_remainder` needs `batch_size`"),
        ({"batch_size": 8, "group_by_length": True, "shuffle": False}, "needs shuffle=True"),
        ({"batch_size": 0, "group_by_length": True}, "`batch_size` must be an integer of 1"),
        ({"batch_size": 8, "group_by_length": True, "buckets": (8,)}, "must hold the longest text"),
        (
            {"batch_size": 200, "group_by_length": True, "drop_remainder": True},
            "must be a full batch",
        ),
    ],
)
def test_bad_arguments(tokenizer, kwargs, message):
    with pytest.raises(InputError, match=message):
        text(make_records(), tokenizer, **{"max_length": 64, **kwargs})
