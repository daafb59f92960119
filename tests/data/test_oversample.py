"""Oversampling of rare classes."""

import numpy as np
import pytest

import keras_efficient as ke
from keras_efficient._errors import InputError

COUNTS = (60, 25, 4)
LABELS = np.repeat(["a", "b", "c"], COUNTS)
RECORDS = ke.data.Records.of([f"text {i}" for i in range(len(LABELS))], LABELS.tolist())


@pytest.mark.parametrize("temperature", [1, 2, 5.0, np.inf])
def test_classes_occur_as_the_temperature_says(temperature):
    found = ke.data.oversample(RECORDS, temperature=temperature)
    wanted = [round(60 * (n / 60) ** (1 / temperature)) for n in COUNTS]
    assert np.bincount(found.labels).tolist() == wanted
    # Every text occurs, and those of a class equally often, but for one.
    times = {text: found.texts.count(text) for text in RECORDS.texts}
    for label in "abc":
        own = {
            times[text] for text, other in zip(RECORDS.texts, LABELS, strict=True) if other == label
        }
        assert min(own) >= 1 and max(own) - min(own) <= 1
    assert found.texts[: len(RECORDS)] == RECORDS.texts
    labels = dict(zip(RECORDS.texts, RECORDS.labels, strict=True))
    assert [labels[text] for text in found.texts] == found.labels.tolist()


def test_the_draw_depends_on_the_seed():
    texts = [ke.data.oversample(RECORDS, seed=seed).texts for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


def test_what_cannot_be_oversampled():
    with pytest.raises(InputError, match="Oversampling is by classes"):
        ke.data.oversample(RECORDS.without_labels())
    for temperature in (0.5, "2", np.nan):
        with pytest.raises(InputError, match="`temperature` must be a number of 1 or more"):
            ke.data.oversample(RECORDS, temperature=temperature)
