"""What an evaluation shows beside the accuracy, and when it warns."""

import json

import numpy as np
import pytest
import tensorflow as tf
from covering import sampled

import keras_efficient as ke
from keras_efficient._errors import InputError
from keras_efficient.metrics import ClassificationReport, classification_report

RNG = np.random.default_rng(3)
LABELS = RNG.integers(0, 4, 200)
PREDICTIONS = np.where(RNG.random(200) < 0.6, LABELS, RNG.integers(0, 4, 200))
NAMES = ["a", "b", "c", "d", "never seen"]


def test_figures_are_those_of_scikit_learn():
    from sklearn import metrics

    report = classification_report(LABELS, PREDICTIONS, NAMES)
    assert report.accuracy == pytest.approx(metrics.accuracy_score(LABELS, PREDICTIONS))
    # A class that occurs nowhere is left out of the mean, as in scikit-learn.
    assert report.macro_f1 == pytest.approx(metrics.f1_score(LABELS, PREDICTIONS, average="macro"))
    matrix = metrics.confusion_matrix(LABELS, PREDICTIONS, labels=range(5))
    assert report.confusion == tuple(map(tuple, matrix.tolist()))
    assert [c["examples"] for c in report.classes] == matrix.sum(1).tolist()
    assert [c["predicted"] for c in report.classes] == matrix.sum(0).tolist()
    assert report.majority_baseline == matrix.sum(1).max() / 200
    assert report.mistakes[0]["count"] == (matrix - np.diag(np.diag(matrix))).max()


def test_weights_count_as_repetitions():
    weights = RNG.integers(0, 3, 200)
    repeated = [np.repeat(x, weights) for x in (LABELS, PREDICTIONS)]
    found = classification_report(LABELS, PREDICTIONS, NAMES, sample_weight=weights)
    expected = classification_report(*repeated, NAMES)
    for name in ("accuracy", "majority_baseline", "macro_f1"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name))
    assert found.confusion == expected.confusion and found.mistakes == expected.mistakes


def test_a_model_that_predicts_one_class_only_is_warned_of():
    """All four first runs scored exactly the majority share and looked like success."""
    report = classification_report([0] * 30 + [1] * 3, [0] * 33, ["ham", "spam"])
    assert report.accuracy == report.majority_baseline == 30 / 33
    only, baseline = report.warnings
    assert "predicts one class only: 'ham'" in only and "not above the majority" in baseline
    assert "predicts one class only" in str(report) and "Majority baseline: 90.91%" in str(report)


def test_warnings_say_what_is_wrong_and_no_more():
    assert classification_report([0, 1], [0, 1]).warnings == ()
    # Examples of one class tell nothing about a model that predicts that class.
    assert classification_report([1, 1], [1, 1], ["a", "b"]).warnings == ()
    (never,) = classification_report([0, 0, 1, 1, 2], [0, 0, 1, 1, 1]).warnings
    assert never == "Never predicted: '2', 1 of 3 classes."
    (worse,) = classification_report([0, 0, 0, 1], [1, 1, 0, 1]).warnings
    assert "50.00%, is not above the majority baseline, 75.00%" in worse


def test_report_survives_json():
    report = classification_report(LABELS, PREDICTIONS, NAMES)
    assert ClassificationReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_report_fits_80_columns_whatever_the_classes():
    for names in ([f"a class with a very long name {i}" for i in range(5)], NAMES, ["[/b]"] * 5):
        shown = str(classification_report(LABELS, PREDICTIONS, names))
        assert max(map(len, shown.splitlines())) <= 80
    names = [f"class {i}" for i in range(20_000)]
    report = classification_report(LABELS, PREDICTIONS, names)
    assert report.confusion is None and len(str(report)) < 5000
    # Classes that do not occur have an F1 of 0, and are not the worst.
    assert "class 19999" not in str(report) and "class 3" in str(report)


def test_control_characters_of_labels_do_not_reach_the_terminal():
    report = classification_report([0, 1], [0, 0], ["\x1b[31mred", "a"])
    assert "\x1b" not in str(report) and "\x1b" not in "".join(report.warnings)


def test_bad_arguments():
    for arguments, message in [
        (([], []), "at least one"),
        (([0, 1], [0]), "one label and one predicted class"),
        (([0, 1], [[0, 1], [0, 1]]), "one label and one predicted class"),
        (([0, 2], [0, 1], ["a", "b"]), "indices into the 2 names. Received: indices from 0 to 2"),
        (([0, 1], [0, -1]), "from -1 to 1"),
    ]:
        with pytest.raises(InputError, match=message):
            classification_report(*arguments)


@sampled()
@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_macro_f1_counts_over_batches(library):
    metric = ke.metrics.macro_f1(5, library=library)
    scores = tf.one_hot(PREDICTIONS, 5)
    for start in range(0, 200, 64):
        metric.update_state(LABELS[start : start + 64, None], scores[start : start + 64])
    expected = classification_report(LABELS, PREDICTIONS, NAMES).macro_f1
    assert float(metric.result()) == pytest.approx(expected, abs=1e-6)
    metric.reset_state()
    metric.update_state([0, 1], tf.one_hot([0, 0], 5), sample_weight=[1.0, 0.0])
    assert float(metric.result()) == 1.0
    assert metric.get_config()["num_classes"] == 5


@sampled()
@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_evaluation_of_a_model_in_memory(library):
    keras = ke.flavor.get(library).keras
    model = keras.Sequential([keras.Input((5,)), keras.layers.Activation("linear")])
    data = tf.data.Dataset.from_tensor_slices((tf.one_hot(PREDICTIONS, 5), LABELS)).batch(64)
    found = ke.metrics.evaluate_classifier(model, data, NAMES)
    assert found == classification_report(LABELS, PREDICTIONS, NAMES)
    # Labels of binary losses are floats.
    floats = data.map(lambda x, y: (x, tf.cast(y, tf.float32)))
    assert ke.metrics.evaluate_classifier(model, floats, NAMES) == found
    # Each iteration of a shuffled dataset has another order; labels must belong to their scores.
    again = ke.metrics.evaluate_classifier(model, data.unbatch().shuffle(200).batch(9), NAMES)
    assert again.confusion == found.confusion
    for bad, message in [(data.repeat(), "must end"), ([], "none"), ([1], "batches")]:
        with pytest.raises(InputError, match=message):
            ke.metrics.evaluate_classifier(model, bad)


def test_scores_among_several_outputs():
    logits, probabilities = np.array([[2.0, 1.0]]), np.array([[0.7, 0.3]])
    label = np.array([b"a"])
    for outputs in (
        {"logits": logits},
        {"anything": logits},
        {"probabilities": probabilities, "logits": logits, "label": label},
        {"probabilities": probabilities, "outputs": logits, "label": label},
        {"hidden": np.zeros((1, 4, 4)), "logits": logits},
    ):
        assert ke.metrics.scores_of(outputs) is logits
    assert ke.metrics.scores_of({"probabilities": probabilities}) is probabilities
    for outputs in ({"a": logits, "b": logits}, {"a": np.zeros((1, 2, 2))}, {"a": label}):
        with pytest.raises(InputError, match=r"Accuracy needs one float output .* logits"):
            ke.metrics.scores_of(outputs)


def test_classes_of_a_single_score():
    classes = ke.metrics.predicted_classes
    assert classes(np.array([[0.2], [0.9]])).tolist() == [0, 1]
    assert classes(np.array([[-2.0], [0.3]])).tolist() == [0, 1]
    assert classes(np.array([[0.2, 0.9]])).tolist() == [1]
