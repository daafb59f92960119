"""A `tf.data` pipeline of tokenized, length-bucketed and dynamically padded batches."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient._errors import InputError
from keras_efficient.data._as_records import as_records
from keras_efficient.data._augmentation import Augmentation
from keras_efficient.data._batch_plan import plan_batches
from keras_efficient.data._bucketing import check_buckets, choose_buckets
from keras_efficient.data._epoch_seeds import epochs, permutation, sorted_by
from keras_efficient.data._mask_tokens import TokenMasker, positions_of
from keras_efficient.data._masking import Masking
from keras_efficient.data._split_mix import text_keys
from keras_efficient.data._text_stats import TextStats
from keras_efficient.data._token_augmenter import TokenAugmenter
from keras_efficient.data._token_store import FileTokens, MemoryTokens
from keras_efficient.data._tokenized_texts import TokenizedTexts
from keras_efficient.data._tokenizer import as_tokenizer
from keras_efficient.flavor._ignored_label import IGNORED
from keras_efficient.flavor._typing import Dataset


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
    masking: Masking | None = None,
    next_token: bool = False,
    augmentations: Sequence[Augmentation] = (),
    separate: bool = False,
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
        max_length: Texts are truncated to this number of tokens. Default: None, which is 128, or
            the tokenizer's if that is less, or that of `TokenizedTexts`.
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
            `buckets`. Without effect with `tokens_per_batch`, which does so anyway. Note that a
            loss which is a mean over the tokens of a batch then gives those of short texts more
            weight, which made a language model worse. Default: False.
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
        masking: Which tokens are to be predicted, for masked language modelling; they are selected
            anew in each epoch. Labels of the records are not used. Default: None, no masking.
        next_token: Whether each token is labelled with the next one, for causal language modelling.
            A text begins with the tokenizer's start token, and the end token is the last label. Of
            pairs of texts, prompts and completions, only the tokens of the second text count.
            Labels of the records are not used. Default: False.
        augmentations: Random changes of the tokens, for training data: `ShuffleTokens`,
            `DeleteTokens`, `ReplaceTokens`, or your own `Augmentation`s, one after the other. They
            are made anew in each epoch, and labels of tokens and answers move with their tokens.
            Where words have labels, each word is changed as a whole; of questions with their
            contexts, the questions alone are changed. Not for language modelling. Default: (),
            none.
        separate: Whether the two texts of a pair are inputs of their own, `[batch, 2, length]`, as
            `ke.contrastive` takes them, rather than joined to one. The length of a pair is that of
            its longer text. Default: False.

    Returns:
        A dataset of (features, labels), or of features if there are no labels. The features are a
        dict from the tokenizer's input names to int32 tensors `[batch, length]`: "ids", "mask" (1
        for tokens, 0 for padding) and "segments" (1 for the second text of a pair, otherwise 0).
        The labels are those of the records: int32 `[batch]` for classes, int32 `[batch, classes]`
        for several classes, float32 `[batch]` for numbers, and int32 `[batch, length]` for
        `TokenLabels`, with -100 for tokens that do not count. For `AnswerLabels` they are int32
        `[batch, 3]`: the first and the last token of the answer, both 0 where the window does not
        contain it, and the number of the window. With `masking` they are the selected
        tokens: int32 `[batch, selected]`, with the feature "mask_positions" that says where they
        are; or, if the tokenizer has no such input, int32 `[batch, length]`, with -100 for all
        other tokens. With `next_token` they are int32 `[batch, length]`. Of `TargetTexts`, the
        features "target_ids" and "target_mask" are the tokens of the targets without the last one,
        and the labels int32 `[batch, length]` those without the first one, with -100 for padding.
        The dataset's attribute `stats` is a `TextStats`; with `AnswerLabels` it has `windows`, from
        which an evaluation knows the questions.

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
    if next_token and masking is not None:
        raise InputError(
            "Either the next tokens are labels or masked ones. Received: next_token=True and "
            f"masking={masking!r}. Leave one of them out."
        )
    if augmentations and (next_token or masking is not None):
        raise InputError(
            "Language models learn the texts as they are. Received: augmentations="
            f"{list(augmentations)!r:.80} with {'next_token' if next_token else 'masking'}. Leave "
            "`augmentations` out."
        )
    if separate and (tokens_per_batch is not None or masking or next_token or augmentations):
        raise InputError(
            "Separate texts go with `batch_size`, without tokens to predict, as they are. "
            f"Received: tokens_per_batch={tokens_per_batch!r}, masking={masking!r}, "
            f"next_token={next_token!r}, augmentations={list(augmentations)!r:.80} and "
            "separate=True. Leave one of them out."
        )
    if isinstance(records, TokenizedTexts):
        if separate:
            raise InputError(
                "`separate` is for pairs of texts in memory. Received: texts on a disk. Leave it "
                "out."
            )
        tokens = FileTokens(records, tokenizer, max_length, next_token)
        if stride is not None:
            raise InputError(
                "`stride` is for questions in memory. Received: "
                f"stride={stride!r} for texts on a disk. Leave it out."
            )
    else:
        length = tokenizer.check_length(
            min(128, tokenizer.max_length) if max_length is None else max_length
        )
        records = as_records(records, text_column=text_column, label_column=label_column)
        tokens = MemoryTokens(records, tokenizer, length, stride, next_token, separate)
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

    # Of few shapes if XLA is to compile each.
    masker = None if masking is None else TokenMasker(masking, tokenizer, fixed=not mix)
    augmenter = None
    if augmentations:
        kind = "span" if tokens.windows is not None else "text"
        kind = "token" if tokens.labels_per_token else kind
        augmenter = TokenAugmenter(augmentations, tokenizer, kind)
    # tf.data runs on the CPU; the corpus would otherwise take up memory of a GPU.
    with tf.device("/CPU:0"):
        random = masking is not None or augmenter is not None
        by_epoch = shuffle or random
        if by_epoch:
            static = masking is not None and masking.static
            keys = _keys(seed if static else None) if random else None
            order = _epochs(padded, plan, batch_size, seed, first_epoch, shuffle, keys)
        elif batch_size is None:
            order = _slices(tf.range(total), plan.sizes)
        else:
            order = tf.data.Dataset.range(total, output_type=tf.int32)
        # Not slices where all batches have one size: `tf.distribute` looks for that size.
        if batch_size is None:
            batches = order
        else:
            batches = order.batch(batch_size, drop_remainder)
            if by_epoch and not drop_remainder:
                batches = batches.map(_without_fill)
        gather = _gather(tokens, buckets, tokenizer, masker, augmenter)
        dataset: Any = batches.map(gather, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        dataset = dataset.prefetch(tf.data.AUTOTUNE)
        if by_epoch:
            # After `prefetch`: see `epochs`.
            dataset = dataset.take(len(plan.sizes))
        options = tf.data.Options()
        # There are no files to divide among workers, so each batch is divided.
        options.experimental_distribute.auto_shard_policy = (
            tf.data.experimental.AutoShardPolicy.DATA
        )
        dataset = dataset.with_options(options)
    dataset.stats = stats
    if tokens.windows is not None:
        dataset.windows = tokens.windows
    return dataset


def _epochs(padded, plan, batch_size, seed, first_epoch, shuffle, keys=None) -> tf.data.Dataset:
    """Return a dataset of the indices of an epoch's texts; each iteration is another epoch.

    Without `batch_size` its elements are the indices of a batch. Otherwise -1 fills the last batch.
    With `keys`, the seeds of the texts' masks come with the indices.

    After the epoch text 0 follows without end, as `epochs` says.
    """
    padded, ranks = tf.constant(padded, tf.int32), tf.constant(plan.ranks, tf.int32)
    mixed = plan.chunks is not None
    if mixed:
        chunks, slots = tf.constant(plan.chunks, tf.int32), tf.constant(plan.slots, tf.int32)
    elements = len(plan.ranks)
    full = 0 if batch_size is None else elements // batch_size
    fill = 0 if batch_size is None else -elements % batch_size

    def order_of(seed):
        if not shuffle:
            return tf.concat([ranks, tf.fill([fill], -1)], axis=0)
        order = sorted_by(padded, permutation(len(padded), seed, 0))
        order = tf.gather(order, ranks)
        if mixed:
            order = tf.gather(order, sorted_by(chunks, permutation(len(chunks), seed, 2)))
            order = tf.gather(order, slots)
        if batch_size is None:
            return order
        head = tf.reshape(order[: full * batch_size], [full, batch_size])
        head = tf.gather(head, permutation(full, seed, 1))
        return tf.concat(
            [tf.reshape(head, [-1]), order[full * batch_size :], tf.fill([fill], -1)], axis=0
        )

    def dataset_of(order, seed):
        found = order if keys is None else (order, keys(seed, order))
        if batch_size is None:
            batches = permutation(len(plan.sizes), seed, 1) if shuffle else None
            return _slices(found, plan.sizes, batches)
        return tf.data.Dataset.from_tensor_slices(found)

    return epochs(order_of, [elements + fill], dataset_of, seed, first_epoch)


def _without_fill(indices, *keys):
    """Return the indices of a batch, and what comes with them, without what `_epochs` filled in."""
    real = indices >= 0
    found = tuple(tf.boolean_mask(tensor, real) for tensor in (indices, *keys))
    return found if keys else found[0]


def _keys(fixed_seed):
    """Return a function from an epoch's seed and indices of texts to the seeds of their masks."""

    def keys(epoch_seed, indices):
        seed = epoch_seed if fixed_seed is None else tf.constant(fixed_seed, tf.int64)
        return text_keys(seed, indices)

    return keys


