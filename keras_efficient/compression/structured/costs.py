"""What the parts of a model cost: parameters or bytes as counted, milliseconds as measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_efficient import flavor as flavors
from keras_efficient.architecture import Architecture, describe
from keras_efficient.architecture._weights import KERNEL, all_weights
from keras_efficient.compression.structured.cuts import (
    cut_feed_forward,
    cut_heads,
    cut_layers,
)
from keras_efficient.compression.structured.space import SearchSpace, with_hidden
from keras_efficient.flavor import Model

#: The hidden widths at which costs are measured, as parts of the present one.
_FRACTIONS = (0.25, 0.5, 1.0)
#: The part of neurons or heads that a measured narrower model keeps.
_NARROW = 0.125


@dataclass(frozen=True)
class Prices:
    """What the parts of a model of one hidden width cost; costs of parts are added up.

    Attributes:
        rest: cost of what is no block.
        blocks: float array [blocks], that of each block besides its neurons and heads.
        feed_forward: float array [blocks], that of one of its neurons.
        heads: float array [blocks], that of one of its heads; 0 if their number is not searched.
        last: the part of these that the last block costs, since exports leave out what no output
            depends on, such as its other tokens in a classifier. Default: 1.
    """

    rest: float
    blocks: np.ndarray
    feed_forward: np.ndarray
    heads: np.ndarray
    last: float = 1.0

    def among(self, kept: Sequence[int]) -> "Prices":
        """Return the prices of the blocks that are kept, in their order."""
        index, parts = list(kept), np.ones(len(kept))
        parts[-1] = self.last
        blocks, feed_forward, heads = (
            values[index] * parts for values in (self.blocks, self.feed_forward, self.heads)
        )
        return Prices(self.rest, blocks, feed_forward, heads)

    def of(self, kept: Sequence[int], feed_forward: Sequence[int], heads: Sequence[int]) -> float:
        """Return the cost of some blocks with a number of neurons and heads each."""
        own = self.among(kept)
        cost = own.rest + own.blocks.sum() + own.feed_forward @ np.array(feed_forward)
        return float(cost + own.heads @ np.array(heads))


class Parameters:
    """Number of parameters, or of bytes, exactly.

    Args:
        model: the model.
        architecture: its `Architecture`.
        space: its `SearchSpace`.
        count: function of a shape and dtype that returns a number; 1 for each element by default.
    """

    def __init__(
        self,
        model: Model,
        architecture: Architecture,
        space: SearchSpace,
        count: Callable[[Any], int] | None = None,
    ):
        self.count = count or _elements
        self.widths = space.spread(_FRACTIONS)
        models = [with_hidden(model, architecture, width) for width in self.widths]
        self.counted = [self._counted(m, _described(m, model, architecture), space) for m in models]

    def prices(self, hidden: int) -> Prices:
        """Return the prices at a hidden width, by interpolation.

        They are polynomials of degree 2 in the width, since weights have two axes of it at most.
        """
        factors = [
            np.prod([(hidden - other) / (width - other) for other in self.widths if other != width])
            for width in self.widths
        ]

        def at(name):
            values = [getattr(prices, name) for prices in self.counted]
            return np.round(sum(f * v for f, v in zip(factors, values, strict=True)))

        return Prices(float(at("rest")), at("blocks"), at("feed_forward"), at("heads"))

    def _counted(self, model, architecture, space):
        weights = all_weights(model)
        blocks, neurons, heads = [], [], []
        for block in architecture.blocks:
            layers = block.chain or (block.layer,)
            inside = {id(layer) for part in layers for layer in part._flatten_layers()}
            own = [weight for weight in weights if id(weight.layer) in inside]
            forward, attention = block.feed_forward, block.attention
            neurons.append(self._shared(own, (forward.intermediate, forward.gate), forward.output))
            projections = (attention.query, attention.key, attention.value)
            heads.append(self._shared(own, projections, attention.output))
            blocks.append(sum(self.count(weight.value) for weight in own))
        total = sum(self.count(weight) for weight in flavors.of(model).weights(model))
        n = np.array(neurons) / np.array(space.feed_forward)
        h = np.array(heads) / np.array(space.heads)
        if "heads" not in space.parts:
            h = np.zeros_like(h)
        fixed = np.array(blocks) - n * np.array(space.feed_forward) - h * np.array(space.heads)
        return Prices(float(total - sum(blocks)), fixed, n, h)

    def _shared(self, weights, writing, reading) -> int:
        """What all units of a part cost that some layers write, and another one reads."""
        ids = {id(layer) for layer in writing if layer is not None}
        return sum(
            self.count(weight.value)
            for weight in weights
            if id(weight.layer) in ids or (weight.layer is reading and weight.kind == KERNEL)
        )


class Latency:
    """Milliseconds, from a few measured models.

    For each of three hidden widths these are the model, one of an eighth of the neurons, one of an
    eighth of the heads if their number is searched alone, and one block. Between the widths, prices
    are interpolated linearly.

    Args:
        model: the model.
        architecture: its `Architecture`.
        space: its `SearchSpace`.
        compare: function of the model and a list of models that returns the milliseconds of the
            first, and those of the others.

    Attributes:
        baseline: the milliseconds of the whole model.
    """

    def __init__(
        self, model: Model, architecture: Architecture, space: SearchSpace, compare: Callable
    ):
        self.widths = space.spread(_FRACTIONS)
        models, groups = [], []
        for width in self.widths:
            base = with_hidden(model, architecture, width)
            group = _variants(base, _described(base, model, architecture), space)
            groups.append(list(group))
            models += group.values()
        self.baseline, times = compare(model, models)
        times = iter(times)
        self.measured = [_fitted({name: next(times) for name in group}, space) for group in groups]

    def prices(self, hidden: int) -> Prices:
        """Return the prices at a hidden width."""

        def at(name):
            values = np.array([getattr(prices, name) for prices in self.measured])
            columns = values.reshape(len(values), -1).T
            return np.array([np.interp(hidden, self.widths, column) for column in columns])

        rest, last = float(at("rest")[0]), float(at("last")[0])
        return Prices(rest, at("blocks"), at("feed_forward"), at("heads"), last)


def _described(model, original, architecture) -> Architecture:
    return architecture if model is original else describe(model)


def _elements(variable) -> int:
    return int(np.prod(variable.shape))


def bytes_of(variable: Any) -> int:
    """Return the bytes of a variable in memory."""
    return _elements(variable) * variable.dtype.size


def _narrow(numbers) -> list[int]:
    return [max(1, int(_NARROW * number)) for number in numbers]


def _variants(model, architecture, space) -> dict[str, Model]:
    """The models to measure, by name."""
    found = {"whole": model}
    cut = {"feed_forward": cut_feed_forward, "heads": cut_heads}
    for part in space.parts:
        numbers = [np.arange(number) for number in _narrow(getattr(space, part))]
        found[part] = cut[part](model, architecture, numbers)
    if space.layers:
        found["one"] = cut_layers(model, architecture, [0])
    return found


def _fitted(times: dict[str, float], space: SearchSpace) -> Prices:
    whole, count = times["whole"], space.blocks
    parts = np.ones(count)
    if space.layers:
        block = max(whole - times["one"], 0.0) / (count - 1)
        parts[-1] = min(1.0, times["one"] / block) if block else 1.0
    prices, inside = {}, np.zeros(count)
    for part in ("feed_forward", "heads"):
        numbers = np.array(getattr(space, part))
        fewer = float(parts @ (numbers - np.array(_narrow(numbers))))
        saved = whole - times.get(part, whole)
        prices[part] = max(saved, 0.0) / fewer if fewer else 0.0
        inside += prices[part] * numbers
    # Without another number of blocks to compare with, everything belongs to them.
    if space.layers and parts[-1] == 1:
        block = (whole - times["one"] - inside[1:].sum()) / (count - 1)
    else:
        block = (whole - parts @ inside) / parts.sum()
    block = max(block, 0.0)
    rest = max(whole - parts @ (block + inside), 0.0)
    full = {part: np.full(count, price) for part, price in prices.items()}
    return Prices(rest, np.full(count, block), **full, last=float(parts[-1]))
