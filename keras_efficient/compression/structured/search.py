"""The sizes that reach a target with the least loss."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_efficient.compression.structured.costs import Latency, Parameters
from keras_efficient.compression.structured.losses import Losses
from keras_efficient.compression.structured.space import SearchSpace


@dataclass(frozen=True)
class Choice:
    """Sizes, and what they cost.

    Attributes:
        layers: the numbers of the blocks that are kept.
        feed_forward: the number of neurons of each of them.
        heads: the number of heads of each of them.
        hidden: the hidden width.
        cost: the predicted cost.
    """

    layers: tuple[int, ...]
    feed_forward: tuple[int, ...]
    heads: tuple[int, ...]
    hidden: int
    cost: float


def cheapest(cost: Parameters | Latency, space: SearchSpace) -> Choice:
    """Return the sizes with the least cost, whichever block is the last one."""
    prices = cost.prices(space.hidden[0])

    def choice(kept):
        feed_forward, heads = (
            tuple(space.sizes(part, block)[0] for block in kept)
            for part in ("feed_forward", "heads")
        )
        found = prices.of(kept, feed_forward, heads)
        return Choice(kept, feed_forward, heads, space.hidden[0], found)

    blocks = range(space.blocks)
    kept = [(block,) for block in blocks] if space.layers else [tuple(blocks)]
    return max(map(choice, kept), key=lambda found: found.cost)


def best_sizes(
    cost: Parameters | Latency, losses: Losses, space: SearchSpace, most_cost: float
) -> Choice | None:
    """Return the sizes with the least predicted loss that cost at most so much.

    For each hidden width and number of blocks, the numbers of neurons and heads are a
    multiple-choice knapsack problem. Of sizes with the same loss those that cost the most are
    chosen.

    Args:
        cost: the costs.
        losses: the increases of the loss.
        space: the sizes that may be chosen.
        most_cost: the largest cost.

    Returns:
        A `Choice`, or None if none costs so little.
    """
    best: tuple[Any, Choice] | None = None
    for hidden in space.hidden:
        every = cost.prices(hidden)
        for number in range(1, space.blocks + 1) if space.layers else [space.blocks]:
            kept = losses.kept(number, space.blocks)
            prices, at = every.among(kept), {block: n for n, block in enumerate(kept)}
            sizes = {
                part: {block: space.now(part, block) for block in kept}
                for part in ("feed_forward", "heads")
            }
            parts = [part for part in losses.parts if set(part.blocks) & set(kept)]
            groups = []
            for part in parts:
                price = sum(getattr(prices, part.name)[at[n]] for n in part.blocks if n in at)
                groups.append((price * np.array(part.sizes), part.increases))
                for block in part.blocks:
                    sizes[part.name].pop(block, None)
            fixed = prices.rest + prices.blocks.sum()
            for name, numbers in sizes.items():
                fixed += sum(getattr(prices, name)[at[n]] * size for n, size in numbers.items())
            chosen = knapsack(groups, most_cost - fixed)
            if chosen is None:
                continue
            for part, index in zip(parts, chosen, strict=True):
                for block in set(part.blocks) & set(kept):
                    sizes[part.name][block] = part.sizes[index]
            feed_forward, heads = (tuple(found[n] for n in kept) for found in sizes.values())
            found = every.of(kept, feed_forward, heads)
            loss = losses.hidden[hidden] + losses.removed[space.blocks - number]
            loss += sum(p.increases[n] for p, n in zip(parts, chosen, strict=True))
            if best is None or (loss, -found) < best[0]:
                best = (loss, -found), Choice(tuple(kept), feed_forward, heads, hidden, found)
    return None if best is None else best[1]


def knapsack(groups: list[tuple[np.ndarray, np.ndarray]], most_cost: float) -> list[int] | None:
    """Choose one option of each group with the least loss in all, at a limited cost.

    Args:
        groups: for each group the costs and the losses of its options, float arrays.
        most_cost: the largest sum of the costs.

    Returns:
        The number of the option chosen in each group; None if no choice costs so little. Of
        choices with the same loss one that costs the most.
    """
    if sum(costs.min() for costs, _ in groups) > most_cost:
        return None
    if len(groups) == 1:
        ((costs, losses),) = groups
        fitting = np.flatnonzero(costs <= most_cost)
        return [int(min(fitting, key=lambda n: (losses[n], -costs[n])))]
    if not groups:
        return []
    from scipy.optimize import Bounds, LinearConstraint, milp

    costs = np.concatenate([costs for costs, _ in groups])
    losses = np.concatenate([losses for _, losses in groups])
    scale, most_loss = costs.max() or 1.0, losses.max() or 1.0
    one_each = np.zeros((len(groups), len(costs)))
    begin = 0
    for row, (own, _) in zip(one_each, groups, strict=True):
        row[begin : begin + len(own)] = 1
        begin += len(own)
    found = milp(
        losses / most_loss - 1e-5 * costs / scale,
        integrality=np.ones(len(costs)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(costs[None] / scale, ub=most_cost / scale),
        ],
    )
    if found.x is None:
        return None
    return [
        int(np.argmax(chosen))
        for chosen in np.split(found.x, np.cumsum([len(c) for c, _ in groups])[:-1])
    ]
