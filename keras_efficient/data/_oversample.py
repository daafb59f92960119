"""`oversample`: repeat the texts of rare classes."""

import math

import numpy as np

from keras_efficient._errors import InputError
from keras_efficient.data._records import Records


def oversample(records: Records, *, temperature: float = math.inf, seed: int = 0) -> Records:
    """Repeat the texts of rare classes, so that all classes occur more equally often.

    A class of n texts occurs N · (n / N)^(1/T) times, where N is the number of texts of the most
    frequent class and T the temperature: as often as before for T = 1, and all classes equally
    often for an infinite T. Each text occurs at least once; which ones occur once more than others
    is drawn at random. Split off validation data first.

    Args:
        records: Records of one class per text.
        temperature: T, at least 1. Default: infinity.
        seed: Seed of the draw. Default: 0.

    Returns:
        The records, followed by repetitions.

    Raises:
        InputError: The records have no classes, or `temperature` is below 1.

    Examples:
        >>> records = ke.data.Records.of(["a", "b", "c", "d", "e"], [0, 0, 0, 0, 1])
        >>> np.bincount(ke.data.oversample(records).labels).tolist()
        [4, 4]
        >>> np.bincount(ke.data.oversample(records, temperature=2).labels).tolist()
        [4, 2]

    Reference:
        Devlin et al. 2019, multilingual BERT, and Conneau et al. 2020, "Unsupervised Cross-lingual
        Representation Learning at Scale" (the temperature, of languages); `RandomOverSampler` of
        imbalanced-learn.
    """
    if not records.has_classes:
        raise InputError(
            f"Oversampling is by classes, one per text. Received: {records!r:.200}. Give labels of "
            "a classification."
        )
    number = isinstance(temperature, int | float) and not isinstance(temperature, bool)
    if not number or not temperature >= 1:
        raise InputError(
            f"`temperature` must be a number of 1 or more. Received: {temperature!r:.60}. Give for "
            "example 2."
        )
    rng = np.random.default_rng(seed)
    counts = np.bincount(records.labels)
    most, repeated = counts.max(), []
    for label in np.flatnonzero(counts):
        members = np.flatnonzero(records.labels == label)
        wanted = round(float(most * (len(members) / most) ** (1 / temperature)))
        whole, rest = divmod(wanted - len(members), len(members))
        chosen = rng.choice(members, rest, replace=False)
        repeated += [np.tile(members, whole), chosen]
    return records.take(np.concatenate([np.arange(len(records)), *repeated]))
