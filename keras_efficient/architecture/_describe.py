"""`describe`: the Transformer blocks of a model."""

from keras_efficient.architecture import _recognizers
from keras_efficient.architecture._description import Architecture, Block
from keras_efficient.flavor import Model
from keras_efficient.parametrize._architecture import transformer_blocks
from keras_efficient.parametrize._checks import check_model
from keras_efficient.parametrize._layer_paths import layer_paths
from keras_efficient.parametrize._parametrized_layer import original_class


def describe(model: Model) -> Architecture:
    """Describe the Transformer blocks of a model: which layer does what.

    Known are the blocks of KerasHub's encoders (BERT, RoBERTa, DistilBERT, ALBERT) and decoders
    without an encoder (GPT-2), of Hugging Face's BERT, RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA,
    ALBERT and DistilBERT, and of Model Garden's encoders. A description is read from classes and
    attributes; code that computes with it, such as `ke.unpad`, compares the results first.

    Args:
        model: a built Keras 3 or tf_keras model.

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
    blocks, unknown = [], {}
    for path, layer in layer_paths(model):
        if any(path.startswith(f"{block.path}/") for block in blocks):
            continue
        found = next((f for r in _recognizers.RECOGNIZERS if (f := r(path, layer))), None)
        if isinstance(found, Block):
            blocks.append(found)
        elif found is not None:
            unknown[path] = f"{original_class(layer).__name__}: {found}"
    inside = {block.path for block in blocks}
    for path, layer in transformer_blocks(model).items():
        if path not in inside and path not in unknown:
            unknown[path] = f"{original_class(layer).__name__}: no known class"
    return Architecture(tuple(blocks), unknown)
