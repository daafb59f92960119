"""Reports of regression and of several classes per example, against scikit-learn and SciPy."""

import numpy as np
import pytest
from sklearn import metrics as sklearn
from sklearn.dummy import DummyRegressor

import keras_efficient as ke
from keras_efficient._errors import InputError
from keras_efficient.metrics._intervals import share_interval

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.normal(3, 2, 300)
PREDICTIONS = LABELS + RANDOM.normal(0.3, 1, 300)
WEIGHTS = RANDOM.uniform(0, 2, 300)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_regression_is_that_of_sklearn(weights):
    found = ke.metrics.regression_report(LABELS, PREDICTIONS, sample_weight=weights)
    options = {"sample_weight": weights}
    mean = np.full(300, np.average(LABELS, weights=weights))
    for name, function in (
        ("mae", sklearn.mean_absolute_error),
        ("rmse", sklearn.root_mean_squared_error),
        ("r2", sklearn.r2_score),
    ):
        assert getattr(found, name) == pytest.approx(function(LABELS, PREDICTIONS, **options))
        if name != "r2":
            expected = function(LABELS, mean, **options)
            assert getattr(found, f"baseline_{name}") == pytest.approx(expected)
    dummy = DummyRegressor().fit(LABELS[:, None], LABELS, sample_weight=weights)
    assert found.mean == pytest.approx(float(dummy.constant_.item()))
    for low, high in found.intervals.values():
        assert low < high
    assert found.interval[0] < found.r2 < found.interval[1]
    assert found.intervals["rmse"][0] < found.rmse < found.intervals["rmse"][1]
    assert "Mean baseline" in str(found) and not found.warnings


def test_correlations_are_those_of_scipy():
    from scipy import stats

    found = ke.metrics.regression_report(LABELS, PREDICTIONS)
    assert found.pearson == pytest.approx(stats.pearsonr(LABELS, PREDICTIONS).statistic)
    assert found.spearman == pytest.approx(stats.spearmanr(LABELS, PREDICTIONS).statistic)


def test_predictions_that_learned_nothing_are_warned_of():
    found = ke.metrics.regression_report(LABELS, np.full(300, LABELS.mean()))
    only, baseline = found.warnings
    assert "predicts one number only" in only and "not clearly below that of always" in baseline
    assert found.pearson == found.spearman == 0 and found.r2 == pytest.approx(0, abs=1e-9)
    assert ke.metrics.regression_report([2.0, 2.0], [2.0, 2.0]).r2 == 1


def test_the_bootstrap_covers_what_it_should():
    """The interval of the MAE is about ±1.96 standard errors of a mean."""
    found = ke.metrics.regression_report(LABELS, PREDICTIONS)
    errors = np.abs(LABELS - PREDICTIONS)
    half = 1.96 * errors.std() / np.sqrt(300)
    low, high = found.intervals["mae"]
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)


def test_wilson_is_that_of_the_textbook():
    # Brown, Cai & DasGupta 2001: 0 of 10 gives 0 to 0.278.
    assert share_interval(0.0, np.ones(10)) == pytest.approx((0, 0.2775), abs=1e-3)
    assert share_interval(0.5, np.full(40, 3.0)) == pytest.approx(share_interval(0.5, np.ones(40)))


@pytest.mark.parametrize("weights", [None, RANDOM.uniform(0, 2, 200)])
def test_several_classes_are_those_of_sklearn(weights):
    labels = RANDOM.random((200, 4)) < [0.6, 0.3, 0.1, 0.0]
    predictions = labels ^ (RANDOM.random((200, 4)) < [0.2, 0.2, 0.1, 0.0])
    names = ["a", "b", "c", "never"]
    found = ke.metrics.multi_label_report(labels, predictions, names, sample_weight=weights)
    options = {"sample_weight": weights, "zero_division": 0}
    for average in ("micro", "macro"):
        columns = slice(None) if average == "micro" else slice(3)
        expected = sklearn.f1_score(
            labels[:, columns], predictions[:, columns], average=average, **options
        )
        assert getattr(found, f"{average}_f1") == pytest.approx(expected)
    assert found.exact_match == pytest.approx(
        sklearn.accuracy_score(labels, predictions, sample_weight=weights)
    )
    recall = sklearn.recall_score(labels, predictions, average=None, **options)
    assert [c["recall"] for c in found.classes] == pytest.approx(list(recall))
    assert found.interval[0] < found.micro_f1 < found.interval[1]
    # No other constant answer is better.
    best = 0
    for number in range(1, 16):
        always = np.tile([bool(number & 1 << i) for i in range(4)], (200, 1))
        best = max(best, sklearn.f1_score(labels, always, average="micro", **options))
    assert found.baseline_micro_f1 == pytest.approx(best)
    assert "Per class" in str(found) and "never" in str(found)


@pytest.mark.parametrize("library", ["keras", "tf_keras"])
@pytest.mark.parametrize("average", ["micro", "macro"])
def test_the_metric_counts_over_batches(library, average):
    labels = (RANDOM.random((60, 3)) < 0.4).astype("int32")
    logits = RANDOM.normal(0, 1, (60, 3)).astype("float32")
    weights = RANDOM.uniform(0, 2, 60).astype("float32")
    metric = ke.metrics.multi_label_f1(3, average=average, library=library)
    for part in (slice(0, 50), slice(50, 60)):
        metric.update_state(labels[part], logits[part], weights[part])
    expected = sklearn.f1_score(labels, logits > 0, average=average, sample_weight=weights)
    assert float(metric.result()) == pytest.approx(expected, abs=1e-5)
    assert metric.name == f"{average}_f1"
    again = type(metric).from_config(metric.get_config())
    assert again.get_config() == metric.get_config()


def test_bad_arguments():
    for labels, predictions in (([], []), ([1.0], [1.0, 2.0])):
        with pytest.raises(InputError, match="one label and one predicted number"):
            ke.metrics.regression_report(labels, predictions)
    with pytest.raises(InputError, match="NaN or infinities among predictions"):
        ke.metrics.regression_report([1.0], [float("nan")])
    with pytest.raises(InputError, match="0 or 1 for each example and class"):
        ke.metrics.multi_label_report([1, 0], [1, 0])
    with pytest.raises(InputError, match="a name for each of 2 classes"):
        ke.metrics.multi_label_report([[1, 0]], [[1, 0]], ["a"])
    with pytest.raises(InputError, match="`average` must be"):
        ke.metrics.multi_label_f1(2, average="weighted")
