import dataclasses

import numpy as np
import pytest

from keras_efficient._errors import InputError
from keras_efficient.data import Records, require_classes, split


def test_of_keeps_class_indices_and_maps_names():
    assert Records.of(["a", "b", "c"], [2, 0, 2]).labels.tolist() == [2, 0, 2]
    assert Records.of(["a", "b", "c"], [2, 0, 2]).label_names == ("0", "1", "2")
    assert Records.of(["a", "b"], np.array([True, False])).labels.tolist() == [1, 0]
    named = Records.of([("a", "pos"), ("b", "neg")])
    assert named.labels.tolist() == [1, 0] and named.label_names == ("neg", "pos")
    assert named.labels.dtype == np.int32
    # -1 is no index, so these are names, in the order of the numbers.
    assert Records.of(["a", "b", "c"], [10, -1, 9]).label_names == ("-1", "9", "10")
    assert Records.of(["a", "b"], [0.0, 1.0]).label_names == ("0", "1")
    assert Records.of(["a", "b"], [0.5, 1.5], ["1.5", "0.5"]).labels.tolist() == [1, 0]
    given = Records.of(["a"], ["pos"], label_names=named.label_names)
    assert given.labels.tolist() == [1]
    assert Records.of(["a", "b"]).labels is None


def test_records_do_not_change():
    labels = np.array([0, 1])
    records = Records(("a", "b"), labels, ("x", "y"))
    labels[0] = 1
    assert records.labels.tolist() == [0, 1]
    with pytest.raises(ValueError, match="read-only"):
        records.labels[0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        records.texts = ()


def test_fingerprint_sees_order_borders_labels_and_names():
    made = [
        Records.of(["ab", "c"]),
        Records.of(["a", "bc"]),
        Records.of(["c", "ab"]),
        Records.of(["abc"]),
        Records.of(["ab", "c"], [0, 1]),
        Records.of(["ab", "c"], [1, 0]),
        Records.of(["ab", "c"], ["n", "p"]),
    ]
    assert len({records.fingerprint for records in made}) == len(made)
    assert made[0].fingerprint == Records.of(("ab", "c"), source="elsewhere").fingerprint
    assert len(made[0].fingerprint) == 64


def test_take():
    records = Records.of(["a", "b", "c"], ["x", "y", "z"])
    taken = records.take([2, 0])
    assert taken.texts == ("c", "a") and taken.labels.tolist() == [2, 0]
    assert taken.label_names == ("x", "y", "z")
    assert records.take(records.labels > 0).texts == ("b", "c")
    assert len(records.take([])) == 0
    with pytest.raises(InputError, match="one value per record"):
        records.take(np.array([True]))
    with pytest.raises(IndexError):
        records.take([3])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Records("abc"), "sequence of strings"),
        (lambda: Records.of("abc"), "must be a list of strings"),
        (lambda: Records.of([3]), "must be a string.*item 0"),
        (lambda: Records.of(["a", " \n"]), "something in it.*item 1"),
        (lambda: Records.of(["a\0"]), "NUL"),
        (lambda: Records.of(["\ud800"]), "surrogate"),
        (lambda: Records(("a",), [0, 1], ("x", "y")), "one label per text.*1 texts"),
        (lambda: Records.of(["a"], [0, 1]), "one label per text.*1 texts and 2 labels"),
        (lambda: Records(("a",), [1], ("x",)), "indices into the 1 `label_names`"),
        (lambda: Records(("a",), [0.5], ("x",)), "indices into"),
        (lambda: Records.of([("a", 1), "b"]), "Either every item or none.*item 1"),
        (lambda: Records.of([("a", 1)], [1]), "Labels must be given once"),
        (lambda: Records.of(["a"], [None]), "needs a label.*item 0"),
        (lambda: Records.of(["a"], [float("nan")]), "needs a label"),
        (lambda: Records.of(["a"], [[1]]), "string, a number or a bool"),
        (lambda: Records.of(["a"], ["z"], ["x", "y"]), "'z', unseen in training.*item 0"),
        (lambda: Records.of(["a"], ["x"], ["x", "x"]), "`label_names` must differ"),
        (lambda: Records.of(["a"], [10**7]), "below 1000000"),
        (lambda: Records.of(["a", "b"], [0.5, 1.5]), "'0.5' .*item 0.*Is regression meant"),
        (lambda: Records.of(["a", "b"], np.float32([1, 1.5])), "'1.5' .*item 1.*Is regression"),
        (lambda: Records.of(["a", "b"], [1, float("inf")]), "must be finite. Received: inf .*m 1"),
        (lambda: Records.of(["a", "b"], ["1", "nan"]), "needs a label. Received: 'nan'"),
        (lambda: Records.of(["a"], ["\ud800"]), "label must be valid Unicode.*item 0"),
        (lambda: Records.of(["a"], ["x"], ["x", "\ud800"]), "valid Unicode.*label_names"),
    ],
)
def test_bad_records(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_require_classes():
    records = Records.of(["a", "b"], ["x", "y"])
    assert require_classes(records) is records
    with pytest.raises(InputError, match=r"At least 2 classes.*\['x'\]"):
        require_classes(records.take([0]))
    with pytest.raises(InputError, match="At least 3 classes"):
        require_classes(records, at_least=3)
    with pytest.raises(InputError, match="needs labels"):
        require_classes(Records.of(["a"]))


def test_split_is_the_documented_permutation():
    records = Records.of([f"t{i}" for i in range(10)], range(10))
    train, validation = split(records, validation=0.3, seed=5)
    order = np.random.default_rng(5).permutation(10)
    assert validation.labels.tolist() == order[7:].tolist()
    assert train.labels.tolist() == order[:7].tolist()
    assert validation.texts == tuple(f"t{i}" for i in order[7:])
    assert split(records, validation=3, seed=5)[1].texts == validation.texts
    assert split(records, validation=3, seed=6)[1].texts != validation.texts


def test_split_takes_the_same_share_of_each_class():
    """Of 36 rare rows in 1,200 only one was held out."""
    rng = np.random.default_rng(0)
    for sizes in ([1164, 36], [36, 1164], [500, 300, 200, 7, 1], [5] * 100 + [500]):
        labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
        records = Records.of([f"t{i}" for i in range(len(labels))], labels)
        for seed in range(5):
            train, validation = split(records, validation=0.1, seed=seed)
            assert len(validation) == round(0.1 * len(labels))
            assert sorted(train.texts + validation.texts) == sorted(records.texts)
            held_out = np.bincount(validation.labels, minlength=len(sizes))
            assert (abs(held_out - 0.1 * np.array(sizes)) < 1).all(), held_out
            # Every class is trained on.
            assert set(train.labels) == set(range(len(sizes)))


def test_split_without_strata():
    records = Records.of([f"t{i}" for i in range(100)], [0] * 97 + [1] * 3)
    order = np.random.default_rng(2).permutation(100)
    _, plain = split(records, validation=20, seed=2, stratify=False)
    assert plain.texts == tuple(f"t{i}" for i in order[80:])
    unlabelled = split(Records.of(records.texts), validation=20, seed=2)[1]
    assert unlabelled.texts == plain.texts
    # More validation records than a share of each class can give: some class is not trained on.
    train, _ = split(records, validation=99, seed=2)
    assert len(train) == 1


def test_printed_records_are_short():
    """`print(records)` printed 147,731 characters."""
    texts = ["a long text " * 20] * 1000
    for records, parts in (
        (Records.of(texts, [i % 2 for i in range(1000)]), ("1,000 texts", "2 classes: '0', '1'")),
        (Records.of(texts), ("no labels", "source='memory'")),
        (Records.of(texts, [f"class {i}" for i in range(1000)]), ("1,000 classes", "990 more")),
        (Records.of(texts, ["x" * 1000] * 1000), ("1 classes",)),
    ):
        for shown in (repr(records), str(records)):
            assert len(shown) < 300
            assert all(part in shown for part in parts), shown


def test_an_unknown_label_among_many_classes_is_a_short_message():
    """With 20,000 classes the message had 189 kB."""
    names = [f"class {i}" for i in range(20_000)]
    with pytest.raises(
        InputError,
        match=r"one of 20,000 classes: 'class 0', .* and 19,990 more"
        r"\. Received: 'klass 7', unseen in training \(memory, item 0\)",
    ) as raised:
        Records.of(["a"], ["klass 7"], names)
    assert len(str(raised.value)) < 500
    with pytest.raises(InputError, match="Did you mean 'class 7'"):
        Records.of(["a"], ["klass 7"], names[:20])
    with pytest.raises(InputError, match=r"more than once: 'class 5'\. Name") as raised:
        Records.of(["a"], ["class 5"], [*names, "class 5"])
    assert len(str(raised.value)) < 500
    with pytest.raises(InputError) as raised:
        Records.of(["a"], ["x" * 10_000], names)
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        (0.0, "in \\(0, 1\\)"),
        (1.0, "in \\(0, 1\\)"),
        (float("nan"), "in \\(0, 1\\)"),
        (0.01, "Both sides.*0.01 of 4 records"),
        (0.99, "Both sides"),
        (0, "Both sides"),
        (4, "Both sides"),
        (-1, "Both sides"),
        (True, "must be a share"),
        ("1", "must be a share"),
    ],
)
def test_bad_split(validation, message):
    with pytest.raises(InputError, match=message):
        split(Records.of(list("abcd")), validation=validation)
