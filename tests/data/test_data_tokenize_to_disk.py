"""Data larger than memory: the batches are those of data in memory, and resume exactly."""

import json
import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from covering import covering, sampled
from tensorflow.python.data.experimental.ops.distribute import _AutoShardDataset

import keras_efficient as ke
from keras_efficient._errors import InputError
from keras_efficient.data import (
    KERASHUB,
    Tokenizer,
    _tokenize_to_disk,
    read_records,
    text,
    tokenize_to_disk,
)


def make_rows(n=107, seed=0):
    """Make rows of different texts of 1 to 40 words, the first of which is the row's number."""
    rng = np.random.default_rng(seed)
    sizes = np.minimum(rng.geometric(0.1, size=n), 40)
    return [
        {
            "text": " ".join([f"w{i}", *(f"w{j}" for j in rng.integers(0, 200, size=size - 1))]),
            "second": f"w{i % 7}",
            "label": "abc"[i % 3],
        }
        for i, size in enumerate(sizes)
    ]


@pytest.fixture
def shards(tmp_path):
    rows = make_rows()
    for number, start in enumerate(range(0, len(rows), 40)):
        lines = "".join(json.dumps(row) + "\n" for row in rows[start : start + 40])
        (tmp_path / f"train-{number}.jsonl").write_text(lines)
    return str(tmp_path / "train-*.jsonl")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(_tokenize_to_disk, "_CHUNK", 16)


def epochs(dataset, count=2):
    return [[tf.nest.map_structure(np.asarray, batch) for batch in dataset] for _ in range(count)]


def assert_equal(ours, theirs):
    tf.nest.map_structure(np.testing.assert_array_equal, ours, theirs)


BATCHES = [
    {"batch_size": 8},
    {"batch_size": 8, "group_by_length": True},
    {"batch_size": 8, "drop_remainder": True},
    {"tokens_per_batch": 100},
    {"batch_size": 8, "shuffle": False},
]
COLUMNS = [
    {},
    {"label_column": None},
    {"text_column": ("text", "second")},
    {"label_column": "second", "label_names": [f"w{i}" for i in range(7)]},
]


@sampled()
@pytest.mark.parametrize("options, columns", covering(BATCHES, COLUMNS, strength=1))
def test_batches_are_those_of_data_in_memory(tokenizer, shards, tmp_path, options, columns):
    records = read_records(shards, **columns)
    texts = tokenize_to_disk(shards, tokenizer, tmp_path / "tokens", max_length=32, **columns)
    expected = text(records, tokenizer, max_length=32, seed=3, **options)
    found = text(texts, tokenizer, seed=3, **options)
    assert_equal(epochs(found), epochs(expected))
    assert found.stats == expected.stats and found.element_spec == expected.element_spec
    assert len(texts) == len(records) and texts.label_names == records.label_names
    assert texts.source == records.source and texts.dtype == "uint16"


def test_files_are_written_once(tokenizer, shards, tmp_path, monkeypatch):
    directory = tmp_path / "tokens"
    texts = tokenize_to_disk(shards, tokenizer, directory)
    with monkeypatch.context() as patch:
        patch.setattr(_tokenize_to_disk, "_Writer", None)
        again = tokenize_to_disk(shards, tokenizer, directory)
    assert (again.directory, again.fingerprint) == (texts.directory, texts.fingerprint)
    assert [path.name for path in directory.iterdir()] == [texts.directory.name]
    # Whatever changes the files gives another folder.
    others = [
        tokenize_to_disk(shards, tokenizer, directory, max_length=64),
        tokenize_to_disk(shards, tokenizer, directory, label_names="cba"),
        tokenize_to_disk(shards, tokenizer, directory, text_column="second"),
    ]
    with open(shards.replace("*", "2"), "a") as file:
        file.write('{"text": "w1", "label": "a"}\n')
    others.append(tokenize_to_disk(shards, tokenizer, directory))
    assert len({other.directory for other in [texts, *others]}) == 5 and len(others[-1]) == 108
    assert len({other.fingerprint for other in [texts, *others]}) == 4


