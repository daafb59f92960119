"""`text`: texts in, length-bucketed and dynamically padded `tf.data` batches out."""

import os
from collections import Counter

import numpy as np
import tensorflow as tf

from keras_efficient._errors import InputError
from keras_efficient.data._bucketing import check_buckets, choose_buckets
from keras_efficient.data._read_records import read_records
from keras_efficient.data._records import Records
from keras_efficient.data._text_stats import TextStats
from keras_efficient.data._tokenizer import as_tokenizer

# Any fixed number but 0: seeds (0, 0) would mean "take a random seed".
_SECOND_SEED = 20_250_601


def text(
    records,
    tokenizer,
    *,
    batch_size: int,
    max_length: int = 128,
    shuffle: bool = True,
    seed: int = 0,
    buckets=None,
    drop_remainder: bool = False,
    first_epoch: int = 0,
) -> tf.data.Dataset:
    """Batches of tokenised texts for `model.fit`, `evaluate` and `predict`, with little padding.

    The texts are tokenised once. Each iteration over the dataset is an epoch:

    - `shuffle=True`: shuffle all texts, sort them by bucket (stably, so each bucket stays
      shuffled), cut the sequence into batches, and shuffle the full batches. A batch is padded to
      the bucket of its longest text. Where two buckets meet, a batch takes from both; so there is
      one ragged batch at most, the last one. Every epoch has each text once and another order;
      the orders follow from `seed` alone, in every process, whatever `tf.random.set_seed` says.
    - `shuffle=False`: the order of the input, each batch padded to the smallest bucket that holds
      it. For evaluation and prediction.

    There is no Python in the pipeline: it shards, serialises and checkpoints like any `tf.data`.

    Args:
        records: `Records`, the path of a data file (see `read_records`), a list of texts, or a list
            of (text, label) pairs. For validation data make `Records` with the training records'
            `label_names`.
        tokenizer: A `Tokenizer`, or what `as_tokenizer` makes one of.
        batch_size: Texts per batch (the global one, over all replicas).
        max_length: Longer texts are cut to this many tokens. Default: 128.
        shuffle: See above. Default: True.
        seed: Seed of all epochs. Default: 0.
        buckets: Ascending padded lengths in tokens, the last one holding the longest text. With a
            single one all batches have the same, static length (for TPUs). Default: None: chosen
            by `choose_buckets`, at most six.
        drop_remainder: Leave out the texts that do not fill a batch (`shuffle=True`: others in
            each epoch, chosen from the buckets in proportion), and make the batch dimension
            static. Default: False.
        first_epoch: The dataset starts with this epoch of its sequence; give the number of
            finished epochs when resuming a run, and to `fit` the dataset's `repeat()` with
            `steps_per_epoch` (without it Keras 3 starts a dataset twice an epoch). Default: 0.

    Returns:
        A dataset of (features, labels), or of features alone if there are no labels. Features: a
        dict from the tokenizer's input names to int32 [batch, length]: "ids", "mask" (1 on real
        tokens, 0 on padding), "segments" (zeros). Labels: int32 [batch]. Its attribute `stats`
        holds `TextStats`.

    Raises:
        InputError: An argument is out of range, or there are no texts.
        TypeError: `tokenizer` is no tokenizer.

    Example:
        >>> train = text("train.csv", tokenizer, batch_size=32)  # doctest: +SKIP
        >>> print(train.stats)  # doctest: +SKIP
        >>> model.fit(train, epochs=3, shuffle=False)  # doctest: +SKIP

        (`fit` never shuffles a `tf.data.Dataset`; Keras 3 warns so unless told shuffle=False.)
    """
    tokenizer = as_tokenizer(tokenizer)
    batch_size = _whole("batch_size", batch_size, 1)
    seed = _whole("seed", seed, 0)
    first_epoch = _whole("first_epoch", first_epoch, 0)
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

    ids, truncated = tokenizer.encode_and_count(records.texts, max_length)
    lengths = np.array([len(row) for row in ids], np.int32)
    if not lengths.all():
        number = int(np.argmin(lengths))
        raise InputError(
            f"Each text must have a token. Received: {records.texts[number]!r:.60} "
            f"({records.source}, item {number}), of which the tokenizer leaves nothing. Remove it."
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
    stats = _stats(
        lengths, bucket_of, buckets, kept, batch_size, shuffle, drop_remainder, truncated
    )

    # On the CPU, where tf.data runs: the corpus has no business in a GPU's memory.
    with tf.device("/CPU:0"):
        if shuffle:
            order = _shuffled(bucket_of, kept, batch_size, seed, first_epoch)
        else:
            order = tf.data.Dataset.range(total, output_type=tf.int32)
        batches = order.batch(batch_size, drop_remainder=drop_remainder)
        gather = _gather(ids, lengths, records.labels, buckets, tokenizer)
        dataset = batches.map(gather, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        options = tf.data.Options()
        # There are no files to divide among workers: divide each batch.
        options.experimental_distribute.auto_shard_policy = (
            tf.data.experimental.AutoShardPolicy.DATA
        )
        dataset = dataset.prefetch(tf.data.AUTOTUNE).with_options(options)
    dataset.stats = stats
    return dataset


def _shuffled(bucket_of, kept, batch_size, seed, first_epoch) -> tf.data.Dataset:
    """The indices of all epochs' texts, batch after batch; a new epoch at every iteration."""
    # `Dataset.random` would mix tf.random.set_seed into the seed, and differ between programs.
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
    # Positions among the texts sorted by bucket: the first `kept` of each, which are random ones.
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
    # The algorithm is named because "auto" may differ from device to device.
    seed = tf.stack([epoch_seed, tf.constant(use, tf.int64)])
    return tf.random.experimental.stateless_shuffle(tf.range(size), seed, alg="philox")


def _gather(ids, lengths, labels, buckets, tokenizer):
    """A function from indices to a padded batch."""
    # One flat tensor and where each text starts: the smallest form, and gathered without Python.
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
        # Padding would point past the end of the last text.
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
    """How many texts of each bucket an epoch has.

    The remainder is taken from the buckets in proportion (each time from the one that keeps the
    highest share), so that none loses all its texts while another could spare one.
    """
    kept = counts.astype(np.int64)
    if drop_remainder:
        for _ in range(int(kept.sum()) % batch_size):
            kept[np.argmax((kept - 1) / np.maximum(counts, 1))] -= 1
    return kept


def _stats(
    lengths, bucket_of, buckets, kept, batch_size, shuffle, drop_remainder, truncated
) -> TextStats:
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
        truncated=truncated,
    )


def _whole(name, value, least) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InputError(
            f"`{name}` must be an integer of {least} or more. Received: {value!r}. Give for "
            f"example {max(least, 32)}."
        )
    return int(value)
