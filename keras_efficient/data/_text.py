"""A `tf.data` pipeline of tokenized, length-bucketed and dynamically padded batches."""

import dataclasses
import os
from collections import Counter
from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient._errors import InputError
from keras_efficient.data._bucketing import check_buckets, choose_buckets
from keras_efficient.data._read_records import read_records
from keras_efficient.data._records import Records
from keras_efficient.data._text_stats import TextStats
from keras_efficient.data._tokenizer import as_tokenizer
from keras_efficient.flavor._typing import Dataset

# Nonzero, since seeds (0, 0) make TensorFlow choose a random seed.
_SECOND_SEED = 20_250_601


def text(
    records: Any,
    tokenizer: Any,
    *,
    batch_size: int,
    max_length: int = 128,
    shuffle: bool = True,
    seed: int = 0,
    buckets: Any = None,
    drop_remainder: bool = False,
    first_epoch: int = 0,
) -> Dataset:
    """Make batches of tokenized texts for `fit`, `evaluate` and `predict`, with little padding.

    The texts are tokenized once. Each iteration over the dataset is an epoch:

    - With `shuffle=True`, all texts are shuffled and then sorted by bucket. The sort is stable,
      so the texts of a bucket remain shuffled. The sequence is divided into batches, and the
      order of the full batches is shuffled. A batch is padded to the bucket of its longest text.
      At the border of two buckets a batch takes texts from both, so that at most the last batch
      is smaller than the others. Every epoch contains each text once, in another order. The
      orders depend only on `seed`, in every process, and not on `tf.random.set_seed`.
    - With `shuffle=False`, for evaluation and prediction, the texts keep their order, and each
      batch is padded to the smallest bucket that is long enough.

    The pipeline contains no Python code: it can be sharded, serialized and checkpointed like any
    `tf.data` pipeline. `fit` never shuffles a `tf.data.Dataset`; pass it `shuffle=False` to avoid
    Keras 3's warning about that.

    Args:
        records: `Records`, the path of a data file for `read_records`, a list of texts or a list of
            (text, label) pairs. For validation data make `Records` with the `label_names` of the
            training records.
        tokenizer: A `Tokenizer`, or an object that `as_tokenizer` accepts.
        batch_size: Number of texts per global batch, over all replicas.
        max_length: Texts are truncated to this number of tokens. Default: 128.
        shuffle: Whether to shuffle and sort as above. Default: True.
        seed: Seed of the orders of all epochs. Default: 0.
        buckets: Ascending padded lengths in tokens; the last one must be long enough for the
            longest text. A single bucket gives all batches the same, static length, for TPUs.
            Default: None, at most six, chosen by `choose_buckets`.
        drop_remainder: Whether to omit texts that do not fill a batch, and to make the batch
            dimension static. With `shuffle=True` each epoch omits others, in proportion to the
            sizes of the buckets. Default: False.
        first_epoch: Index of the epoch that the dataset starts with. When resuming a run, pass
            the number of finished epochs, and train on the dataset's `repeat()` with
            `steps_per_epoch`; otherwise Keras 3 starts the dataset twice per epoch. Default: 0.

    Returns:
        A dataset of (features, labels), or of features if there are no labels. The features are a
        dict from the tokenizer's input names to int32 tensors `[batch, length]`: "ids", "mask" (1
        for tokens, 0 for padding) and "segments" (zeros). The labels are int32 `[batch]`. The
        dataset's attribute `stats` is a `TextStats`.

    Raises:
        InputError: An argument is out of range, or there are no texts.
        TypeError: `tokenizer` is not a tokenizer.

    Examples:
        >>> folder, inputs = "models/all-MiniLM-L6-v2", ke.data.KERASHUB
        >>> tokenizer = ke.data.Tokenizer.from_directory(folder, inputs=inputs)
        >>> train = ke.data.text("reviews.csv", tokenizer, batch_size=32)
        >>> features, labels = next(iter(train))
        >>> sorted(features), labels.shape[0]
        (['padding_mask', 'segment_ids', 'token_ids'], 32)

    Reference:
        `tf.data.Dataset.bucket_by_sequence_length`, which pads batches in the same way but makes
        an incomplete batch for each bucket.
    """
    tokenizer = as_tokenizer(tokenizer)
    batch_size = _checked_int("batch_size", batch_size, 1)
    seed = _checked_int("seed", seed, 0)
    first_epoch = _checked_int("first_epoch", first_epoch, 0)
    max_length = tokenizer.check_length(max_length)
    if isinstance(records, str | os.PathLike):
        records = read_records(records)
    elif not isinstance(records, Records):
        records = Records.of(records)
    total = len(records)
    if not total:
        raise InputError(
            f"There must be at least one text. Received: none ({records.source}). Check what "
            "selected them."
        )
    if drop_remainder and total < batch_size:
        raise InputError(
            f"With drop_remainder=True there must be a full batch. Received: {total} texts "
            f"({records.source}) and batch_size={batch_size}. Lower `batch_size`, or keep the "
            "remainder."
        )

    ids, truncated, longest = tokenizer.encode_and_count(records.texts, max_length)
    lengths = np.array([len(row) for row in ids], np.int32)
    if not lengths.all():
        number = int(np.argmin(lengths))
        raise InputError(
            f"Each text must have a token. Received: {records.texts[number]!r:.60} "
            f"({records.source}, item {number}), for which the tokenizer returns none. Remove it."
        )
    if buckets is None:
        buckets = choose_buckets(lengths, max_length=max_length)
    else:
        buckets = check_buckets(buckets, longest=int(lengths.max()))
        if buckets[-1] > tokenizer.max_length:
            raise InputError(
                f"No bucket may exceed the tokenizer's max_length={tokenizer.max_length}. "
                f"Received: {buckets}. Remove the longer ones."
            )
    bucket_of = np.searchsorted(buckets, lengths).astype(np.int32)
    kept = _kept(np.bincount(bucket_of, minlength=len(buckets)), batch_size, drop_remainder)
    stats = _stats(lengths, bucket_of, buckets, kept, batch_size, shuffle)
    stats = dataclasses.replace(stats, truncated=truncated, longest=longest, max_length=max_length)

    # tf.data runs on the CPU; the corpus would otherwise take up memory of a GPU.
    with tf.device("/CPU:0"):
        if shuffle:
            order = _shuffled(bucket_of, kept, batch_size, seed, first_epoch)
        else:
            order = tf.data.Dataset.range(total, output_type=tf.int32)
        batches = order.batch(batch_size, drop_remainder=drop_remainder)
        gather = _gather(ids, lengths, records.labels, buckets, tokenizer)
        dataset: Any = batches.map(gather, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        options = tf.data.Options()
        # There are no files to divide among workers, so each batch is divided.
        options.experimental_distribute.auto_shard_policy = (
            tf.data.experimental.AutoShardPolicy.DATA
        )
        dataset = dataset.prefetch(tf.data.AUTOTUNE).with_options(options)
    dataset.stats = stats
    return dataset


def _shuffled(bucket_of, kept, batch_size, seed, first_epoch) -> tf.data.Dataset:
    """Return a dataset of the indices of an epoch's texts; each iteration is another epoch."""
    # `Dataset.random` also depends on tf.random.set_seed, which differs between programs.
    variant = tf.raw_ops.RandomDatasetV2(
        seed=tf.constant(seed, tf.int64),
        seed2=tf.constant(_SECOND_SEED, tf.int64),
        seed_generator=tf.raw_ops.DummySeedGenerator(),
        rerandomize_each_iteration=True,
        output_types=[tf.int64],
        output_shapes=[tf.TensorShape([])],
    )
    epoch_seeds = tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.int64)).take(1)
    for _ in range(first_epoch):
        next(iter(epoch_seeds))

    total, epoch_size = len(bucket_of), int(kept.sum())
    counts = np.bincount(bucket_of, minlength=len(kept))
    starts = np.cumsum(counts) - counts
    # Positions in the texts sorted by bucket: the first `kept` of each bucket, a random choice.
    positions = np.concatenate([np.arange(s, s + k) for s, k in zip(starts, kept, strict=True)])
    positions = tf.constant(positions, tf.int32)
    bucket_of = tf.constant(bucket_of)
    full = epoch_size // batch_size

    def epoch(epoch_seed):
        order = _permutation(total, epoch_seed, 0)
        order = tf.gather(order, tf.argsort(tf.gather(bucket_of, order), stable=True))
        order = tf.gather(order, positions)
        head = tf.reshape(order[: full * batch_size], [full, batch_size])
        head = tf.gather(head, _permutation(full, epoch_seed, 1))
        order = tf.concat([tf.reshape(head, [-1]), order[full * batch_size :]], axis=0)
        return tf.data.Dataset.from_tensor_slices(order)

    return epoch_seeds.flat_map(epoch).apply(tf.data.experimental.assert_cardinality(epoch_size))


