"""A model that is made smaller step by step, and what of it is kept."""

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient.architecture import Architecture, describe
from keras_efficient.architecture._embeddings import embeddings
from keras_efficient.compression.structured import cuts
from keras_efficient.compression.structured.carry import carry
from keras_efficient.compression.structured.importance import (
    Importance,
    most,
    output_layers,
    reconstructed,
)
from keras_efficient.compression.structured.layer_losses import removal_order
from keras_efficient.compression.structured.recipes import LayersRecipe, recipe_of
from keras_efficient.flavor import Model


class Shrinking:
    """A model while it is made smaller, step by step.

    Attributes:
        original: the model at the beginning.
        model: the model now, another one as soon as something was removed.
        architecture: its `Architecture`.
        layers: list of the numbers of the original blocks that are left.
    """

    def __init__(self, model: Model, data: tf.data.Dataset | None, importance: str):
        self.original = self.model = model
        self.data, self.importance = data, importance
        batches = None if data is None else [(*batch, None)[:3] for batch in data]
        self.batches = batches
        self.sample = None if batches is None else batches[0][0]
        recipe_of(model)
        self.architecture = self.described()
        self.layers = list(range(len(self.blocks)))
        self.before = self.sizes()

    def described(self) -> Architecture:
        """Return the architecture of the present model."""
        return describe(self.model, sample=self.sample)

    @property
    def blocks(self):
        """The blocks of the present model."""
        return self.architecture.blocks

    def width(self, size: str) -> int:
        """Return the number of neurons or heads of each block, or the hidden width."""
        found = {cuts.widths(block)[size] for block in self.blocks}
        return min(found)

    def units(self, size: str, block: int) -> int:
        """Return the number of neurons or heads of a block."""
        return cuts.widths(self.blocks[block])[size]

    def sizes(self) -> dict[str, Any]:
        """Return the present sizes; a tuple where blocks differ."""
        found: dict[str, Any] = {"layers": len(self.blocks)}
        for size in ("feed_forward", "heads", "hidden"):
            values = tuple(cuts.widths(block)[size] for block in self.blocks)
            found[size] = values[0] if len(set(values)) == 1 else values
        rows = {weight.shape[0] for weight in self.architecture.embeddings.token}
        if len(rows) == 1:
            found["vocabulary"] = rows.pop()
        return {name: value for name, value in found.items() if value != ()}

    # --- checks ------------------------------------------------------------------------------

    def check_blocks(self) -> None:
        """Raise a ValueError if a block of the model is not known."""
        if self.blocks and not self.architecture.unknown:
            return
        unknown = self.architecture.unknown.items()
        found = "; ".join(f"{path} ({reason})" for path, reason in unknown)
        raise ValueError(
            "ke.shrink removes parts of Transformer blocks that it knows. Received: "
            f"{type(self.model).__name__} {self.model.name!r}, with "
            f"{found or 'no Transformer block'}. Only its `vocabulary` can be made smaller; see "
            "print(ke.architecture.describe(model))."
        )

    def check_hidden(self, hidden: Any) -> None:
        """Raise a ValueError if the hidden width is not a possible one."""
        size, width = self.width("head_size"), self.width("hidden")
        if not is_int(hidden) or not 0 < hidden <= width or hidden % size:
            raise ValueError(
                f"`hidden` must be a multiple of the size of a head, {size}, and at most {width}. "
                f"Received: {hidden!r}."
            )

    def checked_ids(self, vocabulary: Any) -> np.ndarray:
        """Return the ids of tokens to keep as an array, or raise a ValueError."""
        ids, rows = np.asarray(vocabulary), self.before.get("vocabulary")
        good = ids.ndim == 1 and ids.size and ids.dtype.kind in "iu"
        if not good or np.any(np.diff(ids) <= 0) or ids[0] < 0 or (rows and ids[-1] >= rows):
            raise ValueError(
                "`vocabulary` must hold increasing ids of tokens"
                + (f" from 0 to {rows - 1:,}" if rows else "")
                + f". Received: {vocabulary!r:.80}. Get them from ke.data.trim_vocabulary."
            )
        preprocessor = getattr(self.model, "preprocessor", None)
        if preprocessor is not None:
            raise ValueError(
                "A preprocessor has a vocabulary of its own. Received: `vocabulary` for "
                f"{self.model.name!r}, which has one. Set `model.preprocessor = None` first, and "
                "use the tokenizer of ke.data.trim_vocabulary."
            )
        return ids

    # --- what to keep ------------------------------------------------------------------------

    def chosen_layers(self, layers: Any) -> list[int]:
        """Return the numbers of the blocks to keep."""
        cuts.check_layers(self.model, self.architecture)
        count = len(self.blocks)
        if isinstance(layers, list | tuple | np.ndarray | range):
            kept = [int(n) for n in layers if is_int(n) and 0 <= n < count]
            if not kept or len(kept) != len(layers) or sorted(set(kept)) != kept:
                raise ValueError(
                    f"`layers` must be increasing numbers of blocks from 0 to {count - 1}. "
                    f"Received: {layers!r}."
                )
            return kept
        if not is_int(layers) or not 0 < layers <= count:
            raise ValueError(
                f"`layers` must be the number of blocks to keep, from 1 to {count}, or a list of "
                f"their numbers. Received: {layers!r}."
            )
        if self.batches is None or layers == count:
            return sorted({round(x) for x in np.linspace(0, count - 1, layers)})
        order, _ = removal_order(self.model, self.architecture, self.dataset())
        return sorted(set(range(count)) - set(order[: count - layers]))

    def dataset(self) -> tf.data.Dataset:
        """Return the data as a dataset that the compiled model can be evaluated on."""
        _check_compiled(self.original)
        assert self.data is not None
        return self.data

    def _importance(self) -> Importance:
        method = "magnitude" if self.importance == "reconstruction" else self.importance
        if method == "taylor":
            _check_compiled(self.original)
            if self.model is not self.original:
                # KerasHub would add the accuracy, which not every task has.
                self.model.compile(optimizer="sgd", loss=self.original.loss, metrics=[])
        return Importance(self.model, self.architecture, method, self.batches)

    def _chosen(self, part: str, numbers: list[int]):
        """What to keep of each block, and new output kernels as matrices or None."""
        counts = [(cuts.widths(b)[part], n) for b, n in zip(self.blocks, numbers, strict=True)]
        if self.importance == "reconstruction":
            layers = output_layers(self.blocks, part)
            features = [x for x, _, _ in self.batches or ()]
            found = reconstructed(self.model, layers, counts, features)
            return [kept for kept, _ in found], [matrix for _, matrix in found]
        importance = self._importance()
        scores = importance.neurons() if part == "feed_forward" else importance.heads()
        return [most(s, n) for s, n in zip(scores, numbers, strict=True)], None

    # --- steps -------------------------------------------------------------------------------

    def keep_layers(self, kept: list[int]) -> None:
        """Keep some blocks."""
        if len(kept) < len(self.blocks):
            self.layers = [self.layers[n] for n in kept]
            self._replace(cuts.cut_layers(self.model, self.architecture, kept))

    def keep_neurons(self, numbers: list[int]) -> None:
        """Keep some neurons of each block."""
        if numbers != [cuts.widths(block)["feed_forward"] for block in self.blocks]:
            kept, matrices = self._chosen("feed_forward", numbers)
            self._replace(cuts.cut_feed_forward(self.model, self.architecture, kept))
            self._correct("feed_forward", matrices)

    def keep_heads(self, numbers: list[int]) -> None:
        """Keep some heads of each block."""
        if numbers != [block.attention.heads for block in self.blocks]:
            kept, matrices = self._chosen("heads", numbers)
            self._replace(cuts.cut_heads(self.model, self.architecture, kept))
            self._correct("heads", matrices)

    def keep_hidden(self, hidden: int) -> None:
        """Keep some hidden units, and as many heads as fit."""
        if hidden == self.width("hidden"):
            return
        number = hidden // self.width("head_size")
        units = most(self._importance().hidden(), hidden)
        heads, matrices = self._chosen("heads", [number] * len(self.blocks))
        self._replace(cuts.cut_hidden(self.model, self.architecture, units, heads))
        self._correct("heads", None if matrices is None else [m[:, units] for m in matrices])

    def keep_tokens(self, ids: np.ndarray) -> None:
        """Keep some tokens."""
        if len(ids) != self.before.get("vocabulary"):
            self.model = cuts.cut_vocabulary(self.model, self.architecture, ids)
            # The blocks have the sizes of before; the data have ids that the model need not have.
            self.architecture = dataclasses.replace(
                self.architecture, embeddings=embeddings(self.model)
            )

    def _replace(self, model):
        self.model = model
        self.architecture = self.described()

    def _correct(self, part, matrices):
        """Assign corrected output kernels."""
        for layer, matrix in zip(output_layers(self.blocks, part), matrices or (), strict=False):
            kernel = layer.kernel if hasattr(layer, "kernel") else layer.weight
            kernel.assign(tf.reshape(tf.cast(matrix, kernel.dtype), kernel.shape))

    def copy(self) -> None:
        """Make a copy of the model, if nothing was removed."""
        if self.model is self.original:
            recipe = recipe_of(self.model)
            new = recipe.build({}) if isinstance(recipe, LayersRecipe) else recipe.build()
            carry(self.model, new, lambda weight, axis: None)
            self._replace(new)


