"""Packing: several texts in one row, which attend to themselves alone."""

import dataclasses
import inspect
from typing import Any

import tensorflow as tf

from keras_efficient.architecture._describe import describe
from keras_efficient.architecture._embeddings import embeddings
from keras_efficient.architecture._token_rows import TokenRows
from keras_efficient.architecture._verify import Comparison, made_up
from keras_efficient.flavor import Model
from keras_efficient.flavor._patched import patched
from keras_efficient.training._batch_split import MASKS
from keras_efficient.training._flat_model import (
    FlatModel,
    ModelCall,
    calling,
    leave_out_unused,
    unpadded_model,
)

#: Added to the scores of tokens of other texts.
_OTHER = -1e9
#: Lengths of the texts that a model is checked on, all in one row with some padding.
_LENGTHS, _PADDING = (5, 3, 1, 4), 3


@dataclasses.dataclass(frozen=True)
class PackReport:
    """What `ke.pack` did; `print` shows it.

    Attributes:
        blocks: tuple of str, paths of the Transformer blocks.
        texts_per_row: int, largest number of texts in a row.
        per_text: bool, whether the model has an output for each text, rather than for each token.
    """

    blocks: tuple[str, ...]
    texts_per_row: int
    per_text: bool
    _holder: Any = dataclasses.field(default=None, repr=False, compare=False)

    def remove(self) -> None:
        """Let the model take ordinary batches again."""
        self._holder.remove()

    def __str__(self):
        number = len(self.blocks)
        what = "text" if self.per_text else "token"
        return (
            f"pack: {number} Transformer block{'s' * (number > 1)}, up to {self.texts_per_row} "
            f"texts in a row, outputs per {what}"
        )


def pack(model: Model, texts_per_row: int = 8) -> PackReport:
    """Let a model take rows that consist of several texts, as `ke.data.pack` makes them.

    Each text attends to itself alone, its positions begin at 0, and a classifier reads the first
    token of each: outputs and gradients are those of a batch with one text per row. All shapes are
    fixed, so this suits XLA and TPUs; without XLA, `ke.unpad` needs no packing.

    A classifier then returns `[rows, texts_per_row, outputs]` where it returned `[texts, outputs]`;
    the labels of `ke.data.pack` have the same shape, with sample weights, so that losses and
    `weighted_metrics` are those of the texts. Models with an output per token return
    `[rows, tokens, outputs]` as before.

    Before anything is changed, the model runs forward and backward on four texts, and on one row of
    the same texts; every output and gradient must agree to 1e-5 of its size in float32. With
    dropout, other elements are dropped than in the unpacked model, as many. It works in `fit`,
    `evaluate` and `predict`, with `ke.accumulate`, LoRA, pruning, mixed precision and strategies.
    Until `remove()` is called, the model takes packed batches only; saving leaves the setting out,
    and exports are of the model as it was.

    Args:
        model: a built Keras 3 or tf_keras model whose features are a dict with a padding mask: an
            encoder or decoder of KerasHub, Hugging Face or Model Garden.
        texts_per_row: largest number of texts in a row. Default: 8.

    Returns:
        A `PackReport`. Its `remove()` undoes it.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: `texts_per_row` is not a positive int; the model is not built, has blocks of
            an unknown kind or no padding mask; or what it computes for packed texts differs.

    Examples:
        >>> classifier, tokenizer = ke.models.load("models/all-MiniLM-L6-v2", num_labels=2)
        >>> ke.pack(classifier, texts_per_row=4).per_text
        True
        >>> texts = ke.data.Records.of(["good", "bad", "a film"], [1, 0, 1])
        >>> data = ke.data.pack(texts, tokenizer, batch_size=1, row_length=16, texts_per_row=4)
        >>> features, labels, weights = next(iter(data))
        >>> classifier(features).shape
        TensorShape([1, 4, 2])

    Reference:
        Krell et al. 2021, "Efficient Sequence Packing without Cross-contamination".
    """
    if type(texts_per_row) is not int or texts_per_row < 1:
        raise ValueError(
            f"`texts_per_row` must be an int above 0. Received: {texts_per_row!r}. Give for "
            "example 8."
        )
    if (present := unpadded_model(model)) is not None:
        present.remove()
    architecture = describe(model)
    unknown = dict(architecture.unknown)
    unknown |= {b.path: "it consists of plain layers" for b in architecture.blocks if b.chain}
    if not architecture.blocks or unknown:
        found = "; ".join(f"{path} ({reason})" for path, reason in unknown.items())
        raise ValueError(
            "ke.pack needs Transformer blocks of a known kind, which are layers. Received: "
            f"{type(model).__name__} {model.name!r}, with {found or 'no Transformer block'}. Train "
            "it without packing; ke.unpad knows more kinds."
        )
    features = made_up(model, _LENGTHS)
    if isinstance(features, dict) and "mask_positions" in features:
        raise ValueError(
            "Texts whose tokens are masked cannot be packed. Received: "
            f"{type(model).__name__} {model.name!r}, with the input 'mask_positions'. Train it "
            "without packing."
        )
    if not isinstance(features, dict) or not any(name in features for name in MASKS):
        raise ValueError(
            "ke.pack needs features that are a dict with a padding mask, named "
            f"{', '.join(MASKS)}. Received: {type(model).__name__} {model.name!r}, with "
            f"{list(features) if isinstance(features, dict) else 'one tensor'}. Train it without "
            "packing."
        )
    compare = Comparison(model, features, ignore_padding=True)
    compare.begin()
    # Of outputs per token, those of padding are left out.
    per_text = all(len(value) == len(_LENGTHS) for value in compare.reference[0].values())
    holder = PackedModel(model, architecture.blocks, texts_per_row, per_text)
    holder.install()
    try:
        with holder.testing():
            difference = compare.difference()
            unused = leave_out_unused(holder)
    except BaseException:
        holder.remove()
        raise
    if unused:
        difference = next(f"{path} is not packed: {reason}" for path, reason in unused.items())
    if difference:
        holder.remove()
        raise ValueError(
            "ke.pack must not change what a model computes. Received: "
            f"{type(model).__name__} {model.name!r}, for which {difference}. Its positions may be "
            "of a kind that does not begin anew with each text, or its head may read more than "
            "first tokens. Train it without packing."
        )
    holder.flavor.retrace(model)
    return PackReport(
        tuple(block.block.path for block in holder.blocks), texts_per_row, per_text, holder
    )


