"""`Architecture`: what a model consists of as a Transformer, and its summary as text."""

import functools
import math
import re
from dataclasses import dataclass, field

from keras_efficient.architecture._activations import activation_of
from keras_efficient.architecture._dense_layer import activation_after, kernel_of
from keras_efficient.architecture._description import Block
from keras_efficient.architecture._embeddings import Embeddings
from keras_efficient.architecture._heads import head_layers
from keras_efficient.architecture._layer_paths import layer_paths
from keras_efficient.flavor import Layer, Model


@dataclass(frozen=True, eq=False)
class Architecture:
    """The architecture of a Transformer as far as it is known; `print` shows it.

    Attributes:
        blocks: tuple of the `Block`s, in the order of the model.
        unknown: dict from the path of each other layer that looks like a Transformer block to the
            reason why it is not described.
        embeddings: its `Embeddings`: the tables of tokens, positions and segments, and the kernels
            of patches.
        pooling: dict of the layers that make one vector per example, by path.
        heads: dict of the last layer with a kernel before each output, by path. The model is
            traced for it when it is first read, unless it is a functional one with one output.
    """

    blocks: tuple[Block, ...]
    unknown: dict[str, str]
    embeddings: Embeddings
    pooling: dict[str, Layer]
    _model: Model = field(repr=False)

    @functools.cached_property
    def heads(self) -> dict[str, Layer]:
        """The last layer with a kernel before each output, by path."""
        ids = {id(layer) for layer in head_layers(self._model)}
        return {path: layer for path, layer in layer_paths(self._model) if id(layer) in ids}

    def __str__(self):
        lines = _grouped([(block.path, _block_lines(block)) for block in self.blocks])
        lines += _grouped([(path, [f"not described: {why}"]) for path, why in self.unknown.items()])
        lines = lines or ["no Transformer blocks"]
        tables = [
            f"  {role}: {weight.path} {list(weight.shape)}"
            for role in ("token", "position", "segment", "patch")
            for weight in getattr(self.embeddings, role)
        ]
        lines += ["embeddings:", *tables] if tables else ["embeddings: none"]
        for name, layers in (("pooling", self.pooling), ("heads", self.heads)):
            lines.append(f"{name}: {', '.join(layers) or 'none'}")
        return "\n".join(lines)


def _grouped(described):
    """Lines about blocks; those that differ in the numbers of their paths alone stand together."""
    groups = {}
    for path, lines in described:
        groups.setdefault((re.sub(r"\d+", "", path), *lines), []).append(path)
    found = []
    for (_, *lines), paths in groups.items():
        number = len(paths)
        shown = paths[0] if number == 1 else f"{paths[0]} to {paths[-1]}"
        found.append(f"{number} Transformer block{'s' * (number > 1)}, {shown}:")
        found += [f"  {line}" for line in lines]
    return found


def _block_lines(block):
    attention, forward = block.attention, block.feed_forward
    size = _inputs(attention.output) // attention.heads
    seen = "earlier tokens only" if attention.causal else "all tokens"
    gate = ", gated" if forward.gate is not None else ""
    inner = f"{_inputs(forward.output)} wide, {_activation(forward)}{gate}"
    where = "before" if block.norm_first else "after"
    return [
        f"attention: {attention.heads} heads of {size}, to {seen}",
        f"feed-forward: {inner}",
        f"normalization: {where} each part ({'pre' if block.norm_first else 'post'}-norm)",
    ]


def _inputs(layer):
    """Number of inputs of a layer that returns hidden states, whose kernel ends in their width."""
    return math.prod(kernel_of(layer).shape[:-1])


def _activation(forward):
    """The name of the activation between the two layers."""
    functions = [activation_after(forward.intermediate), forward.activation]
    names = [activation_of(function) for function in functions]
    shown = [n if isinstance(n, str) else getattr(n, "__name__", type(n).__name__) for n in names]
    return " of ".join(name for name in reversed(shown) if name != "linear") or "linear"
