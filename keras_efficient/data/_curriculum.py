"""`curriculum`: epochs of the easiest texts before epochs of all."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_efficient._errors import InputError
from keras_efficient.data._records import Records
from keras_efficient.flavor._typing import Dataset


def curriculum(
    records: Records,
    scores: Any,
    batches: Callable[[Records], Dataset],
    *,
    shares: Sequence[float] = (0.25, 0.5, 0.75),
) -> Dataset:
    """Train on the easiest texts first: an epoch of each share, then epochs of all without end.

    The texts are sorted by their scores, of which the lowest are the easiest: their lengths, their
    losses under a model that was trained before, or scores of yours. Within an epoch the order is
    that of `batches`.

    The dataset has no end; pass `steps_per_epoch=data.stats.batches` to `fit`. Give `batches` the
    `buckets` of all texts if XLA is to compile no other shapes for the easy ones.

    Args:
        records: The texts.
        scores: Float array `[texts]`, the difficulty of each.
        batches: Function of `Records` that returns batches, such as a call of `ke.data.text`.
        shares: Shares of the texts in the first epochs, above 0 and below 1, increasing. Default:
            (0.25, 0.5, 0.75).

    Returns:
        The dataset. Its `stats` are those of an epoch of all texts.

    Raises:
        InputError: There is not a finite score for each text, or the shares do not increase.

    Examples:
        >>> tokenizer = ke.data.Tokenizer.from_directory(
        ...     "models/all-MiniLM-L6-v2", inputs=ke.data.KERASHUB
        ... )
        >>> records = ke.data.Records.of(["good", "a film that is not so bad"], [1, 0])
        >>> lengths = [len(text.split()) for text in records.texts]
        >>> data = ke.data.curriculum(
        ...     records,
        ...     lengths,
        ...     lambda easy: ke.data.text(easy, tokenizer, batch_size=2),
        ...     shares=(0.5,),
        ... )
        >>> [len(labels) for _, labels in data.take(3)]
        [1, 2, 2]

    Reference:
        Bengio et al. 2009, "Curriculum Learning"; Platanios et al. 2019, "Competence-based
        Curriculum Learning for Neural Machine Translation".
    """
    scores = np.asarray(scores)
    if scores.shape != (len(records),) or not np.isfinite(scores).all():
        raise InputError(
            f"`scores` must be a finite number for each of the {len(records)} texts. Received: an "
            f"array {list(scores.shape)}. Score the texts in their order."
        )
    steps = [0.0, *shares, 1.0]
    if not all(a < b for a, b in itertools.pairwise(steps)):
        raise InputError(
            "`shares` must increase, above 0 and below 1. Received: "
            f"{tuple(shares)!r:.80}. Give for example (0.25, 0.5, 0.75)."
        )
    order = np.argsort(scores, kind="stable")
    everything = batches(records)
    found: Any = everything.repeat()
    for share in reversed(shares):
        easiest = np.sort(order[: max(1, round(share * len(records)))])
        found = batches(records.take(easiest)).concatenate(found)
    found.stats = getattr(everything, "stats", None)
    return found