def test_generators_functions_and_tasks(tokenizer, tmp_path):
    def rows():
        return ({"text": row["text"], "label": i / 2} for i, row in enumerate(make_rows()))

    def encode(texts, max_length):
        return tokenizer.encode(texts, max_length)

    regression = ke.tasks.get("regression").encode
    texts = tokenize_to_disk(rows(), tokenizer, tmp_path, encode=regression)
    again = tokenize_to_disk(rows(), tokenizer, tmp_path, encode=regression)
    assert again.directory == texts.directory and len(list(tmp_path.iterdir())) == 1
    assert texts.labels.dtype == np.float32 and texts.label_names == ()
    assert "107 texts" in repr(texts) and "numbers" in repr(texts)
    wrapped = Tokenizer(encode, inputs=KERASHUB, max_length=128)
    other = tokenize_to_disk(rows(), wrapped, tmp_path, encode=regression)
    assert other.dtype == "int32" and other.tokenizer is None
    assert_equal(
        epochs(text(other, wrapped, batch_size=8)), epochs(text(texts, tokenizer, batch_size=8))
    )


def test_an_encode_without_a_name_is_called_each_time(tokenizer, shards, tmp_path):
    """Two local functions may have one name."""
    numbers = [
        tokenize_to_disk(
            shards,
            tokenizer,
            tmp_path / "tokens",
            encode=lambda values, names, where, k=k: (np.full(len(values), k, np.float32), ()),
        ).labels[0]
        for k in (1, 2)
    ]
    assert numbers == [1, 2]


def test_labels_that_are_no_array_are_refused(tokenizer, shards, tmp_path):
    with pytest.raises(InputError, match=r"labels that are one array\. Received: list"):
        tokenize_to_disk(shards, tokenizer, tmp_path / "tokens", encode=lambda v, n, w: ([], ()))


def test_a_bad_row_is_named_and_nothing_remains(tokenizer, shards, tmp_path):
    directory = tmp_path / "tokens"
    with open(shards.replace("*", "1"), "a") as file:
        file.write('{"text": " ", "second": "w1", "label": "a"}\n')
    with pytest.raises(InputError, match=r"empty text.*train-1\.jsonl, line 41"):
        tokenize_to_disk(shards, tokenizer, directory)
    with pytest.raises(InputError, match=r"unseen in training \(.*train-0\.jsonl, line 3\)"):
        tokenize_to_disk(shards, tokenizer, directory, text_column="second", label_names="ab")
    assert list(directory.iterdir()) == []
    nothing = Tokenizer(lambda texts, n: [[5]] * (len(texts) - 1) + [[]], inputs=KERASHUB)
    with pytest.raises(InputError, match=r"must have a token.*'w15.*memory, item 15"):
        tokenize_to_disk(make_rows(), nothing, directory)


def test_another_process_is_faster(tokenizer, shards, tmp_path, monkeypatch):
    directory = tmp_path / "tokens"
    finish = _tokenize_to_disk._Writer.finish

    def slowly(writer, *args):
        monkeypatch.setattr(_tokenize_to_disk._Writer, "finish", finish)
        tokenize_to_disk(shards, tokenizer, directory)
        return finish(writer, *args)

    monkeypatch.setattr(_tokenize_to_disk._Writer, "finish", slowly)
    texts = tokenize_to_disk(shards, tokenizer, directory)
    assert list(directory.iterdir()) == [texts.directory] and len(texts) == 107


def test_damaged_and_unwritable_folders(tokenizer, shards, tmp_path, monkeypatch):
    texts = tokenize_to_disk(shards, tokenizer, tmp_path / "tokens")
    os.truncate(texts.directory / "tokens.bin", 10)
    with pytest.raises(InputError, match=r"must be complete.*tokens\.bin does not have .*Delete"):
        tokenize_to_disk(shards, tokenizer, tmp_path / "tokens")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"must be writable.*file"):
        tokenize_to_disk(shards, tokenizer, tmp_path / "file")
    monkeypatch.setattr(
        np, "save", lambda *args, **kwargs: (_ for _ in ()).throw(OSError(28, "full"))
    )
    with pytest.raises(InputError, match=r"enough space.*\(full\)"):
        tokenize_to_disk(shards, tokenizer, tmp_path / "other")