class PackedModel(FlatModel):
    """Holder of the methods by which a model takes packed rows.

    Args:
        model: the model.
        blocks: the `Block`s.
        texts_per_row: largest number of texts in a row.
        per_text: whether the model has an output for each text.
    """

    def __init__(self, model: Model, blocks: Any, texts_per_row: int, per_text: bool):
        super().__init__(model, blocks, compiled=False)
        self.texts, self.per_text, self.unpacked = texts_per_row, per_text, False
        self.by_argument = "position_ids" in inspect.signature(model.call).parameters
        self.tables = [] if self.by_argument else list(embeddings(model).position)
        # The position of the first token in models of the RoBERTa family.
        layers = (layer for layer in model._flatten_layers() if hasattr(layer, "padding_idx"))
        layer = next(layers, None)
        self.offset = 0 if layer is None or layer.padding_idx is None else layer.padding_idx + 1
        self.positions: Any = None

    def testing(self):
        """Return a context in which the model takes unpacked texts, and packs them itself."""
        return patched(self, unpacked=True, texts=len(_LENGTHS))

    def install(self):
        super().install()
        self.own_calls = []
        for table in self.tables:
            own = vars(table.layer).get("call")
            self.own_calls.append((table.layer, own))
            object.__setattr__(table.layer, "call", self._positions_of(table, own))

    def uninstall(self):
        for layer, own in reversed(self.own_calls):
            object.__delattr__(layer, "call")
            if own is not None:
                object.__setattr__(layer, "call", own)
        super().uninstall()

    def _positions_of(self, table, own):
        def call(*args, **kwargs):
            if self.positions is None:
                return self.plain(table.layer, own)(*args, **kwargs)
            vectors = tf.convert_to_tensor(getattr(table.layer, table.attribute))
            found = tf.gather(vectors, self.positions)
            return tf.cast(found, table.layer.compute_dtype)

        vars(call).update(autograph_info__=None, replaced_call=own)
        return call

    def run(self, call, args, kwargs):
        """Return the outputs for packed features."""
        features, *rest = args or (kwargs.pop("inputs"),)
        name = next((n for n in MASKS if isinstance(features, dict) and n in features), None)
        if name is None:
            raise ValueError(
                "A model with ke.pack takes a dict of packed features, with the padding mask. "
                f"Received: {features!r:.200}. Make batches by ke.data.pack, or call `remove()` of "
                "the report."
            )
        back = None
        if self.unpacked:
            features, back = _packed(features, name)
        numbers = tf.cast(features[name], tf.int32)
        first, positions = places(numbers, self.texts)
        features = {**features, name: tf.cast(numbers > 0, features[name].dtype)}
        if self.by_argument:
            features["position_ids"] = positions + self.offset
        self.positions = positions
        try:
            with calling(PackedCall(self, numbers, first)):
                result = call(features, *rest, **kwargs)
        finally:
            self.positions = None
        rows = tf.shape(numbers)[0]

        def divided(tensor):
            if not isinstance(tensor, tf.Tensor) or not self.per_text or tensor.shape.rank != 2:
                found = tensor
            else:
                found = tf.reshape(tensor, [rows, self.texts, tensor.shape[-1]])
                found.set_shape([numbers.shape[0], self.texts, tensor.shape[-1]])
            if back is None or not isinstance(found, tf.Tensor):
                return found
            return found[0] if self.per_text else back(found)

        if hasattr(result, "to_tuple"):
            return type(result)(**{key: divided(value) for key, value in result.items()})
        return tf.nest.map_structure(divided, result)


