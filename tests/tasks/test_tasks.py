"""Tasks: labels in, refusals by line, decoding, and a task from outside the package."""

import importlib
import json
import sys

import numpy as np
import pytest
import tensorflow as tf

import keras_efficient as ke
from keras_efficient._errors import InputError
from keras_efficient.tasks import _registry

NAMES = ("classification", "multi_label", "regression")


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """Leave the registry as it was."""
    monkeypatch.setattr(_registry, "_known", dict(_registry._known))


def read(path, content, task, **options):
    path.write_text(content, encoding="utf-8")
    return ke.tasks.get(task).read(path, **options)


# --- label formats --------------------------------------------------------------------------------


def test_numbers(tmp_path):
    found = read(tmp_path / "a.csv", "text,label\na,1.5\nb,-2\nc, 3e-1\n", "regression")
    np.testing.assert_array_equal(found.labels, np.float32([1.5, -2, 0.3]))
    assert found.label_names == () and "numbers" in repr(found)
    other = found.take([0, 2])
    assert other.labels.tolist() == found.labels[[0, 2]].tolist()
    assert other.fingerprint != found.fingerprint
    train, validation = ke.data.split(found, validation=1)
    assert len(train) == 2 and len(validation) == 1


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("a.csv", "text,label\na,sad|funny\nb,\nc,sad\n", {}),
        (
            "a.jsonl",
            '{"text": "a", "label": ["funny", "sad"]}\n{"text": "b", "label": []}\n'
            '{"text": "c", "label": "sad"}\n',
            {},
        ),
        (
            "a.csv",
            "text,funny,sad\na,1,true\nb,0,0\nc,False,1\n",
            {"label_column": ["funny", "sad"]},
        ),
    ],
)
def test_several_classes(tmp_path, name, content, options):
    found = read(tmp_path / name, content, "multi_label", **options)
    assert found.label_names == ("funny", "sad")
    assert found.labels.tolist() == [[1, 1], [0, 0], [0, 1]]
    again = ke.tasks.get("multi_label").read(
        tmp_path / name, label_names=("sad", "funny"), **options
    )
    assert again.labels.tolist() == [[1, 1], [0, 0], [1, 0]]


COLUMNS = {"label_column": ("x", "y")}


@pytest.mark.parametrize(
    ("task", "content", "options", "message"),
    [
        ("regression", "text,label\na,1\nb,x\n", {}, r"label is a number.*'x'.*line 3"),
        ("regression", 'text,label\na,1\nb,"1,5"\n', {}, r"'1,5'.*line 3.*decimal mark as a point"),
        ("regression", "text,label\na,1\nb,\n", {}, r"needs a label.*line 3"),
        ("regression", "text,label\na,1\nb,nan\n", {}, r"must be finite.*line 3"),
        ("regression", "text,label\na,1\nb,1e39\n", {}, r"finite in float32.*line 3"),
        ("regression", "text,x,y\na,1,2\n", COLUMNS, r"label is a number.*line 2"),
        ("multi_label", "text,label\na,u\nb,u;v\n", {}, r"separated by '\|'.*line 3, with|';'"),
        ("multi_label", "text,label\na,\nb,\n", {}, r"class must occur.*line 2"),
        ("multi_label", "text,x,y\na,1,0\nb,1,2\n", COLUMNS, r"holds 0 or 1.*'2' in 'y'.*line 3"),
        ("multi_label", "text,label\na,u|w\n", {"label_names": ("u", "v")}, r"'w', unseen.*line 2"),
        ("classification", "text,x,y\na,1,2\n", COLUMNS, r"string, a number or a bool.*line 2"),
    ],
)
def test_bad_labels_are_refused_by_line(tmp_path, task, content, options, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path / "a.csv", content, task, **options)