def test_texts_need_their_tokenizer_and_length(tokenizer, shards, tmp_path):
    texts = tokenize_to_disk(shards, tokenizer, tmp_path / "tokens", max_length=32)
    assert text(texts, tokenizer, batch_size=8).stats.max_length == 32
    with pytest.raises(InputError, match=r"must be that of the tokenized.*64.*at most 32"):
        text(texts, tokenizer, batch_size=8, max_length=64)
    other = Tokenizer(lambda texts, n: [[5]] * len(texts), inputs=KERASHUB)
    with pytest.raises(InputError, match="tokenized by another one than"):
        text(texts, other, batch_size=8)
    with pytest.raises(
        InputError, match=r"must be Records\. Received: TokenizedTexts.*files of its"
    ):
        ke.data.split(texts, validation=0.1)
    with pytest.raises(InputError, match=r"must fit.*text \d+ \(.*train-0.*32 tokens"):
        text(texts, tokenizer, tokens_per_batch=16)


def test_the_pipeline_has_no_python_code_and_little_data(tokenizer, tmp_path):
    """It is serialized without the tokens, and its position can be saved."""
    rows = [{"text": "w1 " * 99}] * 200
    texts = tokenize_to_disk(rows, tokenizer, tmp_path / "tokens", label_column=None)
    dataset = text(texts, tokenizer, batch_size=8, max_length=128)
    graph = dataset._as_serialized_graph().numpy()
    assert b"PyFunc" not in graph and len(graph) < 2 * texts.tokens
    running, restored = iter(dataset), iter(dataset)
    for _ in range(3):
        next(running)
    path = tf.train.Checkpoint(iterator=running).save(str(tmp_path / "c"))
    expected = [batch["token_ids"].numpy() for batch in running]
    tf.train.Checkpoint(iterator=restored).restore(path)
    assert_equal([batch["token_ids"].numpy() for batch in restored], expected)


def test_two_workers_see_each_row_once_per_epoch(tokenizer, shards, tmp_path):
    texts = tokenize_to_disk(shards, tokenizer, tmp_path / "tokens")
    for options in ({"batch_size": 8}, {"batch_size": 8, "group_by_length": True}):
        seen = []
        for index in range(2):
            dataset = text(texts, tokenizer, **options)
            part = _AutoShardDataset(dataset, 2, index).unbatch()
            seen.append([int(features["token_ids"][1]) - 4 for features, _ in part])
        # The first word is the number of the row.
        assert sorted(seen[0] + seen[1]) == list(range(107)) and min(map(len, seen)) > 50


def test_an_interrupted_run_resumes_to_the_last_bit(tokenizer, shards, tmp_path):
    def run(folder, stop_after=None):
        keras.utils.set_random_seed(0)
        texts = tokenize_to_disk(shards, tokenizer, tmp_path / "tokens")
        batches = text(texts, tokenizer, batch_size=8, buckets=(48,))
        ids = keras.Input((48,), dtype="int32", name="token_ids")
        x = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(204, 4)(ids))
        model = keras.Model({"token_ids": ids}, keras.layers.Dense(3)(x))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(0.01), loss, jit_compile=False)
        steps = batches.stats.batches
        batches = batches.map(lambda x, y: ({"token_ids": x["token_ids"]}, y))
        resume = ke.callbacks.Resume(folder, every_steps=3, verbose=0)
        stop = keras.callbacks.LambdaCallback(on_train_batch_end=lambda step, logs: stop_at(step))
        count = []

        def stop_at(step):
            count.append(step)
            if len(count) == stop_after:
                raise KeyboardInterrupt

        history = model.fit(
            batches.repeat(), epochs=2, steps_per_epoch=steps, callbacks=[resume, stop], verbose=0
        )
        return history.history, model.get_weights()

    expected = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", stop_after=19)
    assert_equal(run(tmp_path / "stopped"), expected)
