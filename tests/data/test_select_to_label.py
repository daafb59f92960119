"""Active learning: which texts to label next."""

import numpy as np
import pytest

import keras_efficient as ke
from keras_efficient._errors import InputError


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.fixture
def predicted():
    return softmax(np.random.default_rng(0).normal(0, 2, (60, 4)))


def test_the_most_uncertain_texts(predicted):
    two = np.sort(predicted, 1)
    for method, certainty in (
        ("entropy", (predicted * np.log(predicted)).sum(1)),
        ("margin", two[:, -1] - two[:, -2]),
        ("confidence", predicted.max(1)),
    ):
        found = ke.data.select_to_label(predicted, 7, method=method)
        assert found.tolist() == np.argsort(certainty)[:7].tolist()
    certain = np.array([[1.0, 0.0], [0.5, 0.5]])
    assert ke.data.select_to_label(certain, 1).tolist() == [1]


def test_badge_takes_uncertain_texts_that_differ():
    rng = np.random.default_rng(1)
    # Two groups of like texts that are equally uncertain, of unequal size.
    group = np.repeat([0, 1], [80, 4])
    hidden = 5 * np.eye(2)[group] + rng.normal(0, 0.05, (84, 2))
    predicted = np.full((84, 2), [0.55, 0.45])
    taken = [
        set(group[ke.data.select_to_label(predicted, 2, method="badge", embeddings=hidden, seed=s)])
        for s in range(20)
    ]
    # Two draws at random take both groups in one of ten cases.
    assert all(groups == {0, 1} for groups in taken)
    from keras_efficient.data._select_to_label import _badge

    everything = _badge(predicted, hidden, 84, np.random.default_rng(0))
    assert sorted(everything) == list(range(84))
    equal = _badge(np.full((5, 2), 0.5), np.ones((5, 2)), 5, np.random.default_rng(0))
    assert sorted(equal) == list(range(5))


def test_badge_distances_are_those_of_outer_products(predicted):
    """The second choice is drawn by the squared distances of gradients, made here."""
    hidden = np.random.default_rng(2).normal(size=(60, 5))
    errors = predicted - np.eye(4)[predicted.argmax(1)]
    gradients = (errors[:, :, None] * hidden[:, None]).reshape(60, -1)
    first = int((gradients**2).sum(1).argmax())
    distances = ((gradients - gradients[first]) ** 2).sum(1)
    for seed in range(5):
        expected = np.random.default_rng(seed).choice(60, p=distances / distances.sum())
        found = ke.data.select_to_label(predicted, 2, method="badge", embeddings=hidden, seed=seed)
        assert found.tolist() == [first, expected]


def test_arguments_that_cannot_be_used(predicted):
    for other in (predicted * 2, predicted[:, 0], np.log(predicted)):
        with pytest.raises(InputError, match="`probabilities` must be"):
            ke.data.select_to_label(other, 2)
    with pytest.raises(InputError, match="`method` must be one of"):
        ke.data.select_to_label(predicted, 2, method="best")
    for number in (0, 61, 2.0):
        with pytest.raises(InputError, match="`number` must be an int from 1"):
            ke.data.select_to_label(predicted, number)
    for embeddings in (None, np.ones((3, 2))):
        with pytest.raises(InputError, match="`embeddings` must be finite"):
            ke.data.select_to_label(predicted, 2, method="badge", embeddings=embeddings)
