"""`SearchSpace`: the sizes of a model that a search for a target may change."""

from dataclasses import dataclass

import numpy as np

from keras_efficient.architecture import Architecture
from keras_efficient.compression.structured import cuts
from keras_efficient.compression.structured.recipes import LayersRecipe, recipe_of
from keras_efficient.flavor import Model

#: Fast matrix products have multiples of this many neurons.
STEP = 32
#: The least hidden width that is tried, as a part of the present one.
LEAST_HIDDEN = 0.25


@dataclass(frozen=True)
class SearchSpace:
    """The sizes of a model that a search may change.

    Attributes:
        feed_forward: the number of neurons of each block.
        heads: the number of heads of each block.
        layers: whether blocks can be removed.
        parts: the sizes within blocks that can be changed, of "feed_forward" and "heads".
        per_layer: whether these may differ between blocks.
        hidden: the hidden widths that may be chosen, increasing.
    """

    feed_forward: tuple[int, ...]
    heads: tuple[int, ...]
    layers: bool
    parts: tuple[str, ...]
    per_layer: bool
    hidden: tuple[int, ...]

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.feed_forward)

    def now(self, part: str, block: int) -> int:
        """Return the number of neurons or heads of a block."""
        return getattr(self, part)[block]

    def sizes(self, part: str, block: int) -> list[int]:
        """Return the numbers of neurons or heads that a block may keep, increasing."""
        now = self.now(part, block)
        if part not in self.parts:
            return [now]
        step = STEP if part == "feed_forward" and now >= 4 * STEP else 1
        return [*range(step, now, step), now]

    def spread(self, fractions: tuple[float, ...]) -> list[int]:
        """Return the hidden widths nearest to parts of the largest one, increasing."""
        widths = np.array(self.hidden)
        return sorted({int(widths[np.argmin(abs(widths - widths[-1] * f))]) for f in fractions})


def search_space(
    model: Model, architecture: Architecture, hidden: int | None = None
) -> SearchSpace:
    """Return what of a model a search may change.

    Args:
        model: the model.
        architecture: its `Architecture`.
        hidden: the hidden width, if it is given. Default: None, searched if it can be changed.
    """
    sizes = [cuts.widths(block) for block in architecture.blocks]
    parts = {"feed_forward": cuts.check_feed_forward, "heads": cuts.check_heads}
    now, size, heads = sizes[0]["hidden"], sizes[0]["head_size"], sizes[0]["heads"]
    widths = (now if hidden is None else hidden,)
    if hidden is None and _possible(cuts.check_hidden, model, architecture):
        least = max(1, round(LEAST_HIDDEN * heads))
        if _possible(with_hidden, model, architecture, least * size):
            widths = tuple(size * number for number in range(least, heads + 1))
    return SearchSpace(
        tuple(found["feed_forward"] for found in sizes),
        tuple(found["heads"] for found in sizes),
        layers=len(sizes) > 1 and _possible(cuts.check_layers, model, architecture),
        parts=tuple(part for part, check in parts.items() if _possible(check, model, architecture)),
        per_layer=isinstance(recipe_of(model), LayersRecipe),
        hidden=widths,
    )


def with_hidden(model: Model, architecture: Architecture, hidden: int) -> Model:
    """Return a model of another hidden width, with any of the weights."""
    size = cuts.widths(architecture.blocks[0])
    if hidden == size["hidden"]:
        return model
    heads = np.arange(hidden // size["head_size"])
    return cuts.cut_hidden(
        model, architecture, np.arange(hidden), [heads] * len(architecture.blocks)
    )


def _possible(check, *arguments) -> bool:
    try:
        check(*arguments)
    except ValueError:
        return False
    return True
