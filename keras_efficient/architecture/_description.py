"""Description of a Transformer block: its layers, and how its `call` reads its arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from keras_efficient.flavor import Layer, Tensor


@dataclass(frozen=True, eq=False)
class SelfAttention:
    """Multi-head self-attention with a softmax over scaled dot products.

    Attributes:
        query: layer that projects the queries, a Dense, EinsumDense or Hugging Face's Conv1D. It
            is also `key` and `value` if its outputs are queries, keys and values side by side.
        key: layer that projects the keys.
        value: layer that projects the values.
        output: layer that joins the heads.
        heads: number of heads.
        scale: factor of the dot products, 1/√d.
        dropout: Dropout layer of the probabilities, or None.
        masked: what happens to padding, which makes a difference only for an example without any
            real token. "added": a large negative number is added to its scores. "overwritten": its
            scores are replaced by such a number. "zeroed": and its probabilities become zero.
        causal: whether tokens attend to themselves and earlier ones only.
        joint: whether one layer projects queries, keys and values.
    """

    query: Layer
    key: Layer
    value: Layer
    output: Layer
    heads: int
    scale: float
    dropout: Layer | None = None
    masked: str = "added"
    causal: bool = False

    @property
    def joint(self) -> bool:
        """Whether one layer projects queries, keys and values."""
        return self.query is self.key is self.value


@dataclass(frozen=True, eq=False)
class FeedForward:
    """Two dense layers with an activation in between.

    Attributes:
        intermediate: the first dense layer.
        output: the second one.
        activation: function applied between them, besides the activation of `intermediate`
            itself; None if there is none.
        dropout: Dropout layer between the activation and `output`, or None.
        gate: dense layer that reads what `intermediate` reads, and whose outputs multiply those
            of the activation; or None.
    """

    intermediate: Layer
    output: Layer
    activation: Callable | None = None
    dropout: Layer | None = None
    gate: Layer | None = None


@dataclass(frozen=True, eq=False)
class BlockInputs:
    """What a block computes with, as tensors of one form for all libraries.

    Attributes:
        hidden: hidden states `[batch, length, width]`.
        mask: the tensor that says which tokens are real, in the library's form; None if all are.
            Blocks that receive the same tensor share one index of real tokens.
        added: function of `mask` that returns what is added to the scores of each token as a key,
            float `[batch, length]`: 0 for real tokens, a large negative number for padding.
        training: the argument `training` of the call, None if the library knows it by itself.
        queries_masked: whether padding attends to nothing, that is to all tokens alike, as with
            masks that Keras passes on by itself.
        position_bias: float `[1 or batch, heads, length, length]`, added to the scores besides
            the mask, such as T5's bias of relative positions; or None.
    """

    hidden: Tensor
    mask: Tensor | None
    added: Callable[[Tensor], Tensor]
    training: Any = None
    queries_masked: bool = False
    position_bias: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Block:
    """A Transformer block: self-attention and a feed-forward part, each with a residual connection.

    With `norm_first` false, as in BERT, each part ends in a normalization of its sum; with true,
    as in GPT-2, each part begins with one.

    Attributes:
        path: path of the block in the model.
        layer: the layer whose `call` computes the block; the attention layer if `chain` is not
            empty.
        attention: its `SelfAttention`.
        attention_dropout: Dropout layer of the attention's output, or None.
        attention_norm: normalization of the attention part: a LayerNormalization, or T5's.
        feed_forward: its `FeedForward`.
        feed_forward_dropout: Dropout layer of the feed-forward part's output, or None.
        feed_forward_norm: normalization of the feed-forward part.
        norm_first: whether the parts begin with their normalization.
        inner: layers whose own `call` the description replaces, besides `layer`.
        inputs: function of the arguments of `call`, `(args, kwargs)`, that returns `BlockInputs`,
            or None if the call asks for something else than the description computes.
        outputs: function of the new hidden states and the `BlockInputs` that returns what `call`
            returns.
        chain: in a block that a model or layer makes of plain layers, such as a functional model,
            these layers in the order of their calls: from the one that reads the hidden states to
            the last one. Empty for a layer of a library that is a block.
    """

    path: str
    layer: Layer
    attention: SelfAttention
    attention_norm: Layer
    feed_forward: FeedForward
    feed_forward_norm: Layer
    attention_dropout: Layer | None
    feed_forward_dropout: Layer | None
    norm_first: bool
    inner: tuple[Layer, ...]
    inputs: Callable[[tuple, dict], BlockInputs | None]
    outputs: Callable[[Tensor, BlockInputs], Any]
    chain: tuple[Layer, ...] = ()
