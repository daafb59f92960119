"""Padded lengths that waste the fewest tokens."""

import itertools

import numpy as np

from keras_efficient._errors import InputError


def choose_buckets(
    lengths, *, max_length: int, count: int = 6, multiple: int = 8
) -> tuple[int, ...]:
    r"""The padded lengths that need the least padding for texts of these lengths.

    Among all sets of at most `count` multiples of `multiple` whose largest holds the longest text,
    the one with the smallest $\sum_i (\mathrm{bucket}(l_i) - l_i)$, found exactly by dynamic
    programming. Few shapes keep compilers (XLA) and memory allocators at rest; multiples of 8 fit
    matrix units.

    Args:
        lengths: int array [examples], in tokens.
        max_length: No bucket is longer, in tokens; the last may be this, a multiple or not.
        count: Most buckets. Default: 6.
        multiple: Buckets are multiples of it, in tokens. Default: 8.

    Returns:
        Ascending padded lengths in tokens. Fewer than `count`, if more would not save anything.

    Raises:
        InputError: There are no lengths, one is not in [1, max_length], or an argument is not
            positive.

    Example:
        >>> choose_buckets([3, 5, 8, 60], max_length=128, count=2)
        (8, 64)
    """
    for name, value in (("max_length", max_length), ("count", count), ("multiple", multiple)):
        if not _positive(value):
            raise InputError(
                f"`{name}` must be a positive integer. Received: {value!r}. Give for example 8."
            )
    lengths = _checked(lengths)
    if lengths.max() > max_length:
        raise InputError(
            f"Lengths must not exceed max_length={max_length}. Received: {lengths.max()}. Truncate "
            "the texts first, or raise `max_length`."
        )
    rounded = np.minimum(-(-lengths // multiple) * multiple, max_length)
    # Only multiples that some text rounds up to can end a bucket of an optimum.
    candidates, numbers = np.unique(rounded, return_counts=True)
    until = np.concatenate([[0], np.cumsum(numbers)])
    m = len(candidates)
    # best[j]: fewest padded tokens for all texts up to candidate j-1, with k buckets so far.
    best = np.full(m + 1, np.inf)
    best[0] = 0
    before = []
    for _ in range(min(count, m)):
        # [i, j]: texts of candidates i..j-1 padded to candidate j-1.
        cost = (until[None, :] - until[:, None]) * np.concatenate([[0], candidates])[None, :]
        total = np.where(np.tri(m + 1, dtype=bool).T, best[:, None] + cost, np.inf)
        before.append(total.argmin(axis=0))
        best = total.min(axis=0)
    chosen, j = [], m
    for back in reversed(before):
        if back[j] < j:  # equal: an empty bucket
            chosen.append(int(candidates[j - 1]))
            j = back[j]
    return tuple(reversed(chosen))


def padded_tokens(lengths, buckets) -> int:
    """How many tokens these texts take, each padded to the smallest bucket that holds it.

    Args:
        lengths: int array [examples], in tokens.
        buckets: Ascending padded lengths, in tokens.

    Raises:
        InputError: The buckets are not ascending and positive, or a text is longer than the last.

    Example:
        >>> padded_tokens([3, 5, 8, 60], (8, 64))
        88
    """
    lengths = _checked(lengths)
    buckets = check_buckets(buckets, longest=int(lengths.max()))
    return int(np.asarray(buckets)[np.searchsorted(buckets, lengths)].sum())


def check_buckets(buckets, *, longest: int) -> tuple[int, ...]:
    """Refuse buckets that are not ascending positive integers holding the longest text."""
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
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and value > 0


def _checked(lengths) -> np.ndarray:
    lengths = np.asarray(lengths)
    if lengths.ndim != 1 or not lengths.size or lengths.dtype.kind not in "iu" or lengths.min() < 1:
        raise InputError(
            "`lengths` must be a list of positive integers, at least one. Received: "
            f"{lengths!r:.80}. Give the number of tokens of each text."
        )
    return lengths.astype(np.int64)