def _permutation(size, epoch_seed, use):
    # "auto" may choose another algorithm on another device.
    seed = tf.stack([epoch_seed, tf.constant(use, tf.int64)])
    random: Any = tf.random
    return random.experimental.stateless_shuffle(tf.range(size), seed, alg="philox")


def _gather(ids, lengths, labels, buckets, tokenizer):
    """Return a function from indices to a padded batch."""
    # One flat tensor and the start of each text take the least memory.
    flat = tf.constant(np.concatenate(ids))
    starts = tf.constant(np.cumsum(lengths, dtype=np.int64) - lengths)
    lengths = tf.constant(lengths)
    labels = None if labels is None else tf.constant(labels)
    padded = tf.constant(buckets, tf.int32)
    only = buckets[0] if len(buckets) == 1 else None
    names = tokenizer.inputs
    pad_id = tf.constant(tokenizer.pad_id, tf.int32)

    def gather(indices):
        here = tf.gather(lengths, indices)
        bucket = tf.searchsorted(padded, tf.reduce_max(here)[None])[0]
        columns = tf.range(padded[bucket])
        real = columns < here[:, None]
        places = tf.gather(starts, indices)[:, None] + tf.cast(columns, tf.int64)
        # The places of padding may lie past the end of the last text.
        tokens = tf.gather(flat, tf.where(real, places, 0))
        batch = {
            "ids": tf.where(real, tokens, pad_id),
            "mask": tf.cast(real, tf.int32),
            "segments": tf.zeros_like(tokens),
        }
        features = {name: batch[key] for key, name in names.items()}
        for feature in features.values():
            feature.set_shape([indices.shape[0], only])
        return features if labels is None else (features, tf.gather(labels, indices))

    return gather


