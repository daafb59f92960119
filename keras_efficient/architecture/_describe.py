"""`describe`: what a model consists of as a Transformer."""

from typing import Any

from keras_efficient.architecture._architecture import Architecture
from keras_efficient.architecture._blocks import NO_KNOWN_CLASS, described_blocks
from keras_efficient.architecture._check_built import check_built
from keras_efficient.architecture._embeddings import embeddings
from keras_efficient.architecture._layer_class import original_class
from keras_efficient.architecture._layer_paths import is_below, is_in, layer_paths
from keras_efficient.architecture._plain_blocks import plain_blocks
from keras_efficient.architecture._pooling import pooling_layers
from keras_efficient.flavor import Model


def describe(model: Model, *, sample: Any = None) -> Architecture:
    """Describe the architecture of a Transformer: which layers and weights do what.

    Known are the blocks of KerasHub's encoders (BERT, RoBERTa, DistilBERT, ALBERT, ViT) and of its
    decoders without an encoder (GPT-2); of Hugging Face's BERT, RoBERTa, XLM-RoBERTa, CamemBERT,
    ELECTRA, ALBERT, DistilBERT, GPT-2, ViT and DeiT, and of its encoders of BART, mBART, Marian,
    Pegasus, Blenderbot and T5; and of Model Garden's encoders. Their descriptions are read from
    classes and attributes. Decoders that attend to an encoder are not known.

    Other blocks are found if they consist of the library's own layers: a MultiHeadAttention, two
    LayerNormalizations and two Dense layers with their Dropouts and residual connections, with the
    norms first or last, as in layers of your own and functional models. For these the model runs
    once on a few examples, and is as before afterwards.

    A description may be wrong. Code that computes with it, such as `ke.unpad`, compares the results
    with the model's first.

    Embeddings, pooling and heads are found in models of all kinds, by the names of layers and by
    what the outputs depend on.

    Args:
        model: a built Keras 3 or tf_keras model.
        sample: features to run the model on if it has blocks of plain layers, a batch as
            `model(sample)` accepts it. Default: None, made up from the model's input names and
            shapes.

    Returns:
        An `Architecture`; `print(ke.architecture.describe(model))` shows the blocks, the reasons
        why others are not described, embeddings, pooling and heads.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: `model` is not built.

    Examples:
        >>> print(ke.architecture.describe(model))  # doctest: +ELLIPSIS
        no Transformer blocks
        embeddings: none
        pooling: none
        heads: dense...

    Reference:
        Vaswani et al. 2017, "Attention Is All You Need"; Devlin et al. 2019, "BERT".
    """
    check_built(model, "ke.architecture.describe")
    blocks, unknown = described_blocks(model)
    plain, reasons = plain_blocks(model, sample, blocks)
    paths = dict(layer_paths(model))
    inside = [block.path for block in plain]
    unknown = {
        path: reason
        for path, reason in unknown.items()
        if not is_in(path, inside) and not any(is_below(other, path) for other in inside)
    }
    for path, reason in reasons.items():
        around = [other for other in unknown if is_below(path, other)]
        for other in around or [path]:
            if unknown.get(other, "").endswith(NO_KNOWN_CLASS) or not around:
                unknown[other] = f"{original_class(paths[other]).__name__}: {reason}"
    order = {id(layer): number for number, layer in enumerate(paths.values())}
    every = sorted((*blocks, *plain), key=lambda block: order[id(block.layer)])
    return Architecture(tuple(every), unknown, embeddings(model), pooling_layers(model), model)