def _slices(elements, sizes, batches=None) -> tf.data.Dataset:
    """Return a dataset of parts of tensors of the given sizes, in the order of `batches`."""
    starts, sizes = (tf.constant(array, tf.int32) for array in (np.cumsum(sizes) - sizes, sizes))
    if batches is not None:
        starts, sizes = tf.gather(starts, batches), tf.gather(sizes, batches)
    parts = tf.data.Dataset.from_tensor_slices((starts, sizes))
    return parts.map(
        lambda start, size: tf.nest.map_structure(lambda x: x[start : start + size], elements)
    )


def _gather(tokens, buckets, tokenizer, masker=None, augmenter=None):
    """Return a function from indices to a padded batch.

    With `masker`, a `TokenMasker`, or `augmenter`, a `TokenAugmenter`, it also takes the seeds of
    the texts.
    """
    whole = tokens.row_lengths + tokens.next_token
    starts = tf.constant(np.cumsum(whole, dtype=np.int64) - whole)
    lengths = tf.constant(tokens.row_lengths)
    # Of separate texts, those of an example are neighbours.
    texts = len(tokens.row_lengths) // len(tokens.lengths)
    labels: Any = None
    if tokens.labels is not None and masker is None:
        labels = tf.constant(tokens.labels)
    per_token = tokens.labels_per_token
    padded = tf.constant(buckets, tf.int32)
    only = buckets[0] if len(buckets) == 1 else None
    names = tokenizer.inputs
    targets = tokens.targets
    if targets is not None:
        target_lengths = tf.constant(tokens.target_lengths)
        target_starts = tf.constant(
            np.cumsum(tokens.target_lengths, dtype=np.int64) - tokens.target_lengths
        )
    pad_id = tf.constant(tokenizer.pad_id, tf.int32)
    most = None if masker is None or only is None or not masker.fixed else masker.most(only)

    def shifted(indices):
        """Return what a decoder reads, and the tokens that should follow."""
        here = tf.gather(target_lengths, indices) - 1
        columns = tf.range(tf.reduce_max(here))
        real = columns < here[:, None]
        places = tf.gather(target_starts, indices)[:, None] + tf.cast(columns, tf.int64)
        places = tf.where(real, places, 0)
        read = {
            "target_ids": tf.where(real, tf.gather(targets, places), pad_id),
            "target_mask": tf.cast(real, tf.int32),
        }
        following = tf.where(real, tf.gather(targets, tf.where(real, places + 1, 0)), IGNORED)
        for tensor in (*read.values(), following):
            tensor.set_shape([indices.shape[0], None])
        return read, following

    def gather(indices, keys=None):
        rows = indices if texts == 1 else indices[:, None] * texts + tf.range(texts)
        here = tf.gather(lengths, rows)
        bucket = tf.searchsorted(padded, tf.reduce_max(here)[None])[0]
        columns = tf.range(padded[bucket])
        real = columns < here[..., None]
        places = tf.gather(starts, rows)[..., None] + tf.cast(columns, tf.int64)
        # The places of padding may lie past the end of the last text.
        places = tf.where(real, places, 0)
        ids = tokens.ids(places)
        seconds = tf.zeros_like(ids)
        if tokens.pairs and not tokens.next_token:
            seconds = tf.where(real, tokens.segments(places), 0)
        own = None
        if labels is not None and per_token:
            own = tf.where(real, tf.gather(labels, places), IGNORED)
        elif labels is not None:
            own = tf.gather(labels, indices)
        if augmenter is not None:
            changed, own = augmenter(ids, real, seconds, keys, own)
            ids, real = changed.ids, changed.real
            seconds = tf.where(real, changed.segments, 0)
        batch = {
            "ids": tf.where(real, ids, pad_id),
            "mask": tf.cast(real, tf.int32),
            "segments": seconds,
        }
        found = None
        if masker is not None:
            batch["ids"], batch["mask_positions"], found = masker(batch["ids"], real, keys)
            if "mask_positions" not in names:
                found = _per_token(batch.pop("mask_positions"), found, columns)
        elif "mask_positions" in names:
            batch["mask_positions"] = positions_of(real & (ids == tokenizer.mask_id))[0]
        features = {name: batch[key] for key, name in names.items() if key in batch}
        for name, feature in features.items():
            selected = name == names.get("mask_positions")
            feature.set_shape([*rows.shape, most if selected else only])
        if targets is not None:
            decoded, found = shifted(indices)
            read = {name: decoded[key] for key, name in names.items() if key in decoded}
            return features | read, found
        if tokens.next_token:
            following = tf.where(real, places + 1, 0)
            labelled = real
            if tokens.pairs:
                labelled &= tokens.segments(following) > 0
            found = tf.where(labelled, tokens.ids(following), IGNORED)
            found.set_shape([indices.shape[0], only])
            return features, found
        if found is not None:
            found.set_shape([indices.shape[0], most if "mask_positions" in names else only])
            return features, found
        if own is None:
            return features
        if per_token:
            own.set_shape([indices.shape[0], only])
        elif augmenter is not None:
            own.set_shape([indices.shape[0], *tokens.labels.shape[1:]])
        return features, own

    return gather


def _per_token(positions, labels, columns):
    """Return labels by position as a label for each token, -100 for those without one."""
    there = (positions[:, None] == columns[:, None]) & (labels != IGNORED)[:, None]
    found = tf.reduce_sum(tf.where(there, labels[:, None], 0), -1)
    return tf.where(tf.reduce_any(there, -1), found, IGNORED)


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