def test_records_from_which_nothing_can_be_learned():
    regression, multi_label = ke.tasks.get("regression"), ke.tasks.get("multi_label")
    same = ke.data.Records.of(["a", "b"], [1, 1], encode=regression.encode)
    with pytest.raises(InputError, match="labels that differ"):
        regression.check(same)
    rare = ke.data.Records.of(["a", "b"], ["u", "u|v"], encode=multi_label.encode)
    multi_label.check(rare)
    with pytest.raises(InputError, match=r"Every class must occur.*'v' never"):
        multi_label.check(rare.take([0]), rare.take([1]))
    for task in (regression, multi_label):
        with pytest.raises(InputError, match="labels"):
            task.check(ke.data.Records.of(["a"]))
    with pytest.raises(InputError, match="learns one class per text"):
        ke.data.require_classes(rare)


def test_pairs_of_texts(tmp_path):
    content = "a,b,label\nx,y,0.5\nz,w,1\n"
    found = read(tmp_path / "a.csv", content, "regression", text_column=("a", "b"))
    assert found.texts == ("x", "z") and found.second_texts == ("y", "w")
    assert found.take([1]).second_texts == ("w",) and "pairs" in repr(found)
    single = read(tmp_path / "a.csv", content, "regression", text_column="a")
    assert single.fingerprint != found.fingerprint
    for columns, message in ((("a", "b", "label"), "one column, or two"), (("a", "a"), "differ")):
        with pytest.raises(InputError, match=message):
            read(tmp_path / "a.csv", content, "regression", text_column=columns)
    with pytest.raises(InputError, match="must have a second text"):
        ke.data.Records(("a", "b"), second_texts=("c",))


def test_arrays_of_labels():
    with pytest.raises(InputError, match="0 or 1 for each text and class"):
        ke.data.Records(("a",), [[0, 2]], ("x", "y"))
    with pytest.raises(InputError, match="must be finite"):
        ke.data.Records(("a",), [float("nan")])


def test_records_that_are_joined():
    first = ke.data.Records.of(["a", "b"], [0, 1], second_texts=["x", "y"])
    both = first + first.take([1])
    assert (both.texts, both.second_texts) == (("a", "b", "b"), ("x", "y", "y"))
    assert both.labels.tolist() == [0, 1, 1] and both.label_names == first.label_names
    assert len(first.without_labels() + first.take([]).without_labels()) == 2
    words = ke.data.Records(("a",), ke.data.TokenLabels([[(0, 1, 0)]]), ("O",))
    assert [rows.tolist() for rows in (words + words).labels.words] == [[[0, 1, 0]]] * 2
    targets = ke.data.Records(("a",), ke.data.TargetTexts(["b"]))
    assert (targets + targets).labels.texts == ("b", "b")
    for other in (first.without_labels(), ke.data.Records.of(["a"], [1]), words):
        with pytest.raises(InputError, match="single texts or pairs, labels of one kind"):
            first + other


# --- heads, weights and batches -------------------------------------------------------------------


def test_head_sizes_and_names():
    sizes = {name: ke.tasks.get(name).head_size for name in NAMES}
    assert sizes["classification"](None) == 2 and sizes["regression"](None) == 1
    assert sizes["multi_label"](1) == 1
    for name, number in (("classification", 1), ("multi_label", None), ("regression", 2)):
        with pytest.raises(InputError, match="`num_labels`"):
            sizes[name](number)
    assert ke.tasks.get("regression").label_names(None, 1) == []
    with pytest.raises(InputError, match="one output, without names"):
        ke.tasks.get("regression").label_names(["a"], 1)
    with pytest.raises(InputError, match="must name each class"):
        ke.tasks.get("multi_label").label_names(["a"], 2)


def test_class_weights_are_for_classes_that_exclude_each_other():
    records = ke.data.Records.of(["a", "b"], [1, 2], encode=ke.tasks.get("regression").encode)
    with pytest.raises(InputError, match=r"one class per text.*'regression'"):
        ke.tasks.get("regression").class_weights(records)


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        ("classification", [[1, 1], [0, 1]]),
        ("regression", [[1.0, 2.0], [0.0, 1.0]]),
        ("multi_label", [1, 0]),
        ("multi_label", [[0.5, 1.0]]),
    ],
)
def test_batches_with_labels_of_another_task(task, labels):
    with pytest.raises(InputError, match="`evaluate`"):
        ke.tasks.get(task).batch_labels(np.array(labels), "evaluate")