def _kept(counts, batch_size, drop_remainder) -> np.ndarray:
    """Return the number of texts of each bucket in an epoch.

    The remainder is removed from the buckets in proportion to their sizes, one text at a time
    from the bucket that keeps the highest fraction.
    """
    kept = counts.astype(np.int64)
    if drop_remainder:
        for _ in range(int(kept.sum()) % batch_size):
            kept[np.argmax((kept - 1) / np.maximum(counts, 1))] -= 1
    return kept


def _stats(lengths, bucket_of, buckets, kept, batch_size, shuffle) -> TextStats:
    examples = int(kept.sum())
    if shuffle:
        sequence = np.repeat(np.arange(len(buckets)), kept)
        counts = np.bincount(bucket_of, minlength=len(buckets))
        sums = np.bincount(bucket_of, weights=lengths, minlength=len(buckets))
        tokens = round(float((sums * kept / np.maximum(counts, 1)).sum()))
    else:
        sequence = bucket_of[:examples]
        tokens = int(lengths[:examples].sum())
    shapes = Counter()
    for start in range(0, examples, batch_size):
        chunk = sequence[start : start + batch_size]
        shapes[buckets[chunk.max()], len(chunk)] += 1
    return TextStats(
        examples=examples,
        batches=shapes.total(),
        batch_size=batch_size,
        tokens=tokens,
        padded_tokens=sum(length * size * count for (length, size), count in shapes.items()),
        shapes=tuple((size, length, count) for (length, size), count in sorted(shapes.items())),
    )


def _checked_int(name, value, least) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InputError(
            f"`{name}` must be an integer of {least} or more. Received: {value!r}. Give for "
            f"example {max(least, 32)}."
        )
    return int(value)
