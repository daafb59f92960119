"""Labelled batches for an evaluation, checked one by one."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from keras_efficient._errors import InputError
from keras_efficient.flavor._ignored_label import IGNORED


def labelled_batches(
    data: tuple | Iterable[Any], name: str, labels_of: Callable[[Any, str], np.ndarray]
) -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
    """Yield `(features, labels [batch, ...], weights [batch])` of each batch.

    Args:
        data: a batch `(features, labels)` or `(features, labels, sample_weights)`, or a finite
            iterable of such batches.
        name: name of the argument, for messages.
        labels_of: function of a batch's labels and of `name` that checks them, such as
            `batch_classes`.

    Raises:
        InputError: there are no batches, or they lack one label per example.
    """
    import tensorflow as tf

    if isinstance(data, tf.data.Dataset) and data.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise InputError(
            f"`{name}` must end. Received: an endless dataset. Give `dataset.take(100)`."
        )
    empty = True
    for batch in [data] if isinstance(data, tuple) else data:
        empty = False
        if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
            raise InputError(
                f"`{name}` must be batches (features, labels). Received: "
                f"{type(batch).__name__}. Give them as `fit` takes them."
            )
        labels = labels_of(batch[1], name)
        weights = np.asarray(batch[2]) if len(batch) == 3 else np.ones(len(labels))
        if weights.shape != (len(labels),):
            raise InputError(
                f"`{name}` takes one weight per example. Received: weights of shape "
                f"{weights.shape} for {len(labels)} examples. Leave them out."
            )
        yield batch[0], labels, weights
    if empty:
        raise InputError(f"`{name}` must hold examples. Received: none. Give some batches.")


def batch_classes(labels: Any, name: str) -> np.ndarray:
    """Return the classes of a batch, int64 [batch], from classes or one-hot rows.

    Raises:
        InputError: there is not one class per example.
    """
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] > 1:
        if not np.allclose(labels.sum(-1), 1):
            raise InputError(
                f"`{name}` takes one class per example. Received: rows of labels that do "
                "not sum to 1. Leave it out where an example has several."
            )
        labels = labels.argmax(-1)
    if labels.size != len(labels) or labels.size == 0:
        raise InputError(
            f"`{name}` compares classes, one per example. Received: labels of shape "
            f"{labels.shape}. Leave `{name}` out, or name the `task`."
        )
    return labels.reshape(-1).astype("int64")


def scored_batches(
    model: Any, data: Iterable[Any], labels_of: Callable, scores_of: Callable
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return labels, a model's scores and the weights, if they differ, of all examples.

    Args:
        model: a built model.
        data: as for `labelled_batches`.
        labels_of: as for `labelled_batches`.
        scores_of: function of a dict of output arrays, and of the batch's labels, that returns the
            scores.
    """
    labels, scores, weights = [], [], []
    for features, found, weight in labelled_batches(data, "data", labels_of):
        labels.append(found)
        weights.append(weight)
        outputs = model.predict_on_batch(features)
        named = outputs if isinstance(outputs, Mapping) else {"": outputs}
        scores.append(scores_of(named, found))
    return joined(labels, fill=IGNORED), joined(scores), unless_ones(weights)


def joined(batches: list[np.ndarray], fill: float = 0) -> np.ndarray:
    """Return the arrays of all batches in one, padded with `fill` where batches differ in length.

    Args:
        batches: list of arrays [batch, ...] or, of tokens, [batch, tokens, ...].
        fill: number for padding. Default: 0.
    """
    if batches[0].ndim == 1:
        return np.concatenate(batches)
    longest = max(array.shape[1] for array in batches)
    rest = [(0, 0)] * (batches[0].ndim - 2)
    return np.concatenate(
        [
            np.pad(x, [(0, 0), (0, longest - x.shape[1]), *rest], constant_values=fill)
            for x in batches
        ]
    )


def unless_ones(weights: list[np.ndarray]) -> np.ndarray | None:
    """Return the weights of all batches in one array, or None if all of them are 1."""
    joined = np.concatenate(weights)
    return None if (joined == 1).all() else joined
