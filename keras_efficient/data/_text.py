"""A `tf.data` pipeline of tokenized, length-bucketed and dynamically padded batches."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient._errors import InputError
from keras_efficient.data._as_records import as_records
from keras_efficient.data._batch_plan import plan_batches
from keras_efficient.data._bucketing import check_buckets, choose_buckets
from keras_efficient.data._text_stats import TextStats
from keras_efficient.data._token_store import FileTokens, MemoryTokens
from keras_efficient.data._tokenized_texts import TokenizedTexts
from keras_efficient.data._tokenizer import as_tokenizer
from keras_efficient.flavor._ignored_label import IGNORED
from keras_efficient.flavor._typing import Dataset

# Nonzero, since seeds (0, 0) make TensorFlow choose a random seed.
_SECOND_SEED = 20_250_601


def text(
    records: Any,
    tokenizer: Any,
    *,
    batch_size: int | None = None,
    tokens_per_batch: int | None = None,
    max_length: int | None = None,
    stride: int | None = None,
    shuffle: bool = True,
    seed: int = 0,
    buckets: Any = None,
    group_by_length: bool = False,
    drop_remainder: bool = False,
    first_epoch: int = 0,
    text_column: str | Sequence[str] = "text",
    label_column: str | Sequence[str] | None = "label",
) -> Dataset:
    """Make batches of tokenized texts for `fit`, `evaluate` and `predict`, with little padding.

    The texts are tokenized once. Each iteration over the dataset is an epoch. With `shuffle=True`
    it contains each text once, in another order, and the batches have the same shapes as in the
    other epochs. The orders depend only on `seed`, in every process, and not on
    `tf.random.set_seed`. There are four ways to make batches:

    - By buckets, the default: all texts are shuffled and then sorted by bucket. The sort is stable,
      so the texts of a bucket remain shuffled. The sequence is divided into batches, and the
      order of the full batches is shuffled. A batch is padded to the bucket of its longest text.
      At the border of two buckets a batch takes texts from both, so that at most the last batch
      is smaller than the others. There are few shapes, as XLA needs it, which compiles each.
    - With `group_by_length=True`, which needs the least padding: all texts are shuffled and then
      sorted by their exact lengths. The sequence is divided into about 64 groups, each of two or
      more batches. A group's texts are dealt to its batches at random, so that the batches consist
      of others in each epoch, also among the few longest texts. The order of the batches is
      shuffled, and a batch is padded to its longest text. Texts that fill no batch are
      drawn from the most frequent lengths, and form the last batch.
    - With `tokens_per_batch`: as with `group_by_length`, but a batch contains as many texts as fit
      into that number of tokens, padding included. All batches take about the same memory and time,
      and those of short texts contain many. Note that a loss which is a mean over the texts
      of a batch then gives a long text more weight than a short one.
    - With `shuffle=False`, for evaluation and prediction, the texts keep their order, and each
      batch is padded to the smallest bucket that is long enough.

    The pipeline contains no Python code: it can be sharded, serialized and checkpointed like any
    `tf.data` pipeline. `fit` never shuffles a `tf.data.Dataset`; pass it `shuffle=False` to avoid
    Keras 3's warning about that.

    Args:
        records: `Records`; any source of `read_records`, such as a path, a pattern of files, a
            DataFrame, or an iterable of dicts; or an iterable of texts or (text, label) tuples. A
            list of strings are texts, a list of `pathlib.Path`s are files. For validation data make
            `Records` with the `label_names` of the training records. Data larger than memory are
            `TokenizedTexts`, of `tokenize_to_disk`.
        tokenizer: A `Tokenizer`, or an object that `as_tokenizer` accepts.
        batch_size: Number of texts per global batch, over all replicas. Default: None; then give
            `tokens_per_batch`.
        tokens_per_batch: Largest number of tokens per global batch, padding included: texts times
            padded length. The number of texts differs from batch to batch, and the number of
            batches per epoch, `stats.batches`, is always the same. Default: None.
        max_length: Texts are truncated to this number of tokens. Default: None, 128, or that of
            `TokenizedTexts`.
        stride: For `AnswerLabels`, number of tokens that two windows of a context share. A
            question with its context is not truncated to `max_length`: it becomes several examples,
            each with the question and another window of the context. Default: None, a third of
            `max_length`.
        shuffle: Whether to shuffle and sort as above. Default: True.
        seed: Seed of the orders of all epochs. Default: 0.
        buckets: Ascending padded lengths in tokens; the last one must be long enough for the
            longest text. A single bucket gives all batches the same, static length, for TPUs. With
            `group_by_length` or `tokens_per_batch`, the texts of a bucket count as equally long.
            Default: None: all lengths with `group_by_length` or `tokens_per_batch`, otherwise
            at most six, chosen by `choose_buckets`.
        group_by_length: Whether to sort by exact lengths as above. The batches have almost as many
            shapes as there are lengths; so compile the model with `jit_compile=False`, or give
            `buckets`. Without effect with `tokens_per_batch`, which does so anyway. Default: False.
        drop_remainder: Whether to omit texts that do not fill a batch of `batch_size`, and to make
            the batch dimension static. With `shuffle=True` each epoch omits others, in proportion
            to the sizes of the buckets. Default: False.
        first_epoch: Index of the epoch that the dataset starts with. When resuming a run, pass
            the number of finished epochs, and train on the dataset's `repeat()` with
            `steps_per_epoch`; otherwise Keras 3 starts the dataset twice per epoch. Default: 0.
        text_column: Column of the texts, if the data has columns; two of them for pairs of texts.
            Default: "text".
        label_column: Column of the labels, which are classes here; None reads no labels. Labels of
            other tasks are read by the task's `read`. Default: "label".

    Returns:
        A dataset of (features, labels), or of features if there are no labels. The features are a
        dict from the tokenizer's input names to int32 tensors `[batch, length]`: "ids", "mask" (1
        for tokens, 0 for padding) and "segments" (1 for the second text of a pair, otherwise 0).
        The labels are those of the records: int32 `[batch]` for classes, int32 `[batch, classes]`
        for several classes, float32 `[batch]` for numbers, and int32 `[batch, length]` for
        `TokenLabels`, with -100 for tokens that do not count. For `AnswerLabels` they are int32
        `[batch, 3]`: the first and the last token of the answer, both 0 where the window does not
        contain it, and the number of the window. The dataset's attribute `stats` is a `TextStats`;
        with `AnswerLabels` it has `windows`, from which an evaluation knows the questions.

    Raises:
        InputError: An argument is out of range or does not go with another one, there are no texts,
            or one is longer than `tokens_per_batch`.
        TypeError: `tokenizer` is not a tokenizer.

    Examples:
        >>> folder, inputs = "models/all-MiniLM-L6-v2", ke.data.KERASHUB
        >>> tokenizer = ke.data.Tokenizer.from_directory(folder, inputs=inputs)
        >>> train = ke.data.text("reviews.csv", tokenizer, batch_size=32)
        >>> features, labels = next(iter(train))
        >>> sorted(features), labels.shape[0]
        (['padding_mask', 'segment_ids', 'token_ids'], 32)
        >>> train = ke.data.text("reviews.csv", tokenizer, tokens_per_batch=256)
        >>> all(tf.size(features["token_ids"]) <= 256 for features, labels in train)
        True

    Reference:
        `tf.data.Dataset.bucket_by_sequence_length`, which pads batches in the same way but makes
        an incomplete batch for each bucket; Hugging Face's `LengthGroupedSampler`, which sorts
        random parts of 50 batches by length; fairseq's `--max-tokens`.
    """
    tokenizer = as_tokenizer(tokenizer)
    if (batch_size is None) == (tokens_per_batch is None):
        raise InputError(
            "Give either `batch_size`, a number of texts, or `tokens_per_batch`. Received: "
            f"batch_size={batch_size!r}, tokens_per_batch={tokens_per_batch!r}. Set one of them, "
            "for example batch_size=32."
        )
    if batch_size is not None:
        batch_size = _checked_int("batch_size", batch_size, 1)
    else:
        tokens_per_batch = _checked_int("tokens_per_batch", tokens_per_batch, 1)
        if drop_remainder:
            raise InputError(
                "`drop_remainder` needs `batch_size`: with a budget of tokens the batches differ "
                "in their numbers of texts, and none is a remainder. Received: tokens_per_batch="
                f"{tokens_per_batch}, drop_remainder={drop_remainder!r}. Remove one of them."
            )
    if group_by_length and not shuffle:
        raise InputError(
            "`group_by_length` changes the order of the texts, so it needs shuffle=True. Received: "
            f"shuffle={shuffle!r}. Remove one of them."
        )
    seed = _checked_int("seed", seed, 0)
    first_epoch = _checked_int("first_epoch", first_epoch, 0)
    if isinstance(records, TokenizedTexts):
        tokens = FileTokens(records, tokenizer, max_length)
        if stride is not None:
            raise InputError(
                "`stride` is for questions in memory. Received: "
                f"stride={stride!r} for texts on a disk. Leave it out."
            )
    else:
        length = tokenizer.check_length(128 if max_length is None else max_length)
        records = as_records(records, text_column=text_column, label_column=label_column)
        tokens = MemoryTokens(records, tokenizer, length, stride)
    lengths = tokens.lengths
    total = len(lengths)
    if drop_remainder and batch_size is not None and total < batch_size:
        raise InputError(
            f"With drop_remainder=True there must be a full batch. Received: {total} texts "
            f"({records.source}) and batch_size={batch_size}. Lower `batch_size`, or keep the "
            "remainder."
        )
    # Texts of different lengths are mixed unless buckets make many of them equally long.
    mix = buckets is None and bool(group_by_length or tokens_per_batch)
    if mix:
        buckets = tuple(np.unique(lengths).tolist())
    elif buckets is None:
        buckets = choose_buckets(lengths, max_length=tokens.max_length)
    else:
        buckets = check_buckets(buckets, longest=int(lengths.max()))
        if buckets[-1] > tokenizer.max_length:
            raise InputError(
                f"No bucket may exceed the tokenizer's max_length={tokenizer.max_length}. "
                f"Received: {buckets}. Remove the longer ones."
            )
    padded = np.asarray(buckets, np.int32)[np.searchsorted(buckets, lengths)]
    if tokens_per_batch is not None and padded.max() > tokens_per_batch:
        number = int(padded.argmax())
        raise InputError(
            f"Each text, padded, must fit into tokens_per_batch={tokens_per_batch}. Received: "
            f"{tokens.describe(number)} with "
            f"{lengths[number]} tokens, padded to {padded[number]}. Raise `tokens_per_batch`, or "
            "lower `max_length`."
        )
    # The ranks are those of the sorted texts if they are shuffled.
    ranked = np.sort(padded) if shuffle else padded
    plan = plan_batches(
        ranked,
        batch_size=batch_size,
        tokens_per_batch=tokens_per_batch,
        shuffle=shuffle,
        mix=mix,
        drop_remainder=drop_remainder,
    )
    stats = dataclasses.replace(
        _stats(lengths, padded, ranked, plan),
        batch_size=batch_size,
        tokens_per_batch=tokens_per_batch,
        truncated=tokens.truncated,
        longest=tokens.longest,
        max_length=tokens.max_length,
    )

    # tf.data runs on the CPU; the corpus would otherwise take up memory of a GPU.
    with tf.device("/CPU:0"):
        if shuffle:
            order = _shuffled(padded, plan, batch_size, seed, first_epoch)
        elif batch_size is None:
            order = _slices(tf.range(total), plan.sizes)
        else:
            order = tf.data.Dataset.range(total, output_type=tf.int32)
        # Not slices where all batches have one size: `tf.distribute` looks for that size.
        batches = order if batch_size is None else order.batch(batch_size, drop_remainder)
        gather = _gather(tokens, buckets, tokenizer)
        dataset: Any = batches.map(gather, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        options = tf.data.Options()
        # There are no files to divide among workers, so each batch is divided.
        options.experimental_distribute.auto_shard_policy = (
            tf.data.experimental.AutoShardPolicy.DATA
        )
        dataset = dataset.prefetch(tf.data.AUTOTUNE).with_options(options)
    dataset.stats = stats
    if tokens.windows is not None:
        dataset.windows = tokens.windows
    return dataset


def _shuffled(padded, plan, batch_size, seed, first_epoch) -> tf.data.Dataset:
    """Return a dataset of the indices of an epoch's texts; each iteration is another epoch.

    Without `batch_size` its elements are the indices of a batch.
    """
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

    padded, ranks = tf.constant(padded, tf.int32), tf.constant(plan.ranks, tf.int32)
    mixed = plan.chunks is not None
    if mixed:
        chunks, slots = tf.constant(plan.chunks, tf.int32), tf.constant(plan.slots, tf.int32)
    full = 0 if batch_size is None else len(plan.ranks) // batch_size

    def epoch(epoch_seed):
        order = _sorted_by(padded, _permutation(len(padded), epoch_seed, 0))
        order = tf.gather(order, ranks)
        if mixed:
            order = tf.gather(order, _sorted_by(chunks, _permutation(len(chunks), epoch_seed, 2)))
            order = tf.gather(order, slots)
        if batch_size is None:
            return _slices(order, plan.sizes, _permutation(len(plan.sizes), epoch_seed, 1))
        head = tf.reshape(order[: full * batch_size], [full, batch_size])
        head = tf.gather(head, _permutation(full, epoch_seed, 1))
        order = tf.concat([tf.reshape(head, [-1]), order[full * batch_size :]], axis=0)
        return tf.data.Dataset.from_tensor_slices(order)

    elements = len(plan.sizes if batch_size is None else plan.ranks)
    return epoch_seeds.flat_map(epoch).apply(tf.data.experimental.assert_cardinality(elements))


def _slices(order, sizes, batches=None) -> tf.data.Dataset:
    """Return a dataset of the parts of `order` of the given sizes, in the order of `batches`."""
    starts, sizes = (tf.constant(array, tf.int32) for array in (np.cumsum(sizes) - sizes, sizes))
    if batches is not None:
        starts, sizes = tf.gather(starts, batches), tf.gather(sizes, batches)
    parts = tf.data.Dataset.from_tensor_slices((starts, sizes))
    return parts.map(lambda start, size: order[start : start + size])


def _sorted_by(keys, order):
    """Sort the indices in `order` by their keys; those of equal keys keep their order."""
    return tf.gather(order, tf.argsort(tf.gather(keys, order), stable=True))


def _permutation(size, epoch_seed, use):
    # "auto" may choose another algorithm on another device.
    seed = tf.stack([epoch_seed, tf.constant(use, tf.int64)])
    random: Any = tf.random
    return random.experimental.stateless_shuffle(tf.range(size), seed, alg="philox")


def _gather(tokens, buckets, tokenizer):
    """Return a function from indices to a padded batch."""
    starts = tf.constant(np.cumsum(tokens.lengths, dtype=np.int64) - tokens.lengths)
    lengths = tf.constant(tokens.lengths)
    labels = None if tokens.labels is None else tf.constant(tokens.labels)
    per_token = tokens.labels_per_token
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
        places = tf.where(real, places, 0)
        ids = tokens.ids(places)
        seconds = tf.zeros_like(ids)
        if tokens.pairs:
            seconds = tf.where(real, tokens.segments(places), 0)
        batch = {
            "ids": tf.where(real, ids, pad_id),
            "mask": tf.cast(real, tf.int32),
            "segments": seconds,
        }
        features = {name: batch[key] for key, name in names.items()}
        for feature in features.values():
            feature.set_shape([indices.shape[0], only])
        if labels is None:
            return features
        if not per_token:
            return features, tf.gather(labels, indices)
        found = tf.where(real, tf.gather(labels, places), IGNORED)
        found.set_shape([indices.shape[0], only])
        return features, found

    return gather


def _stats(lengths, padded, ranked, plan) -> TextStats:
    kept = ranked[plan.ranks]
    if len(kept) == len(lengths):
        tokens = int(lengths.sum())
    elif ranked is padded:
        tokens = int(lengths[plan.ranks].sum())
    else:
        # Which texts of a padded length are omitted changes from epoch to epoch, not their number.
        sums, counts = np.bincount(padded, weights=lengths), np.bincount(padded)
        means = sums / np.maximum(counts, 1)
        tokens = round(float(means[kept].sum()))
    shapes = Counter(zip(plan.longest(ranked).tolist(), plan.sizes.tolist(), strict=True))
    return TextStats(
        examples=len(kept),
        batches=len(plan.sizes),
        batch_size=None,
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
