"""Padding removal: compute the Transformer blocks of a model on real tokens only."""

import dataclasses
from typing import Any

from keras_efficient.architecture._describe import describe
from keras_efficient.architecture._verify import Comparison
from keras_efficient.flavor import Model
from keras_efficient.training._flat_model import (
    FlatModel,
    disagreeing_blocks,
    find_first_token_only,
    leave_out_unused,
    reads_padding,
    unpadded_model,
)


@dataclasses.dataclass(frozen=True)
class UnpadReport:
    """What `ke.unpad` computes without padding; `print` shows it.

    Attributes:
        blocks: tuple of str, paths of the Transformer blocks that compute real tokens only.
        unchanged: dict of str, from the path of each other block to the reason why it computes as
            before.
        first_token_only: bool, whether the last block computes only the first token of each
            example, because nothing else of its output is read.
        masked: bool, whether the blocks receive a padding mask. Without one there is no padding
            to remove; the blocks still need fewer operations.
    """

    blocks: tuple[str, ...]
    unchanged: dict[str, str]
    first_token_only: bool
    masked: bool
    _holder: Any = dataclasses.field(default=None, repr=False, compare=False)

    def remove(self) -> None:
        """Let the model compute as before `ke.unpad`."""
        self._holder.remove()

    def __str__(self):
        number = len(self.blocks)
        what = "real tokens only" if self.masked else "all tokens, since it receives no mask"
        lines = [f"unpad: {number} Transformer block{'s' * (number > 1)}: {what}"]
        if self.first_token_only:
            lines.append("  in the last block the first token of each example only")
        lines += [f"  as before: {path} ({reason})" for path, reason in self.unchanged.items()]
        return "\n".join(lines)


