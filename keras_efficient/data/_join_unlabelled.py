"""`join_unlabelled`: batches of texts with and without labels."""

from typing import Any

import tensorflow as tf

from keras_efficient._errors import InputError
from keras_efficient.data._tokenizer import as_tokenizer
from keras_efficient.flavor._typing import Dataset


def join_unlabelled(labelled: Dataset, unlabelled: Dataset, tokenizer: Any) -> Dataset:
    """Join batches of labelled and of unlabelled texts, for semi-supervised training.

    Each batch consists of a labelled one, followed by an unlabelled one. Texts without labels have
    the label 0 and the sample weight 0; the others have equal weights, such that the loss is the
    mean over them. Pass metrics as `weighted_metrics` to `compile`, so that they are of the
    labelled texts alone.

    Args:
        labelled: Batches of `(features, labels)`, without end or with one; then they are repeated.
        unlabelled: Batches of features; each is seen once in an epoch.
        tokenizer: What both were tokenized with.

    Returns:
        A dataset of `(features, labels, sample weights)`, as long as `unlabelled`.

    Raises:
        InputError: The datasets do not have the same features, or not the labels they should have.

    Examples:
        >>> tokenizer = ke.data.Tokenizer.from_directory(
        ...     "models/all-MiniLM-L6-v2", inputs=ke.data.KERASHUB
        ... )
        >>> some = ke.data.text([("good", 1), ("bad", 0)], tokenizer, batch_size=2)
        >>> more = ke.data.text(["a film", "a plot", "a film with a plot"], tokenizer, batch_size=3)
        >>> features, labels, weights = next(iter(ke.data.join_unlabelled(some, more, tokenizer)))
        >>> features["token_ids"].shape[0], weights.numpy().tolist()
        (5, [2.5, 2.5, 0.0, 0.0, 0.0])

    Reference:
        Xie et al. 2020, "Unsupervised Data Augmentation for Consistency Training".
    """
    tokenizer = as_tokenizer(tokenizer)
    given, more = labelled.element_spec, unlabelled.element_spec
    if not isinstance(given, tuple) or len(given) != 2 or not isinstance(given[0], dict):
        raise InputError(
            f"`labelled` must be batches of (features, labels). Received: {given!r:.200}. Make "
            "them with ke.data.text from texts with labels."
        )
    if not isinstance(more, dict) or set(more) != set(given[0]):
        raise InputError(
            "`unlabelled` must be batches of the same features, without labels. Received: "
            f"{more!r:.200}. Make them with ke.data.text from `records.without_labels()`."
        )
    pad = {tokenizer.inputs["ids"]: tokenizer.pad_id}

    def join(first, other):
        (features, labels), joined = first, {}
        for name, one in features.items():
            two = tf.cast(other[name], one.dtype)
            length: Any = tf.maximum(tf.shape(one)[1], tf.shape(two)[1])
            parts = [
                tf.pad(x, [[0, 0], [0, length - tf.shape(x)[1]]], constant_values=pad.get(name, 0))
                for x in (one, two)
            ]
            joined[name] = tf.concat(parts, 0)
        some, rest = tf.shape(labels)[0], tf.shape(other[next(iter(other))])[0]
        share = tf.cast(some + rest, tf.float32) / tf.cast(some, tf.float32)
        weights = tf.concat([tf.fill([some], share), tf.zeros([rest])], 0)
        none = tf.zeros(tf.concat([[rest], tf.shape(labels)[1:]], 0), labels.dtype)
        return joined, tf.concat([labels, none], 0), weights

    found: Any = tf.data.Dataset.zip(labelled.repeat(), unlabelled)
    return found.map(join, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
