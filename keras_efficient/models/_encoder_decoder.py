"""`encoder_decoder`: a new sequence-to-sequence Transformer, to be trained from scratch."""

from typing import Any

from keras_efficient import flavor as flavors
from keras_efficient._errors import InputError
from keras_efficient.data._tokenizer import Tokenizer, as_tokenizer
from keras_efficient.models._load import LoadedModel


def encoder_decoder(
    tokenizer: Any,
    *,
    layers: int = 3,
    hidden_dim: int = 256,
    heads: int = 4,
    intermediate_dim: int = 1024,
    dropout: float = 0.1,
    max_length: int = 128,
    library: str = "keras",
    seed: int = 0,
) -> LoadedModel:
    """Make an encoder-decoder with random weights, and a tokenizer with the names of its inputs.

    It is a BART: `keras_hub.models.BartSeq2SeqLM`, or `transformers.TFBartForConditionalGeneration`
    for tf_keras. Texts and targets share the vocabulary, the table of its embeddings and the output
    layer. What to generate begins and ends with the special tokens that the tokenizer puts around a
    text, such as [CLS] and [SEP].

    Args:
        tokenizer: `ke.data.Tokenizer` or anything that `ke.data.as_tokenizer` accepts, whose backend
            is a `tokenizers.Tokenizer`.
        layers: number of blocks of the encoder, and of the decoder. Default: 3.
        hidden_dim: number of units of the hidden states, a multiple of `heads`. Default: 256.
        heads: number of attention heads. Default: 4.
        intermediate_dim: number of units of the feed-forward layers. Default: 1024.
        dropout: rate from 0 to below 1. Default: 0.1.
        max_length: longest text and longest target, in tokens. Default: 128.
        library: "keras" or "tf_keras". Default: "keras".
        seed: seed of the weights. Default: 0.

    Returns:
        `(model, tokenizer)`, as `ke.models.load` returns them.

    Raises:
        InputError: an argument is out of range, or the tokenizer puts no special token before and
            after a text.

    Examples:
        >>> from tokenizers import BertWordPieceTokenizer
        >>> tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "c", "##a", "##t", "K", "AE1", "T"]
        >>> vocabulary = {token: number for number, token in enumerate(tokens)}
        >>> words = BertWordPieceTokenizer(vocabulary, lowercase=False)
        >>> model, tokenizer = ke.models.encoder_decoder(words, layers=1, hidden_dim=32)
        >>> records = ke.data.Records(("cat",), ke.data.TargetTexts(["K AE1 T"]))
        >>> features, labels = next(iter(ke.data.text(records, tokenizer, batch_size=1)))
        >>> model(features).shape, labels.numpy().tolist()
        (TensorShape([1, 4, 10]), [[7, 8, 9, 3]])

    Reference:
        Lewis et al. 2020, "BART: Denoising Sequence-to-Sequence Pre-training".
    """
    sizes = {"layers": layers, "hidden_dim": hidden_dim, "heads": heads}
    sizes |= {"intermediate_dim": intermediate_dim, "max_length": max_length}
    for name, value in sizes.items():
        if type(value) is not int or value < 1:
            raise InputError(
                f"`{name}` must be a positive integer. Received: {value!r}. See the defaults."
            )
    if hidden_dim % heads:
        raise InputError(
            f"`hidden_dim` must be a multiple of `heads`. Received: {hidden_dim} and {heads}. "
            f"Give for example hidden_dim={heads * max(1, hidden_dim // heads)}."
        )
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise InputError(
            f"`dropout` must be from 0 to below 1. Received: {dropout!r}. Give for example 0.1."
        )
    if library not in flavors.LIBRARIES:
        raise InputError(
            f"`library` must be one of {flavors.LIBRARIES}. Received: {library!r}. Correct it."
        )
    words = as_tokenizer(tokenizer)
    words = Tokenizer(
        words.backend, inputs=words.inputs, pad_id=words.pad_id, max_length=max_length
    )
    words.ends  # noqa: B018 - checks that there are two
    rows = words.largest_id
    if rows is None:
        raise InputError(
            "A new model needs the size of the vocabulary. Received: a tokenizer whose backend is a "
            "function. Give a tokenizers.Tokenizer."
        )
    flavors.get(library).keras.utils.set_random_seed(seed)
    make = _keras if library == "keras" else _tf_keras
    model, inputs = make(rows + 1, dropout, words, **sizes)
    return LoadedModel(model, as_tokenizer(words, inputs=inputs))


def _keras(vocabulary, dropout, words, layers, hidden_dim, heads, intermediate_dim, max_length):
    import keras_hub

    backbone = keras_hub.models.BartBackbone(
        vocabulary_size=vocabulary,
        num_layers=layers,
        num_heads=heads,
        hidden_dim=hidden_dim,
        intermediate_dim=intermediate_dim,
        dropout=dropout,
        max_sequence_length=max_length,
    )
    return keras_hub.models.BartSeq2SeqLM(backbone, preprocessor=None), {
        "ids": "encoder_token_ids",
        "mask": "encoder_padding_mask",
        "target_ids": "decoder_token_ids",
        "target_mask": "decoder_padding_mask",
    }


def _tf_keras(vocabulary, dropout, words, layers, hidden_dim, heads, intermediate_dim, max_length):
    import transformers

    begin, end = words.ends
    config = transformers.BartConfig(
        vocab_size=vocabulary,
        max_position_embeddings=max_length,
        encoder_layers=layers,
        encoder_ffn_dim=intermediate_dim,
        encoder_attention_heads=heads,
        decoder_layers=layers,
        decoder_ffn_dim=intermediate_dim,
        decoder_attention_heads=heads,
        d_model=hidden_dim,
        dropout=dropout,
        attention_dropout=dropout,
        pad_token_id=words.pad_id,
        bos_token_id=begin,
        eos_token_id=end,
        decoder_start_token_id=begin,
        forced_eos_token_id=end,
        use_cache=False,
    )
    model: Any = transformers.TFBartForConditionalGeneration(config)
    model(model.dummy_inputs)
    return model, {
        "ids": "input_ids",
        "mask": "attention_mask",
        "target_ids": "decoder_input_ids",
        "target_mask": "decoder_attention_mask",
    }
