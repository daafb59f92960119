"""Choose bucket lengths that need the least padding."""

import itertools
from typing import Any

import numpy as np

from keras_efficient._errors import InputError


def choose_buckets(
    lengths: Any, *, max_length: int, count: int = 6, multiple: int = 8
) -> tuple[int, ...]:
    r"""Choose the padded lengths that need the least padding for texts of the given lengths.

    Among all sets of at most `count` multiples of `multiple` whose largest is long enough for the
    longest text, finds the one that minimizes

    $$\sum_i (\mathrm{bucket}(l_i) - l_i)$$

    exactly, by dynamic programming. Few shapes mean few compilations by XLA and less memory
    fragmentation; multiples of 8 suit matrix units.

    Args:
        lengths: Int array of shape `[examples]`, the length of each text in tokens.
        max_length: Upper limit of the buckets, in tokens. The last bucket may equal it, whether
            or not it is a multiple.
        count: Maximum number of buckets. Default: 6.
        multiple: Buckets are multiples of this number of tokens. Default: 8.

    Returns:
        Ascending padded lengths in tokens; fewer than `count` if more would not save padding.

    Raises:
        InputError: There are no lengths, one is outside of [1, max_length], or an argument is not
            positive.

    Examples:
        >>> ke.data.choose_buckets([3, 5, 8, 60], max_length=128, count=2)
        (8, 64)

    Reference:
        `tf.data.Dataset.bucket_by_sequence_length`, whose `bucket_boundaries` it chooses.
    """
    for name, value in (("max_length", max_length), ("count", count), ("multiple", multiple)):
        if not _positive(value):
            raise InputError(
                f"`{name}` must be a positive integer. Received: {value!r}. Give for example 8."
            )
    lengths = _checked_lengths(lengths)
    if lengths.max() > max_length:
        raise InputError(
            f"Lengths must not exceed max_length={max_length}. Received: {lengths.max()}. Truncate "
            "the texts first, or raise `max_length`."
        )
    rounded = np.minimum(-(-lengths // multiple) * multiple, max_length)
    # The optimum uses only multiples that some text rounds up to.
    candidates, numbers = np.unique(rounded, return_counts=True)
    until = np.concatenate([[0], np.cumsum(numbers)])
    m = len(candidates)
    # best[j]: smallest number of padded tokens for the texts up to candidate j-1 with k buckets.
    best = np.full(m + 1, np.inf)
    best[0] = 0
    before = []
    for _ in range(min(count, m)):
        # cost[i, j]: the texts of candidates i to j-1, padded to candidate j-1.
        cost = (until[None, :] - until[:, None]) * np.concatenate([[0], candidates])[None, :]
        total = np.where(np.tri(m + 1, dtype=bool).T, best[:, None] + cost, np.inf)
        before.append(total.argmin(axis=0))
        best = total.min(axis=0)
    chosen, j = [], m
    for back in reversed(before):
        if back[j] < j:  # Otherwise the bucket is empty.
            chosen.append(int(candidates[j - 1]))
            j = back[j]
    return tuple(reversed(chosen))


def padded_tokens(lengths: Any, buckets: Any) -> int:
    """Count the tokens of texts that are each padded to the smallest sufficient bucket.

    Args:
        lengths: Int array of shape `[examples]`, the length of each text in tokens.
        buckets: Ascending padded lengths in tokens.

    Returns:
        The number of tokens, padding included.

    Raises:
        InputError: The buckets are not ascending and positive, or a text is longer than the last
            bucket.

    Examples:
        >>> ke.data.padded_tokens([3, 5, 8, 60], (8, 64))
        88

    Reference:
        `tf.data.Dataset.bucket_by_sequence_length`.
    """
    lengths = _checked_lengths(lengths)
    buckets = check_buckets(buckets, longest=int(lengths.max()))
    return int(np.asarray(buckets)[np.searchsorted(buckets, lengths)].sum())


def check_buckets(buckets: Any, *, longest: int) -> tuple[int, ...]:
    """Require ascending positive integers, the last at least `longest`; returns them as ints."""
    try:
        checked = tuple(buckets)
    except TypeError:
        checked = ()
    if not checked or not all(map(_positive, checked)):
        raise InputError(
            "`buckets` must be positive integers: padded lengths in tokens. Received: "
            f"{buckets!r}. Give for example (16, 32, 64)."
        )
    if any(b <= a for a, b in itertools.pairwise(checked)):
        raise InputError(f"`buckets` must ascend. Received: {buckets!r}. Sort them, each once.")
    if checked[-1] < longest:
        raise InputError(
            f"The last of `buckets` must hold the longest text, {longest} tokens. Received: "
            f"{buckets!r}. Append {longest} or more, or lower `max_length`."
        )
    return tuple(map(int, checked))


def _positive(value) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value > 0)


def _checked_lengths(lengths) -> np.ndarray:
    lengths = np.asarray(lengths)
    if lengths.ndim != 1 or not lengths.size or lengths.dtype.kind not in "iu" or lengths.min() < 1:
        raise InputError(
            "`lengths` must be a list of positive integers, at least one. Received: "
            f"{lengths!r:.80}. Give the number of tokens of each text."
        )
    return lengths.astype(np.int64)
