"""`describe`: the Transformer blocks of a model."""

from typing import Any

from keras_efficient.architecture import _recognizers
from keras_efficient.architecture._description import Architecture, Block
from keras_efficient.architecture._plain_blocks import plain_blocks
from keras_efficient.flavor import Model
from keras_efficient.parametrize._architecture import transformer_blocks
from keras_efficient.parametrize._checks import check_model
from keras_efficient.parametrize._layer_paths import layer_paths
from keras_efficient.parametrize._parametrized_layer import original_class


def describe(model: Model, *, sample: Any = None) -> Architecture:
    """Describe the Transformer blocks of a model: which layer does what.

    Known are the blocks of KerasHub's encoders (BERT, RoBERTa, DistilBERT, ALBERT) and decoders
    without an encoder (GPT-2), of Hugging Face's BERT, RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA,
    ALBERT, DistilBERT, GPT-2, ViT and of the encoders of BART and mBART, and of Model Garden's
    encoders. Their descriptions are read from classes and attributes.

    Other blocks are found if they consist of the library's own layers: a MultiHeadAttention, two
    LayerNormalizations and two Dense layers with their Dropouts and residual connections, with the
    norms first or last, as in layers of your own, functional models and KerasHub's ViT. For these
    the model runs once on a few examples, and is as before afterwards.

    A description may be wrong. Code that computes with it, such as `ke.unpad`, compares the results
    with the model's first.

    Args:
        model: a built Keras 3 or tf_keras model.
        sample: features to run the model on if it has blocks of plain layers, a batch as
            `model(sample)` accepts it. Default: None, made up from the model's input names and
            shapes.

    Returns:
        An `Architecture` with the blocks, and the reasons why others are not described.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: `model` is not built.

    Examples:
        >>> ke.architecture.describe(model).blocks
        ()

    Reference:
        Vaswani et al. 2017, "Attention Is All You Need"; Devlin et al. 2019, "BERT".
    """
    check_model(model, "ke.architecture.describe", changes=False)
    paths = dict(layer_paths(model))
    blocks, unknown = [], {}
    for path, layer in paths.items():
        if any(path.startswith(f"{block.path}/") for block in blocks):
            continue
        found = next((f for r in _recognizers.RECOGNIZERS if (f := r(path, layer))), None)
        if isinstance(found, Block):
            blocks.append(found)
        elif found is not None:
            unknown[path] = f"{original_class(layer).__name__}: {found}"
    plain, attention = plain_blocks(model, sample, tuple(blocks))
    blocks += plain
    inside = [block.path for block in blocks]
    for path, layer in transformer_blocks(model).items():
        if any(f"{path}/".startswith(f"{p}/") or p.startswith(f"{path}/") for p in inside):
            continue
        reasons = [
            r for p in list(attention) if p.startswith(f"{path}/") and (r := attention.pop(p))
        ]
        if path not in unknown:
            reason = reasons[0] if reasons else "no known class"
            unknown[path] = f"{original_class(layer).__name__}: {reason}"
    for path, reason in attention.items():
        if not any(path.startswith(f"{other}/") for other in unknown):
            unknown[path] = f"{original_class(paths[path]).__name__}: {reason}"
    order = {id(layer): number for number, layer in enumerate(paths.values())}
    blocks.sort(key=lambda block: order[id(block.layer)])
    return Architecture(tuple(blocks), unknown)
