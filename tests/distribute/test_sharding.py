"""Sharding: the workers' parts of each batch together are the batch of a single process."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
import workers
from covering import sampled
from tensorflow.python.data.experimental.ops.distribute import _AutoShardDataset

from keras_efficient.distribute import shard

POLICIES = tf.data.experimental.AutoShardPolicy
N, BATCH = 21, 10
#: How many steps are taken of the endless one; the others have two epochs.
ENDLESS, STEPS = "repeated", 7
FILES = {"one file": 1, "two files": 2, "five files": 5}


def records(folder, name):
    """Write the ids from 0 to N - 1 to TFRecord files; return their paths."""
    count = FILES[name]
    paths = [f"{folder}/{count}-{index}.tfrecord" for index in range(count)]
    for index, path in enumerate(paths):
        with tf.io.TFRecordWriter(path) as writer:
            for number in np.array_split(np.arange(N), count)[index]:
                writer.write(str(number).encode())
    return paths


def read(paths):
    numbers = tf.data.TFRecordDataset(list(paths))
    return numbers.map(lambda text: tf.strings.to_number(text, tf.int64))


def with_policy(dataset, policy):
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = policy
    return dataset.with_options(options)


def texts(**options):
    """`ke.data.text` over N texts of 1 to 7 tokens, whose labels are the ids."""
    import tokenizers

    import keras_efficient as ke

    words = {"[UNK]": 0, "[PAD]": 1, "film": 2}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    pairs = [("film " * (1 + number % 7), number) for number in range(N)]
    return ke.data.text(pairs, tokenizer, seed=3, **options).map(
        lambda features, label: tf.cast(label, tf.int64)
    )


def datasets(paths):
    """Return global batches of ids from all kinds of datasets; some use TensorFlow's seed."""
    numbers = tf.data.Dataset.range(N)
    slices = tf.data.Dataset.from_tensor_slices(np.arange(N))
    generator = tf.data.Dataset.from_generator(
        lambda: iter(range(N)), output_signature=tf.TensorSpec((), tf.int64)
    )
    return {
        "range": numbers.batch(BATCH),
        "slices": slices.batch(BATCH),
        "batch not divisible": slices.batch(7),
        "only ragged": slices.take(1).batch(BATCH),
        "generator": generator.batch(BATCH),
        "shuffled": numbers.shuffle(N).batch(BATCH),
        "shuffled and cached": numbers.cache().shuffle(5).batch(BATCH).prefetch(1),
        "without remainder": slices.batch(BATCH, drop_remainder=True),
        ENDLESS: slices.batch(BATCH).repeat(),
        "dict": slices.map(lambda number: {"id": number}).batch(BATCH).map(lambda x: x["id"]),
        "text": texts(batch_size=BATCH),
        "text by length": texts(batch_size=BATCH, group_by_length=True),
        # Batches of one to seven texts.
        "text by tokens": texts(tokens_per_batch=7),
        **{name: read(paths[name]).batch(BATCH) for name in FILES},
        "data as asked": with_policy(slices.batch(BATCH), POLICIES.DATA),
    }


def epochs(dataset, name, ids):
    """Return the ids of each batch of two epochs, or of STEPS batches for ENDLESS."""
    if name == ENDLESS:
        return [[ids(batch) for batch, _ in zip(dataset, range(STEPS), strict=False)]]
    return [[ids(batch) for batch in dataset] for _ in range(2)]


def shares(paths):
    """Return this worker's batches of each dataset, and its first random numbers."""
    import keras_efficient as ke

    strategy = ke.strategy("auto", start_timeout=300)

    def ids(batch):
        return np.concatenate(strategy.experimental_local_results(batch)).tolist()

    seen = {}
    for name, dataset in datasets(paths).items():
        seen[name] = epochs(strategy.experimental_distribute_dataset(dataset), name, ids)
    by_file = with_policy(read(paths["five files"]).batch(BATCH), POLICIES.FILE)
    off = with_policy(tf.data.Dataset.range(N).batch(BATCH), POLICIES.OFF)
    kept = {"file": by_file, "off": off}
    for name, dataset in kept.items():
        seen[name] = epochs(strategy.experimental_distribute_dataset(dataset), name, ids)
    import keras
    import tf_keras

    drawn = [
        float(np.ravel(library.layers.Dense(1)(np.ones((1, 1))))[0])
        for library in (keras, tf_keras)
    ]
    return seen, drawn


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    return {name: records(folder, name) for name in FILES}


@pytest.fixture(scope="module", params=[pytest.param(2, marks=pytest.mark.full), 3])
def seen(request, paths):
    """What `shares` returns on each worker."""
    return workers.run(shares, paths, count=request.param, timeout=600)


