"""Labelled batches for an evaluation, checked one by one."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from keras_efficient._errors import InputError


def labelled_batches(
    data: tuple | Iterable[Any], name: str
) -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
    """Yield `(features, classes int64 [batch], weights [batch])` of each batch.

    Args:
        data: a batch `(features, labels)` or `(features, labels, sample_weights)`, or a finite
            iterable of such batches. Labels are classes, [batch], or one-hot, [batch, classes].
        name: name of the argument, for messages.

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
        labels = np.asarray(batch[1])
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
                f"{labels.shape}. Leave `{name}` out for other tasks."
            )
        weights = np.asarray(batch[2]) if len(batch) == 3 else np.ones(len(labels))
        if weights.shape != (len(labels),):
            raise InputError(
                f"`{name}` takes one weight per example. Received: weights of shape "
                f"{weights.shape} for {len(labels)} examples. Leave them out."
            )
        yield batch[0], labels.reshape(-1).astype("int64"), weights
    if empty:
        raise InputError(f"`{name}` must hold examples. Received: none. Give some batches.")


def unless_ones(weights: list[np.ndarray]) -> np.ndarray | None:
    """Return the weights of all batches in one array, or None if all of them are 1."""
    joined = np.concatenate(weights)
    return None if (joined == 1).all() else joined
