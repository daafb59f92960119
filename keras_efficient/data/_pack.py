"""`pack`: rows of a fixed length, each of several texts."""

from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient._errors import InputError
from keras_efficient.data._as_records import as_records
from keras_efficient.data._epoch_seeds import epochs, permutation, sorted_by
from keras_efficient.data._text_stats import TextStats
from keras_efficient.data._token_store import FileTokens, MemoryTokens
from keras_efficient.data._tokenized_texts import TokenizedTexts
from keras_efficient.data._tokenizer import as_tokenizer
from keras_efficient.flavor._ignored_label import IGNORED
from keras_efficient.flavor._typing import Dataset


def pack(
    records: Any,
    tokenizer: Any,
    *,
    batch_size: int,
    row_length: int = 128,
    texts_per_row: int = 8,
    shuffle: bool = True,
    seed: int = 0,
    first_epoch: int = 0,
    next_token: bool = False,
) -> Dataset:
    """Make batches of rows of one length, each of several texts, for a model with `ke.pack`.

    The texts are packed by best fit, the longest first: each goes into the row with the least space
    that is enough. Every epoch has the same rows, as to the lengths of their texts, in another
    order; which text of a length comes into which row is drawn anew. All batches have one shape;
    the last one is filled with empty rows.

    The pipeline contains no Python code. Its order depends on `seed` and the epoch alone, and it
    can be sharded and checkpointed like that of `ke.data.text`.

    Args:
        records: As for `ke.data.text`: `Records`, a path, texts, or `TokenizedTexts`. Labels are
            classes, several classes, numbers or those of words, or there are none.
        tokenizer: A `Tokenizer`, or what `as_tokenizer` accepts.
        batch_size: Number of rows per global batch.
        row_length: Number of tokens of a row. Longer texts are truncated. Default: 128.
        texts_per_row: Largest number of texts in a row, that of `ke.pack`. Default: 8.
        shuffle: Whether each epoch has another order. Default: True.
        seed: Seed of the orders of all epochs. Default: 0.
        first_epoch: Index of the epoch that the dataset starts with. Default: 0.
        next_token: As for `ke.data.text`, for causal language modelling. Default: False.

    Returns:
        A dataset of (features, labels, sample weights). The features have the tokenizer's input
        names: int32 `[batch, row_length]` of ids, of segments, and of the mask, which has the
        number of each token's text, from 1, and 0 for padding. The labels are `[batch,
        texts_per_row]`, `[batch, texts_per_row, classes]` for several classes, and `[batch,
        texts_per_row, 1]` for numbers. Their sample weights, float32 `[batch, texts_per_row]`, are
        0 where there is no text; the others are equal, such that a mean over all is that over the
        texts. Labels of tokens are int32 `[batch, row_length]`, -100 where there is none, without
        sample weights. Without labels there are features alone. The dataset's `stats` is a
        `TextStats`.

    Raises:
        InputError: An argument is out of range, there are no texts, or their labels are of another
            kind.

    Examples:
        >>> tokenizer = ke.data.Tokenizer.from_directory(
        ...     "models/all-MiniLM-L6-v2", inputs=ke.data.KERASHUB
        ... )
        >>> texts = [("good", 1), ("bad", 0), ("a film with a plot", 1)]
        >>> data = ke.data.pack(texts, tokenizer, batch_size=1, row_length=16, shuffle=False)
        >>> features, labels, weights = next(iter(data))
        >>> features["padding_mask"][0].numpy().tolist()
        [1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 0, 0, 0]

    Reference:
        Krell et al. 2021, "Efficient Sequence Packing without Cross-contamination".
    """
    tokenizer = as_tokenizer(tokenizer)
    for name, value, least in (
        *(("batch_size", batch_size, 1), ("row_length", row_length, 3)),
        *(("texts_per_row", texts_per_row, 1), ("seed", seed, 0), ("first_epoch", first_epoch, 0)),
    ):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise InputError(
                f"`{name}` must be an integer of {least} or more. Received: {value!r}. Give for "
                f"example {max(least, 8)}."
            )
    if "mask" not in tokenizer.inputs:
        raise InputError(
            "Packed texts are told apart by the padding mask. Received: a tokenizer whose inputs "
            f"are {sorted(tokenizer.inputs)}. Give the name of the model's mask in `inputs`."
        )
    if isinstance(records, TokenizedTexts):
        tokens: Any = FileTokens(records, tokenizer, None, next_token)
        if tokens.lengths.max() > row_length:
            raise InputError(
                f"Each text must fit into a row of {row_length} tokens. Received: "
                f"{records!r:.120}, the longest of which has {tokens.lengths.max()}. Raise "
                "`row_length`."
            )
    else:
        length = tokenizer.check_length(min(row_length + next_token, tokenizer.max_length))
        tokens = MemoryTokens(as_records(records), tokenizer, length, None, next_token)
    if tokens.windows is not None or tokens.targets is not None:
        raise InputError(
            "Labels of packed texts are classes, numbers or tags. Received: "
            f"{records!r:.120}. Use ke.data.text."
        )
    plan = best_fit(np.sort(tokens.lengths), int(row_length), int(texts_per_row))
    batches = -(-len(plan) // batch_size)
    with tf.device("/CPU:0"):
        order = _orders(tokens.lengths, plan, batches * batch_size, shuffle, seed, first_epoch)
        rows = order.batch(batch_size, drop_remainder=True)
        make = _rows(tokens, tokenizer, int(row_length))
        found: Any = rows.map(make, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        # After `prefetch`, which reads ahead: see `epochs`.
        found = found.prefetch(tf.data.AUTOTUNE).take(batches)
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = (
            tf.data.experimental.AutoShardPolicy.DATA
        )
        found = found.with_options(options)
    found.stats = TextStats(
        examples=len(tokens.lengths),
        batches=batches,
        batch_size=int(batch_size),
        tokens=int(tokens.lengths.sum()),
        padded_tokens=int(batches * batch_size * row_length),
        shapes=((int(batch_size), int(row_length), batches),),
        truncated=tokens.truncated,
        longest=tokens.longest,
        max_length=tokens.max_length,
    )
    return found


def best_fit(lengths: np.ndarray, row_length: int, texts_per_row: int) -> np.ndarray:
    """Pack texts into rows, the longest first, each into the fullest row that has space for it.

    Args:
        lengths: int array `[texts]`, ascending; none exceeds `row_length`.
        row_length: Number of tokens of a row.
        texts_per_row: Largest number of texts in a row.

    Returns:
        Int array `[rows, texts_per_row]`, the places of the texts in `lengths`, filled with -1.
    """
    rows: list[list[int]] = []
    # The rows by the space that they have.
    spaces: list[list[int]] = [[] for _ in range(row_length + 1)]
    for place in range(len(lengths) - 1, -1, -1):
        length = int(lengths[place])
        space = next((s for s in range(length, row_length + 1) if spaces[s]), None)
        if space is None:
            row, space = len(rows), row_length
            rows.append([])
        else:
            row = spaces[space].pop()
        rows[row].append(place)
        if len(rows[row]) < texts_per_row:
            spaces[space - length].append(row)
    found = np.full((len(rows), texts_per_row), -1, np.int32)
    for number, row in enumerate(rows):
        found[number, : len(row)] = row
    return found


def _orders(lengths, plan, total, shuffle, seed, first_epoch):
    """Return a dataset of the texts of each row, int32 `[texts_per_row]`; -1 where there is none.

    After an epoch, text 0 follows without end.
    """
    sizes = tf.constant(lengths, tf.int32)
    filled = np.concatenate([plan, np.full((total - len(plan), plan.shape[1]), -1, np.int32)])
    # The last element of an order stands for none.
    places = tf.constant(np.where(filled < 0, len(lengths), filled))

    def order_of(epoch_seed):
        order, rows = tf.range(len(lengths)), places
        if shuffle:
            order = permutation(len(lengths), epoch_seed, 0)
            rows = tf.gather(places, permutation(total, epoch_seed, 1))
        order = tf.concat([sorted_by(sizes, order), [-1]], 0)
        return tf.gather(order, rows)

    def dataset_of(order, epoch_seed):
        return tf.data.Dataset.from_tensor_slices(order)

    return epochs(order_of, [total, plan.shape[1]], dataset_of, seed, first_epoch)


def _rows(tokens, tokenizer, row_length):
    """Return a function from texts, int32 `[batch, texts_per_row]`, to a batch."""
    whole = tokens.lengths.astype(np.int64) + tokens.next_token
    starts, lengths = tf.constant(np.cumsum(whole) - whole), tf.constant(tokens.lengths)
    labels: Any = None if tokens.labels is None else tf.constant(tokens.labels)
    names, columns = tokenizer.inputs, tf.range(row_length)

    def make(texts):
        there = texts >= 0
        texts = tf.maximum(texts, 0)
        here = tf.where(there, tf.gather(lengths, texts), 0)
        ends = tf.cumsum(here, axis=1)
        # The number of texts that end before a token.
        before = tf.reduce_sum(tf.cast(ends[:, None] <= columns[:, None], tf.int32), -1)
        real = columns < ends[:, -1:]
        slot = tf.where(real, before, 0)
        # Texts without tokens are not there, and stand at the end of a row.
        within = columns - tf.gather(ends - here, slot, batch_dims=1)
        first = tf.gather(starts, tf.gather(texts, slot, batch_dims=1))
        places = tf.where(real, first + tf.cast(within, tf.int64), 0)
        segments = tf.zeros_like(slot)
        if tokens.pairs and not tokens.next_token:
            segments = tf.where(real, tokens.segments(places), 0)
        batch = {
            "ids": tf.where(real, tokens.ids(places), tokenizer.pad_id),
            "mask": tf.where(real, slot + 1, 0),
            "segments": segments,
        }
        features = {name: batch[key] for key, name in names.items() if key in batch}
        if tokens.next_token:
            following = tf.where(real, places + 1, 0)
            labelled = real
            if tokens.pairs:
                labelled &= tokens.segments(following) > 0
            return features, tf.where(labelled, tokens.ids(following), IGNORED)
        if labels is None:
            return features
        if tokens.labels_per_token:
            return features, tf.where(real, tf.gather(labels, places), IGNORED)
        number = tf.reduce_sum(tf.cast(there, tf.float32))
        weights = tf.cast(there, tf.float32) * tf.cast(tf.size(there), tf.float32)
        found = tf.gather(labels, texts)
        # Numbers have an axis of outputs, as a model's have.
        found = found[..., None] if found.dtype.is_floating else found
        return features, found, tf.math.divide_no_nan(weights, number)

    return make