class PackedCall(ModelCall):
    """One call on packed rows.

    Args:
        owner: the `PackedModel`.
        numbers: int32 `[rows, tokens]`, the number of each token's text, 0 for padding.
        first: int32 `[rows, texts]`, the place of each text's first token.
    """

    def __init__(self, owner, numbers, first):
        super().__init__(owner)
        self.numbers, self.first, self.packed = numbers, first, None

    def rows_of(self, inputs, everywhere=None, budget=None):
        """Return rows of all tokens, with a mask that keeps texts apart."""
        if self.packed is None:
            self.packed = TokenRows(None, *tf.unstack(tf.shape(self.numbers)))
            same = self.numbers[:, None, :, None] == self.numbers[:, None, None, :]
            self.packed.bias = tf.where(same, 0.0, _OTHER)
            self.owner.masked = True
        return self.packed

    def outputs(self, block, padded):
        """Return the hidden states; after the last block of a classifier, of first tokens.

        They are `[rows · texts, 1, width]`, as if each text was an example of one token.
        """
        owner = self.owner
        if not owner.per_text or block is not owner.blocks[-1]:
            return padded
        first = tf.gather(padded, self.first, batch_dims=1)
        return tf.reshape(first, [-1, 1, padded.shape[-1]])


def places(numbers: tf.Tensor, texts: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Return where the texts of packed rows begin, and the positions of their tokens.

    Args:
        numbers: int32 `[rows, tokens]`, the number of each token's text, from 1; 0 for padding. The
            tokens of a text follow one another.
        texts: largest number of texts in a row.

    Returns:
        int32 `[rows, texts]`, 0 for texts that are not there; and int32 `[rows, tokens]`, 0 for
        padding.
    """
    own = numbers[:, None] == tf.range(1, texts + 1)[None, :, None]
    first = tf.argmax(tf.cast(own, tf.int32), axis=2, output_type=tf.int32)
    start = tf.gather(first, tf.maximum(numbers - 1, 0), batch_dims=1)
    positions = tf.range(tf.shape(numbers)[1])[None] - start
    return first, tf.where(numbers > 0, positions, 0)


def _packed(features, name):
    """Pack texts into one row; return it, and a function that unpacks outputs per token."""
    real = tf.cast(features[name], tf.bool)
    shape = tf.shape(real)
    index = tf.where(real)

    def row(tensor):
        return tf.pad(tf.gather_nd(tensor, index)[None], [[0, 0], [0, _PADDING]])

    found = {key: row(tensor) for key, tensor in features.items() if key != "position_ids"}
    numbers = tf.pad(index[:, 0][None] + 1, [[0, 0], [0, _PADDING]])
    found[name] = tf.cast(numbers, tf.int32)

    def back(tensor):
        values = tensor[0, : tf.shape(index)[0]]
        size = tf.concat([shape, tf.shape(values)[1:]], 0)
        return tf.scatter_nd(index, values, tf.cast(size, index.dtype))

    return found, back
