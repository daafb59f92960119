"""Augmentations of `ke.data.text`: what they change, what stays aligned, what they depend on."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import tensorflow as tf
from bert_folder import VOCABULARY, write
from tokenizers import Tokenizer as Backend

import keras_efficient as ke
from keras_efficient._errors import InputError
from keras_efficient.data import DeleteTokens, ReplaceTokens, ShuffleTokens

# Word pieces of the vocabulary of `bert_folder`: "films" and "badly" have two tokens each.
WORDS = ("the", "film", "was", "very", "good", "bad", "films", "badly", "plot", "great", "actors")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = write(tmp_path_factory.mktemp("bert") / "model")
    return ke.data.Tokenizer.from_directory(folder, inputs=ke.data.KERASHUB, max_length=32)


def texts_of(number, seed=0, most=12):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, most))) for _ in range(number)]


def batches(records, tokenizer, *augmentations, **options):
    options = {"batch_size": 16, "shuffle": False, "seed": 3} | options
    return ke.data.text(records, tokenizer, augmentations=augmentations, **options)


def rows(data):
    """Return the ids of each text, without padding; check that the mask says where it is."""
    found = []
    for batch in data:
        features = batch[0] if isinstance(batch, tuple) else batch
        for ids, mask in zip(
            features["token_ids"].numpy(), features["padding_mask"].numpy(), strict=True
        ):
            assert (np.diff(mask) <= 0).all() and ((ids != 0) == mask).all()
            found.append(ids[mask > 0].tolist())
    return found


def words_of(ids):
    """Return the words of a row between [CLS] and [SEP], as tuples of tokens."""
    tokens = [VOCABULARY[number] for number in ids[1:-1]]
    starts = [i for i, token in enumerate(tokens) if i == 0 or not token.startswith("##")]
    return [tuple(tokens[a:b]) for a, b in itertools.pairwise([*starts, len(tokens)])]


def is_part(part, whole):
    """Return whether a list is another one without some elements."""
    rest = iter(whole)
    return all(any(item == other for other in rest) for item in part)


@pytest.mark.parametrize("unit", ["token", "word"])
@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_shuffled_texts_have_the_same_units(tokenizer, unit, window, rate):
    texts = texts_of(150)
    change = ShuffleTokens(share=1.0, unit=unit, window=window, rate=rate)
    before, after = rows(batches(texts, tokenizer)), rows(batches(texts, tokenizer, change))
    moved = 0
    for old, new in zip(before, after, strict=True):
        assert (old[0], old[-1], len(old)) == (new[0], new[-1], len(new))
        olds, news = (words_of(r) if unit == "word" else r[1:-1] for r in (old, new))
        assert sorted(olds) == sorted(news)
        moved += sum(a != b for a, b in zip(olds, news, strict=True)) / len(olds)
        if window and len(set(olds)) == len(olds) and rate == 1:
            assert all(abs(olds.index(unit) - place) <= window for place, unit in enumerate(news))
    assert (0.03 if rate < 1 or window else 0.4) < moved / len(texts) < (0.4 if rate < 1 else 0.95)


@pytest.mark.parametrize("unit", ["token", "word"])
@pytest.mark.parametrize("span", [False, True])
def test_deleted_tokens(tokenizer, unit, span):
    texts = [*texts_of(150), "film", "films"]
    change = DeleteTokens(rate=0.3, unit=unit, span=span)
    before, after = rows(batches(texts, tokenizer)), rows(batches(texts, tokenizer, change))
    deleted = total = 0
    for old, new in zip(before, after, strict=True):
        olds, news = (words_of(r) if unit == "word" else r[1:-1] for r in (old, new))
        assert (old[0], old[-1]) == (new[0], new[-1]) and news and is_part(news, olds)
        if span:
            cuts = range(len(news) + 1)
            gone = len(olds) - len(news)
            assert gone < 2 or any(news[:c] + olds[c : c + gone] + news[c:] == olds for c in cuts)
        deleted, total = deleted + len(olds) - len(news), total + len(olds)
    assert 0.2 < deleted / total < 0.33
    everything = rows(batches(texts, tokenizer, DeleteTokens(rate=1.0, unit=unit, span=span)))
    lengths = [len(words_of(row)) if unit == "word" else len(row) - 2 for row in everything]
    assert lengths == [1] * len(texts)


@pytest.mark.parametrize("unit", ["token", "word"])
def test_replaced_tokens(tokenizer, unit):
    texts, mask = texts_of(200), VOCABULARY.index("[MASK]")
    before = rows(batches(texts, tokenizer))
    hidden = rows(batches(texts, tokenizer, ReplaceTokens(rate=0.3, unit=unit)))
    changed = total = 0
    for old, new in zip(before, hidden, strict=True):
        assert len(old) == len(new)
        assert all(a == b or b == mask for a, b in zip(old, new, strict=True))
        if unit == "word":
            start = 1
            for word in words_of(old):
                part = new[start : (start := start + len(word))]
                assert len({number == mask for number in part}) == 1
        changed, total = changed + new.count(mask), total + len(old) - 2
    assert 0.25 < changed / total < 0.35
    random = rows(batches(texts, tokenizer, ReplaceTokens(rate=1.0, by="random")))
    drawn = np.concatenate([row[1:-1] for row in random])
    # [UNK] stands for words that are not known, as other tokens do.
    assert set(drawn) == {1, *range(5, len(VOCABULARY))}
    table = np.stack([np.arange(len(VOCABULARY)), np.full(len(VOCABULARY), 7)], 1)
    either = rows(batches(texts, tokenizer, ReplaceTokens(rate=1.0, by=table)))
    pairs = [(a, b) for o, n in zip(before, either, strict=True) for a, b in zip(o, n, strict=True)]
    assert all(b in (a, 7) for a, b in pairs)
    assert 0.4 < np.mean([b == 7 for a, b in pairs if a > 4 and a != 7]) < 0.6


def test_a_share_of_the_texts_is_changed(tokenizer):
    texts = [f"the film was {'very ' * i}good and bad" for i in range(9)] * 60
    before = rows(batches(texts, tokenizer))
    after = rows(batches(texts, tokenizer, DeleteTokens(rate=0.5, share=0.2)))
    changed = np.mean([a != b for a, b in zip(before, after, strict=True)])
    assert 0.13 < changed < 0.27


def test_augmentations_depend_on_seed_epoch_and_text_alone(tokenizer):
    texts = [f"the film {'very ' * i}good and bad with a plot" for i in range(14)]
    labels = list(range(14))
    changes = (ShuffleTokens(share=0.8), DeleteTokens(rate=0.3), ReplaceTokens(rate=0.2))
    records = ke.data.Records.of(texts, [f"{i:02}" for i in labels])

    epochs = []
    data = batches(records, tokenizer, *changes, shuffle=True, batch_size=4)
    for _ in range(2):
        seen = list(data)
        epochs.append(dict(zip(labels_of(seen), rows(seen), strict=True)))
    assert epochs[0] != epochs[1] and sorted(epochs[0]) == labels
    for options in (
        {"batch_size": 5, "group_by_length": True},
        {"batch_size": None, "tokens_per_batch": 64},
        {"buckets": [24]},
    ):
        others = list(batches(records, tokenizer, *changes, shuffle=True, **options))
        assert dict(zip(labels_of(others), rows(others), strict=True)) == epochs[0]
    resumed = list(batches(records, tokenizer, *changes, shuffle=True, first_epoch=1))
    assert dict(zip(labels_of(resumed), rows(resumed), strict=True)) == epochs[1]
    # Without shuffling, the texts are changed anew in each epoch, too.
    ordered = batches(records, tokenizer, *changes)
    assert rows(ordered) == [epochs[0][i] for i in labels]
    assert rows(ordered) == [epochs[1][i] for i in labels]
    # Of several augmentations each draws numbers of its own.
    twice = rows(batches(texts, tokenizer, ReplaceTokens(rate=0.3), ReplaceTokens(rate=0.3)))
    once = rows(batches(texts, tokenizer, ReplaceTokens(rate=0.3)))
    mask = VOCABULARY.index("[MASK]")
    assert sum(row.count(mask) for row in twice) > 1.3 * sum(row.count(mask) for row in once)


def labels_of(seen):
    return [label for _, labels in seen for label in labels.numpy().tolist()]


def test_two_workers_see_the_same_texts_as_one(tokenizer):
    records = ke.data.Records.of(texts_of(24), ["a", "b"] * 12)
    data = batches(records, tokenizer, ShuffleTokens(share=1.0), batch_size=8, shuffle=True)
    first = list(data)
    devices = tf.config.list_logical_devices("CPU")
    strategy = tf.distribute.MirroredStrategy([device.name for device in devices[:2]])
    shared = []
    again = batches(records, tokenizer, ShuffleTokens(share=1.0), batch_size=8, shuffle=True)
    for features, _ in strategy.experimental_distribute_dataset(again):
        parts = strategy.experimental_local_results(features["token_ids"])
        shared.append(np.concatenate([part.numpy() for part in parts]))
    assert len(devices) > 1 and len(shared) == len(first)
    for one, (features, _) in zip(shared, first, strict=True):
        np.testing.assert_array_equal(one, features["token_ids"])


def test_saved_iterators_go_on_with_the_same_changes(tokenizer, tmp_path):
    changes = (ShuffleTokens(share=1.0), DeleteTokens(rate=0.3))
    texts = texts_of(20)
    expected = [b["token_ids"] for b in batches(texts, tokenizer, *changes, batch_size=4).repeat(2)]
    iterator = iter(batches(texts, tokenizer, *changes, batch_size=4).repeat(2))
    for _ in range(7):
        next(iterator)
    path = tf.train.Checkpoint(iterator=iterator).save(str(tmp_path / "position"))
    iterator = iter(batches(texts, tokenizer, *changes, batch_size=4).repeat(2))
    tf.train.Checkpoint(iterator=iterator).restore(path)
    rest = [batch["token_ids"] for batch in iterator]
    assert len(rest) == 3
    for one, other in zip(rest, expected[7:], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "change", [ShuffleTokens(share=1.0), DeleteTokens(rate=0.4), ReplaceTokens(rate=0.4)]
)
def test_tags_stay_with_their_words(tokenizer, change, tmp_path):
    rng = np.random.default_rng(1)
    words = [list(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(60)]
    # The tag of a word follows from the word.
    tags = [[f"B-{word}" for word in row] for row in words]
    lines = [
        json.dumps({"tokens": list(map(str, w)), "tags": t})
        for w, t in zip(words, tags, strict=True)
    ]
    (tmp_path / "tagged.jsonl").write_text("\n".join(lines))
    records = ke.tasks.get("token_classification").read(tmp_path / "tagged.jsonl")
    names = records.label_names
    changed = deleted = 0
    for features, labels in batches(records, tokenizer, change):
        ids, mask = features["token_ids"].numpy(), features["padding_mask"].numpy()
        assert (labels.numpy()[mask == 0] == -100).all()
        for row, real, own in zip(ids, mask, labels.numpy(), strict=True):
            assert (own >= 0).any() and own[0] == -100
            pieces = iter(words_of(row[real > 0].tolist()))
            for label in own[own >= 0]:
                word = next(pieces)
                if set(word) == {"[MASK]"}:
                    changed += 1
                    for _ in range(names[label] in ("B-films", "B-badly")):
                        next(pieces)
                else:
                    assert "".join(word).replace("##", "") == names[label].removeprefix("B-")
            assert next(pieces, None) is None
            deleted += int((real > 0).sum())
    total = sum(sum(2 if w in ("films", "badly") else 1 for w in row) + 2 for row in words)
    assert (changed > 0) == isinstance(change, ReplaceTokens)
    assert (deleted < total) == isinstance(change, DeleteTokens)


@pytest.mark.parametrize("change", [ShuffleTokens(share=1.0), DeleteTokens(rate=0.6)])
def test_answers_keep_their_places_in_the_context(tokenizer, change, tmp_path):
    rng = np.random.default_rng(2)
    found = []
    for number in range(40):
        question = " ".join(rng.choice(("the", "film", "was", "good"), rng.integers(2, 7)))
        context = [*rng.choice(("bad", "plot", "with"), rng.integers(0, 6)), "great", "actors"]
        context = " ".join([*context, *rng.choice(("bad", "plot", "with"), rng.integers(0, 4))])
        answers = {"text": ["great actors"], "answer_start": [context.index("great actors")]}
        found.append(
            {"id": str(number), "question": question, "context": context, "answers": answers}
        )
    (tmp_path / "answers.jsonl").write_text("\n".join(map(json.dumps, found)))
    task = ke.tasks.get("question_answering")
    records = task.read(tmp_path / "answers.jsonl")
    plain = [
        labels.numpy()
        for _, labels in task.batches(records, tokenizer, batch_size=8, shuffle=False)
    ]
    answer = [VOCABULARY.index(word) for word in ("great", "actors")]
    options = {"batch_size": 8, "shuffle": False, "seed": 3}
    moved = 0
    for number, (features, labels) in enumerate(
        ke.data.text(records, tokenizer, augmentations=[change], **options)
    ):
        segments = features["segment_ids"].numpy()
        for row, ids in enumerate(features["token_ids"].numpy()):
            start, end, _ = labels.numpy()[row]
            assert ids[start : end + 1].tolist() == answer
            assert segments[row, start] == segments[row, end] == 1
        moved += int((labels.numpy() != plain[number]).sum())
    assert (moved > 0) == isinstance(change, DeleteTokens)


def test_pairs_keep_a_token_of_each_text(tokenizer):
    records = ke.data.Records.of(
        ["film", "very good"], ["a", "b"], second_texts=["the plot was good", "bad"]
    )
    data = batches(records, tokenizer, DeleteTokens(rate=0.9), batch_size=2)
    ((features, labels),) = data
    assert labels.numpy().tolist() == [0, 1]
    separator = VOCABULARY.index("[SEP]")
    for ids, segments, mask in zip(
        *(features[n].numpy() for n in ("token_ids", "segment_ids", "padding_mask")), strict=True
    ):
        ids, segments = ids[mask > 0], segments[mask > 0]
        assert (ids == separator).sum() == 2
        assert segments.tolist() == sorted(segments.tolist())
        for number in (0, 1):
            assert ((segments == number) & (ids > 4)).sum() == 1


def test_texts_on_a_disk_and_static_shapes(tokenizer, tmp_path):
    texts = texts_of(30)
    (tmp_path / "a.txt").write_text("\n".join(texts))
    stored = ke.data.tokenize_to_disk(
        tmp_path / "a.txt", tokenizer, tmp_path / "tokens", label_column=None, max_length=32
    )
    options = {"buckets": [32], "drop_remainder": True, "shuffle": True}
    changes = (ShuffleTokens(share=1.0, unit="word"), DeleteTokens(rate=0.3))
    data = batches(stored, tokenizer, *changes, **options)
    assert data.element_spec["token_ids"].shape == (16, 32)
    records = ke.data.Records.of(texts)
    assert rows(data) == rows(batches(records, tokenizer, *changes, max_length=32, **options))


def test_augmentations_of_ones_own(tokenizer):
    @dataclasses.dataclass(frozen=True)
    class Repeat(ke.data.Augmentation):
        share: float = 1.0
        unit: str = "token"

        def apply(self, rows, keys):
            before = tf.pad(rows.ids[:, :-1], [[0, 0], [1, 0]])
            return rows._replace(ids=tf.where(rows.free, before, rows.ids))

    cls, sep, film, good = (VOCABULARY.index(w) for w in ("[CLS]", "[SEP]", "film", "good"))
    assert rows(batches(["film good"], tokenizer, Repeat())) == [[cls, cls, film, sep]]
    assert film != good


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ShuffleTokens(share=0), "`share` must be a share, above 0 and at most 1"),
        (lambda: ShuffleTokens(window=0), "`window` must be an int of 1 unit or more, or None"),
        (lambda: DeleteTokens(rate=2), "`rate` must be a share, above 0 and at most 1"),
        (lambda: DeleteTokens(span=1), "`span` must be a bool"),
        (lambda: DeleteTokens(unit="letter"), "`unit` must be one of token, word"),
        (lambda: ReplaceTokens(by="synonyms"), '`by` must be "mask", "random" or tokens'),
        (lambda: ReplaceTokens(by=[[0.5]]), '`by` must be "mask", "random" or tokens'),
    ],
)
def test_settings_that_cannot_be_used(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_data_that_cannot_be_augmented(tokenizer):
    function = ke.data.Tokenizer(lambda texts, n: [[1]] * len(texts), inputs=ke.data.KERASHUB)
    with pytest.raises(InputError, match=r"need a tokenizers\.Tokenizer, to know special tokens"):
        batches(["film"], function, ShuffleTokens())
    with pytest.raises(InputError, match="must be a list of augmentations, such as"):
        batches(["film"], tokenizer, "shuffle")
    with pytest.raises(InputError, match="tokens of the tokenizer, from 0 to"):
        batches(["film"], tokenizer, ReplaceTokens(by=[9_999]))
    with pytest.raises(InputError, match="Language models learn the texts as they are"):
        batches(["film"], tokenizer, ShuffleTokens(), next_token=True)
    with pytest.raises(InputError, match="Language models learn the texts as they are"):
        batches(["film"], tokenizer, ShuffleTokens(), masking=ke.data.Masking())
    backend = json.loads(tokenizer.backend.to_str())
    backend["added_tokens"] = [t for t in backend["added_tokens"] if t["content"] != "[MASK]"]
    del backend["model"]["vocab"]["[MASK]"]
    bare = ke.data.Tokenizer(Backend.from_str(json.dumps(backend)), inputs=ke.data.KERASHUB)
    with pytest.raises(InputError, match="needs a tokenizer with one, \\[MASK\\] or <mask>"):
        batches(["film"], bare, ReplaceTokens())