@pytest.fixture(scope="module")
def alone(paths):
    """The batches of a single process."""
    tf.random.set_seed(0)
    return {
        name: epochs(dataset, name, lambda batch: batch.numpy().tolist())
        for name, dataset in datasets(paths).items()
    }


NAMES = (
    "range",
    "slices",
    "batch not divisible",
    "only ragged",
    "generator",
    "shuffled",
    "shuffled and cached",
    "without remainder",
    ENDLESS,
    "dict",
    "text",
    "text by length",
    "text by tokens",
    *FILES,
    "data as asked",
)


def flat(batches):
    return sorted(itertools.chain(*batches))


@sampled(5)
@pytest.mark.parametrize("name", NAMES)
def test_the_workers_shares_of_a_step_are_the_batch_of_one_process(name, seen, alone):
    each = [of_worker[name] for of_worker, _ in seen]
    expected = alone[name]
    for epoch, batches in enumerate(expected):
        assert all(len(of_worker[epoch]) == len(batches) for of_worker in each)
        for step, batch in enumerate(batches):
            # Worker 0 has the first examples, and so on, also of the ragged last batch.
            together = [number for of_worker in each for number in of_worker[epoch][step]]
            assert together == batch, f"epoch {epoch}, step {step}"


@pytest.mark.parametrize("name", sorted(set(NAMES) - {ENDLESS, "without remainder", "only ragged"}))
def test_every_example_comes_once_an_epoch(name, seen):
    for epoch in range(2):
        ids = [i for of_worker, _ in seen for batch in of_worker[name][epoch] for i in batch]
        assert sorted(ids) == list(range(N))


def test_the_batches_are_divided_evenly(seen):
    for of_worker, _ in seen:
        sizes = [len(batch) for batch in of_worker["range"][0]]
        share_of_ten = BATCH / len(seen)
        assert all(abs(size - share_of_ten) < 2 for size in sizes[:2])


def test_shuffling_is_another_one_each_epoch_and_the_same_for_all(alone):
    first, second = alone["shuffled"]
    assert first != second
    assert list(itertools.chain(*first)) != list(range(N))


def test_a_file_policy_stays(seen):
    files = np.array_split(np.arange(N), FILES["five files"])
    for index, (of_worker, _) in enumerate(seen):
        expected = np.concatenate(files[index :: len(seen)])
        assert flat(of_worker["file"][0]) == sorted(expected)


def test_an_off_policy_stays(seen):
    for of_worker, _ in seen:
        assert flat(of_worker["off"][0]) == list(range(N))


def test_all_workers_draw_alike(seen):
    """Also with tf_keras, which is imported after `ke.strategy` has set the seed."""
    first, *others = [drawn for _, drawn in seen]
    assert all(drawn == first for drawn in others)


# --- shard alone ---------------------------------------------------------------------------------


def policy(dataset):
    return dataset.options().experimental_distribute.auto_shard_policy


def test_auto_becomes_data_and_nothing_else_changes():
    dataset = tf.data.Dataset.range(5).batch(2)
    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = 3
    shared = shard(dataset.with_options(options))
    assert policy(shared) is POLICIES.DATA
    assert policy(dataset) is POLICIES.AUTO
    assert shared.options().deterministic is True
    assert shared.options().threading.private_threadpool_size == 3
    assert list(shared.unbatch().as_numpy_iterator()) == list(range(5))


@pytest.mark.parametrize("chosen", [POLICIES.FILE, POLICIES.OFF, POLICIES.DATA, POLICIES.HINT])
def test_a_chosen_policy_stays(chosen):
    dataset = with_policy(tf.data.Dataset.range(5).batch(2), chosen)
    assert shard(dataset) is dataset
    assert policy(shard(dataset.map(lambda x: x).prefetch(1))) is chosen


@pytest.mark.parametrize("other", [None, [1, 2], np.ones(3), iter(())])
def test_what_is_no_dataset_passes(other):
    assert shard(other) is other


# --- upstream ------------------------------------------------------------------------------------


def auto_shard(dataset, count, index):
    return list(_AutoShardDataset(dataset, count, index).unbatch().as_numpy_iterator())


def test_upstream_auto_still_fails_with_fewer_files_than_workers(paths):
    """If this fails, TensorFlow falls back: `shard` is still needed for the test below."""
    dataset = read(paths["one file"]).batch(BATCH)
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="not enough for the required 2 shards"
    ):
        auto_shard(dataset, 2, 0)


def test_upstream_auto_still_deals_out_files_unevenly(paths):
    """If this fails, AUTO gives the batches of one process, and `shard` can go."""
    dataset = read(paths["five files"]).batch(BATCH)
    counts = [len(auto_shard(dataset, 2, index)) for index in range(2)]
    assert counts == [13, 8]