# --- served answers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "logits", "names", "expected"),
    [
        ("regression", [[1.5], [-2.0]], None, [{"value": 1.5}, {"value": -2.0}]),
        ("multi_label", [[3.0, -3.0], [-1.0, -1.0]], ["u", "v"], [["u"], []]),
        ("classification", [[3.0, -3.0], [-1.0, 1.0]], ["u", "v"], ["u", "v"]),
    ],
)
def test_decode_reads_what_serve_answers(task, logits, names, expected):
    task = ke.tasks.get(task)
    served = task.serve(tf.constant(logits), names)
    assert set(served) == set(task.serves)
    plain = {
        name: value.numpy().astype(str if value.dtype == tf.string else "float64").tolist()
        for name, value in served.items()
    }
    found = task.decode(json.loads(json.dumps(plain)), names)
    key = {"multi_label": "labels", "classification": "label"}.get(task.name)
    assert [row[key] if key else row for row in found] == expected
    if key:
        assert set(found[0]["probabilities"]) == {"u", "v"}
        with pytest.raises(InputError, match="name each of the 2 classes"):
            task.serve(tf.constant(logits), ["u"])


def test_malformed_answers():
    with pytest.raises(ValueError, match="finite"):
        ke.tasks.get("regression").decode({"value": [float("nan")]}, None)
    with pytest.raises(ValueError, match="finite"):
        ke.tasks.get("multi_label").decode({"labels": [[""]], "probabilities": [[1e999]]}, None)
    with pytest.raises(InputError, match="one output per example"):
        ke.tasks.get("regression").serve(tf.zeros([1, 2]), None)


# --- the registry ---------------------------------------------------------------------------------


def test_the_registry():
    assert ke.tasks.names()[:3] == NAMES
    pairs = ke.tasks.get("regression", texts=2)
    assert pairs.texts == 2 and ke.tasks.get(pairs) is pairs
    assert ke.tasks.get(pairs, texts=1).texts == 1
    with pytest.raises(InputError, match=r"must be one of classification.*'regresion'"):
        ke.tasks.get("regresion")
    with pytest.raises(InputError, match="must be 1, or 2"):
        ke.tasks.get("regression", texts=3)
    with pytest.raises(InputError, match="subclass of"):
        ke.tasks.register(int)

    class Other(ke.tasks.Regression):
        name = "classification"

    with pytest.raises(InputError, match="must have different names"):
        ke.tasks.register(Other)


OUTSIDE = '''
import keras_efficient as ke


class Stars(ke.tasks.Regression):
    """Ratings from one to five stars, served as whole stars."""

    name = "whole_stars"
    serves = ("value", "stars")

    def serve(self, logits, label_names):
        import tensorflow as tf

        value = super().serve(logits, label_names)["value"]
        return {"value": value, "stars": tf.cast(tf.round(tf.clip_by_value(value, 1, 5)), tf.int32)}

    def decode(self, outputs, label_names):
        rows = super().decode(outputs, label_names)
        return [row | {"stars": n} for row, n in zip(rows, outputs["stars"], strict=True)]
'''


def test_an_installed_package_adds_a_task(tmp_path, monkeypatch):
    """One file and an entry point: the command line and `predict` know the task."""
    (tmp_path / "starred_reviews.py").write_text(OUTSIDE)
    info = tmp_path / "starred_reviews-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: starred-reviews\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[keras_efficient.tasks]\nwhole_stars = starred_reviews:Stars\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(_registry, "_known", {**_registry._known})
    importlib.invalidate_caches()
    _registry._load_installed.cache_clear()
    try:
        task = ke.tasks.get("whole_stars")
        served = task.serve(tf.constant([[3.6], [9.0]]), None)
        assert served["stars"].numpy().tolist() == [4, 5]
        assert "whole_stars" in ke.tasks.names()
    finally:
        sys.modules.pop("starred_reviews", None)
        _registry._load_installed.cache_clear()
