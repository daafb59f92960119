"""How much each cut increases the loss of a model, as measured."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient.architecture._weights import KERNEL, all_weights
from keras_efficient.compression._observers import input_grams
from keras_efficient.compression.structured.importance import (
    Importance,
    best_weights,
    most,
    output_layers,
    removal_sequence,
)
from keras_efficient.compression.structured.layer_losses import evaluated, removal_order
from keras_efficient.compression.structured.shrinking import Shrinking
from keras_efficient.compression.structured.space import SearchSpace

#: Numbers of neurons, heads and hidden units whose loss is measured, as parts of the present ones.
_FRACTIONS = {
    "feed_forward": (0.125, 0.25, 0.5, 0.75),
    "heads": (0.25, 0.5, 0.75),
    "hidden": (0.25, 0.5, 0.75, 1.0),
}


@dataclass(frozen=True)
class Part:
    """The increase of the loss by the number of neurons or heads that some blocks keep each.

    Attributes:
        name: "feed_forward" or "heads".
        blocks: the numbers of the blocks that keep the same number.
        sizes: list of numbers, increasing.
        increases: float array of the increase of the loss with each of them.
    """

    name: str
    blocks: tuple[int, ...]
    sizes: list[int]
    increases: np.ndarray


class Losses:
    """The increase of a model's loss by its sizes; those of different sizes are added up.

    All are convex: see `_convex`.

    Args:
        shrinking: a `Shrinking` of the whole model, compiled and with data.
        space: its `SearchSpace`.

    Attributes:
        order: numbers of the blocks in the order in which they are removed.
        removed: float array of the increase without each number of blocks, from 0.
        hidden: dict of a hidden width to the increase with it.
        parts: list of `Part`.
    """

    def __init__(self, shrinking: Shrinking, space: SearchSpace):
        model, data = shrinking.original, shrinking.dataset()
        if space.layers:
            self.order, losses = removal_order(model, shrinking.architecture, data)
        else:
            self.order, losses = [], [evaluated(model, data)]
        numbers = range(len(losses))
        self.removed = _convex(numbers, np.array(losses) - losses[0])
        self.hidden = self._hidden(shrinking, space, losses[0])
        self.parts = _parts(shrinking, space)

    def kept(self, layers: int, blocks: int) -> list[int]:
        """Return the numbers of the blocks to keep."""
        return sorted(set(range(blocks)) - set(self.order[: blocks - layers]))

    @staticmethod
    def _hidden(shrinking, space, whole):
        if len(space.hidden) == 1:
            return {space.hidden[0]: 0.0}
        tried, found = space.spread(_FRACTIONS["hidden"]), []
        for width in tried[:-1]:
            with shrinking.original.distribute_strategy.scope():
                cut = Shrinking(shrinking.original, shrinking.data, shrinking.importance)
                cut.keep_hidden(width)
                cut.model.compile(optimizer="sgd", loss=shrinking.original.loss, metrics=[])
            found.append(evaluated(cut.model, shrinking.data) - whole)
        increases = _convex(np.negative(tried), [*found, 0.0])
        return {h: float(np.interp(h, tried, increases)) for h in space.hidden}


def _convex(removed: Any, increases: Any) -> np.ndarray:
    """Make what is removed last cost at least as much as what is removed before it.

    Losses are measured without training. They stop rising where the model has become useless,
    and an additive search would then remove all the rest of the same kind. After training they do
    not. What noise makes cheaper than nothing costs nothing.

    Args:
        removed: how much is removed, in any order and unit.
        increases: the increase of the loss with each; that of the least removed is zero.
    """
    order, result, slope = np.argsort(removed), np.zeros(len(removed)), 0.0
    for before, after in itertools.pairwise(order):
        step = removed[after] - removed[before]
        slope = max(slope, (increases[after] - increases[before]) / step)
        result[after] = result[before] + slope * step
    return result


def _parts(shrinking, space) -> list[Part]:
    """Measure the loss with fewer neurons and heads, by zeros in the kernels that read them."""
    parts = []
    for name in space.parts:
        cut = _Outputs(shrinking, name)
        every = range(space.blocks)
        for blocks in [(n,) for n in every] if space.per_layer else [tuple(every)]:
            now = space.now(name, blocks[0])
            tried = sorted({max(1, round(now * part)) for part in _FRACTIONS[name]} - {now})
            found = [cut.increase(blocks, number) for number in tried]
            sizes = space.sizes(name, blocks[0])
            tried = [*tried, now]
            measured = _convex(np.negative(tried), [*found, 0.0])
            increases = np.interp(sizes, tried, measured)
            if len(tried) > 1:
                # The first ones are below what was tried.
                slope = (measured[0] - measured[1]) / (tried[1] - tried[0])
                increases += slope * np.maximum(0, tried[0] - np.array(sizes))
            parts.append(Part(name, blocks, sizes, increases))
    return parts


class _Outputs:
    """The kernels that read the neurons or heads of each block, with some of them at zero."""

    def __init__(self, shrinking, part):
        self.model, self.data = shrinking.original, shrinking.dataset()
        blocks, seen = shrinking.blocks, shrinking.batches or ()
        if shrinking.importance == "reconstruction" and len(seen) > 1:
            # On the texts that it was fitted to, a layer looks better than on others.
            seen = seen[: len(seen) // 2]
            self.data = self.data.skip(len(seen))
        self.whole = evaluated(self.model, self.data)
        kernels = {id(w.layer): w for w in all_weights(self.model) if w.kind == KERNEL}
        self.weights = [kernels[id(layer)] for layer in output_layers(blocks, part)]
        self.matrices = [w.matrix(w.value).numpy() for w in self.weights]
        counts = [
            len(m) if part == "feed_forward" else b.attention.heads
            for m, b in zip(self.matrices, blocks, strict=True)
        ]
        self.sizes = [len(m) // count for m, count in zip(self.matrices, counts, strict=True)]
        self.grams = None
        if shrinking.importance == "reconstruction":
            features = [x for x, _, _ in seen]
            grams = input_grams(self.model, self.weights, features)
            self.grams = [grams[weight] for weight in self.weights]
            self.orders = [
                removal_sequence(m, gram, size, 1)
                for m, gram, size in zip(self.matrices, self.grams, self.sizes, strict=True)
            ]
        else:
            importance = Importance(
                self.model, shrinking.architecture, shrinking.importance, shrinking.batches
            )
            scores = importance.neurons() if part == "feed_forward" else importance.heads()
            self.scores = scores

    def increase(self, blocks: Sequence[int], number: int) -> float:
        """Return the increase of the loss if some blocks keep a number of neurons or heads."""
        try:
            for block in blocks:
                self._assign(block, self._cut(block, number))
            return evaluated(self.model, self.data) - self.whole
        finally:
            for block in blocks:
                self._assign(block, self.matrices[block])

    def _cut(self, block, number):
        matrix, size = self.matrices[block], self.sizes[block]
        count = len(matrix) // size
        if self.grams is None:
            kept = most(self.scores[block], number)
        else:
            kept = np.setdiff1d(np.arange(count), self.orders[block][: count - number])
        rows = (kept[:, None] * size + np.arange(size)).reshape(-1)
        new = np.zeros_like(matrix)
        if self.grams is None:
            new[rows] = matrix[rows]
        else:
            new[rows] = best_weights(matrix, self.grams[block], size, kept)
        return new

    def _assign(self, block, matrix):
        weight = self.weights[block]
        weight.value.assign(weight.unmatrix(tf.constant(matrix, weight.value.dtype)))
