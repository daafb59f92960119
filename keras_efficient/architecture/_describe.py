"""`describe`: what a model consists of as a Transformer."""

from keras_efficient.architecture._architecture import Architecture
from keras_efficient.architecture._blocks import described_blocks
from keras_efficient.architecture._check_built import check_built
from keras_efficient.architecture._embeddings import embeddings
from keras_efficient.architecture._pooling import pooling_layers
from keras_efficient.flavor import Model


def describe(model: Model) -> Architecture:
    """Describe the architecture of a Transformer: which layers and weights do what.

    Known are the blocks of KerasHub's encoders (BERT, RoBERTa, DistilBERT, ALBERT) and decoders
    without an encoder (GPT-2), of Hugging Face's BERT, RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA,
    ALBERT and DistilBERT, and of Model Garden's encoders. A description is read from classes and
    attributes; code that computes with it, such as `ke.unpad`, compares the results first.

    Embeddings, pooling and heads are found in models of all kinds, by the names of layers and by
    what the outputs depend on.

    Args:
        model: a built Keras 3 or tf_keras model.

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
    return Architecture(blocks, unknown, embeddings(model), pooling_layers(model), model)
