"""Divide the texts of an epoch into batches whose shapes are the same in every epoch."""

import dataclasses
from typing import Any

import numpy as np

#: Number of groups of similar length whose texts are mixed. More groups mean less padding, and
#: batches that have more texts in common with those of other epochs.
GROUPS = 64


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """Which texts form a batch, by their ranks: their places in an epoch's order of all texts.

    Attributes:
        ranks: int array `[examples]`, the ranks that an epoch contains, each once.
        chunks: int array `[examples]`, nondecreasing, or None. Texts of one chunk may change
            places: no batch gets another shape by that.
        slots: int array `[examples]`, the places in `ranks` batch after batch, or None for their
            order.
        sizes: int array `[batches]`, the number of texts of each batch.
    """

    ranks: np.ndarray
    sizes: np.ndarray
    chunks: np.ndarray | None = None
    slots: np.ndarray | None = None

    def longest(self, padded: np.ndarray) -> np.ndarray:
        """Return the length of each batch, `[batches]`, from the length of each rank."""
        lengths = padded[self.ranks]
        if self.slots is not None:
            lengths = lengths[self.slots]
        return np.maximum.reduceat(lengths, np.cumsum(self.sizes) - self.sizes)


def plan_batches(
    padded: np.ndarray,
    *,
    batch_size: int | None,
    tokens_per_batch: int | None,
    shuffle: bool,
    mix: bool,
    drop_remainder: bool,
) -> BatchPlan:
    """Divide texts into batches of a number of texts, or of a number of tokens with padding.

    Args:
        padded: Int array `[texts]`, the padded length of each rank; ascending if `shuffle`.
        batch_size: Number of texts of a batch; the last one may be smaller. Or None.
        tokens_per_batch: Largest number of tokens of a batch, at least the largest of `padded`.
            Or None.
        shuffle: Whether the ranks are those of sorted texts. Otherwise the batches keep their
            order.
        mix: Whether to mix texts of similar lengths. Without it only those of one length are mixed.
        drop_remainder: Whether to omit the texts that fill no batch of `batch_size`.

    Returns:
        The plan.
    """
    total = len(padded)
    if batch_size is None:
        budget: Any = tokens_per_batch
        if not shuffle:
            return BatchPlan(np.arange(total), _sizes_in_order(padded, budget))
        ranks = np.arange(total)[::-1]
        return BatchPlan(ranks, *_deal(padded[ranks], lambda longest: budget // longest, mix))
    full = total - total % batch_size
    if shuffle and (mix or drop_remainder):
        kept = _kept(padded, batch_size)
    else:
        kept = np.arange(total) < full
    ranks, rest = np.flatnonzero(kept), np.flatnonzero(~kept)
    if drop_remainder:
        rest = rest[:0]
    sizes = [batch_size] * (full // batch_size) + [len(rest)] * bool(len(rest))
    if not (shuffle and mix):
        return BatchPlan(np.concatenate([ranks, rest]), np.array(sizes))
    ranks = ranks[::-1]
    _, chunks, slots = _deal(padded[ranks], lambda longest: batch_size, mix)
    places = np.arange(full, full + len(rest))
    return BatchPlan(
        np.concatenate([ranks, rest]),
        np.array(sizes),
        np.concatenate([chunks, places]),
        np.concatenate([slots, places]),
    )


def _sizes_in_order(padded, budget) -> np.ndarray:
    sizes, longest = [0], 0
    for length in padded.tolist():
        longest = max(longest, length)
        if (sizes[-1] + 1) * longest > budget:
            sizes.append(0)
            longest = length
        sizes[-1] += 1
    return np.array(sizes)


def _deal(lengths, size_of, mix) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return sizes, chunks and slots for texts of descending lengths.

    A group is a run of texts; its batches contain `size_of(its longest)` texts. They take turns in
    taking its texts, beginning with the longest. Within a round, which makes a chunk, any batch may
    take any text, except that each batch keeps its first text, which makes its length, and the
    texts of an incomplete round, which make its size.
    """
    total = len(lengths)
    chunks = np.arange(total)
    slots, sizes = [chunks[:0]], [chunks[:0]]
    start = 0
    while start < total:
        size, rest = int(size_of(lengths[start])), total - start
        # At least two batches: the texts of a single one would meet in every epoch.
        count = max(2, round(total / GROUPS / size)) if mix else 1
        if rest < (count + 2 * mix) * size:
            count = -(-rest // size)
        turns = np.arange(min(count * size, rest))
        whole = len(turns) // count * count
        chunks[start + count : start + whole] = start + turns[count:whole] // count * count
        slots.append(start + np.argsort(turns % count, kind="stable"))
        sizes.append(np.bincount(turns % count))
        start += len(turns)
    return np.concatenate(sizes), chunks, np.concatenate(slots)


def _kept(padded, batch_size) -> np.ndarray:
    """Return which ranks fill batches, `[texts]`: all but the last ones of some lengths.

    The remainder is removed from the lengths in proportion to their numbers of texts, one text at a
    time from the length that keeps the highest fraction.
    """
    _, starts, counts = np.unique(padded, return_index=True, return_counts=True)
    kept = counts.copy()
    for _ in range(len(padded) % batch_size):
        kept[np.argmax((kept - 1) / counts)] -= 1
    return np.arange(len(padded)) - np.repeat(starts, counts) < np.repeat(kept, counts)