def checked_numbers(size: Any, name: str, widths: list[int]) -> list[int]:
    """Return a number per block as a list, or raise a ValueError.

    Args:
        size: a number, or a sequence of one per block.
        name: its name.
        widths: the largest number of each block.
    """
    blocks = len(widths)
    numbers = [size] * blocks if is_int(size) else size
    good = isinstance(numbers, list | tuple | np.ndarray) and len(numbers) == blocks
    if not good or not all(
        is_int(n) and 0 < n <= width for n, width in zip(numbers, widths, strict=True)
    ):
        most_allowed = f"{min(widths):,}"
        if len(set(widths)) > 1:
            most_allowed += f" (of {', '.join(map(str, widths))})"
        raise ValueError(
            f"`{name}` must be a number from 1 to {most_allowed}, or a list of {blocks}, one for "
            f"each layer that is kept. Received: {size!r}."
        )
    return [int(n) for n in numbers]


def is_int(value: Any) -> bool:
    """Return whether a value is an int or a NumPy one."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _check_compiled(model):
    if not getattr(model, "compiled", getattr(model, "_is_compiled", False)):
        raise ValueError(
            "What to keep is chosen by the compiled loss. Received: "
            f"{model.name!r}, not compiled. Call model.compile(optimizer, loss) first, or leave "
            "`data` out."
        )