def unpad(
    model: Model,
    *,
    sample: Any = None,
    ignore_padding_outputs: bool = False,
    rows: int | None = None,
) -> UnpadReport:
    """Compute the Transformer blocks of a model on real tokens only.

    A batch of texts is padded to its longest one, and a model computes the padding like text. With
    `ke.unpad`, its Transformer blocks compute rows `[tokens, width]` of the real tokens, and only
    attention sees a padded layout. The product for queries, keys and values is one; and if the
    model reads nothing but the first token of the last block, as classifiers do, that block
    computes nothing else.

    Outputs and gradients are the same up to rounding; this is checked before anything is changed:
    the model runs forward and backward on five short examples, as it was and without padding, with
    other numbers in place of the padding, and every output and gradient must agree to 1e-5 of its
    size in float32. Blocks that disagree, and blocks that `ke.architecture.describe` does not know,
    compute as before, and the report says why. With dropout, other elements are dropped than in the
    padded model, as many.

    It works in `fit`, `evaluate` and `predict`, with `ke.accumulate`, LoRA, pruning, quantization,
    `ke.remat`, mixed precision and strategies; ranges of activations that quantization learns are
    those of real tokens. The setting belongs to the model in memory: saving and exporting
    leave it out.

    XLA compiles fixed shapes, that is with `jit_compile=True` and on TPUs. The model then computes
    padding as before, unless you say how many `rows` it is to compute, and all batches of the
    dataset have one static shape, as with `drop_remainder=True`.

    Args:
        model: a built Keras 3 or tf_keras model.
        sample: features to check the model on, a batch as `model(sample)` accepts it, of unequal
            lengths. Default: None, made up from the model's input names and shapes.
        ignore_padding_outputs: whether the training ignores what the model returns for padding,
            as token classifiers' losses do with labels of -100 or sample weights of zero. Outputs
            `[batch, length, ...]` are then compared for real tokens only. Default: False.
        rows: int, number of tokens that a model compiled by XLA computes for the batch of one call,
            which is a microbatch on one replica: at least its real tokens and one for each text
            that begins with padding. A batch with more tokens is computed with its padding.
            Without XLA there are as many rows as tokens. Default: None, all tokens with XLA.

    Returns:
        An `UnpadReport`; `print(ke.unpad(model))` shows the blocks. Its `remove()` undoes it.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: `rows` is not a positive int; the model is not built; no block is known, or none
            agrees with the model; the model reads the outputs of padding, such as a mean over all
            positions; its inputs are not known and there is no `sample`; or that has no padding.

    Examples:
        >>> import keras_hub
        >>> backbone = keras_hub.models.BertBackbone(
        ...     vocabulary_size=100, num_layers=2, num_heads=2, hidden_dim=8, intermediate_dim=16
        ... )
        >>> classifier = keras_hub.models.BertTextClassifier(backbone, num_classes=2)
        >>> print(ke.unpad(classifier))
        unpad: 2 Transformer blocks: real tokens only
          in the last block the first token of each example only

    Reference:
        Zeng et al. 2022, "Boosting Distributed Training Performance of the Unpadded BERT Model";
        the padding-free collators of Hugging Face are similar.
    """
    if rows is not None and (not isinstance(rows, int) or isinstance(rows, bool) or rows < 1):
        raise ValueError(
            "`rows` must be the number of tokens to compute in a batch, an int above 0, or None. "
            f"Received: {rows!r}."
        )
    if (present := unpadded_model(model)) is not None:
        present.remove()
    architecture = describe(model, sample=sample)
    unchanged = dict(architecture.unknown)
    if not architecture.blocks:
        found = "; ".join(f"{path} ({reason})" for path, reason in unchanged.items())
        raise ValueError(
            "ke.unpad needs Transformer blocks of a known kind. Received: "
            f"{type(model).__name__} {model.name!r}, with "
            f"{found or 'no Transformer block at all'}. Known are blocks of the libraries that "
            "ke.architecture.describe lists, and those that consist of the library's "
            "MultiHeadAttention, LayerNormalization and Dense layers; train other models without "
            "ke.unpad."
        )
    holder = FlatModel(model, architecture.blocks, compiled=False, rows=rows)
    compare = Comparison(model, sample, ignore_padding_outputs)
    holder.install()
    try:
        with holder.off():
            compare.begin()
        unchanged |= _verify(holder, compare)
    except BaseException:
        holder.remove()
        raise
    # What is checked above is not compiled.
    holder.compiled = True
    holder.flavor.retrace(model)
    return UnpadReport(
        blocks=tuple(block.block.path for block in holder.blocks),
        unchanged=unchanged,
        first_token_only=holder.first_token_only,
        masked=holder.masked,
        _holder=holder,
    )


def _verify(holder, compare):
    """Leave the blocks in `holder` that agree with the model; return the others, and why."""
    wrong, difference = disagreeing_blocks(holder, compare)
    if difference:
        raise ValueError(
            "ke.unpad must not change what a model computes. Received: "
            f"{type(holder.model).__name__} {holder.model.name!r}, for which {difference}. It may "
            "read the outputs of padding, such as a mean over all positions; let it use the mask, "
            "or train it without ke.unpad. If only its outputs for padding differ, and your loss "
            "ignores them, pass ignore_padding_outputs=True."
        )
    unused = leave_out_unused(holder)
    if not holder.blocks:
        path, reason = next(iter(unused.items()))
        raise ValueError(
            "ke.unpad needs Transformer blocks that compute nothing but hidden states. Received: "
            f"{type(holder.model).__name__} {holder.model.name!r}; {path}: {reason}. Or train it "
            "without ke.unpad."
        )
    if holder.padding is False and not compare.made_up:
        raise ValueError(
            "`sample` must have padding, or it does not show whether the model reads it. Received: "
            f"a batch without padding for {type(holder.model).__name__} {holder.model.name!r}. "
            "Pass texts of unequal lengths."
        )
    if reason := reads_padding(holder, compare):
        raise ValueError(
            "ke.unpad computes nothing for padding. Received: "
            f"{type(holder.model).__name__} {holder.model.name!r}, which reads the outputs of "
            f"padding: with other numbers there, {reason}. Let it use the mask, or train it "
            "without ke.unpad."
        )
    find_first_token_only(holder, compare)
    return wrong | unused
