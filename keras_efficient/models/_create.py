"""`create`: a Transformer with random weights, to be trained from scratch."""

from typing import Any

from keras_efficient import flavor as flavors, tasks
from keras_efficient._errors import InputError
from keras_efficient.data._tokenizer import as_tokenizer
from keras_efficient.models._load import LoadedModel
from keras_efficient.models._loader import loader_of


def create(
    tokenizer: Any,
    *,
    task: Any = "causal_lm",
    num_labels: int | None = None,
    num_layers: int = 4,
    hidden_dim: int = 256,
    num_heads: int = 4,
    intermediate_dim: int | None = None,
    dropout: float = 0.1,
    library: str = "keras",
    seed: int = 0,
) -> LoadedModel:
    """Create a Transformer with random weights for a tokenizer, to be trained from scratch.

    It is a GPT-2 for causal language modelling, a BART for sequence to sequence and a BERT for all
    other tasks. There are as many positions as the longest text of the tokenizer has tokens. In a
    BART, texts and targets share the vocabulary, the table of its embeddings and the output layer,
    and targets begin and end with the tokens that the tokenizer puts around a text.

    Args:
        tokenizer: A `ke.data.Tokenizer` whose backend is a `tokenizers.Tokenizer`, such as that of
            `ke.data.train_tokenizer`. The model has an output or a row for each of its tokens.
        task: Name of a task or a `ke.tasks.Task`. Default: "causal_lm".
        num_labels: Number of classes, for tasks that have some. Default: None.
        num_layers: Number of Transformer blocks; of a BART, in the encoder and in the decoder.
            Default: 4.
        hidden_dim: Width of the hidden states. Default: 256.
        num_heads: Number of attention heads, by which `hidden_dim` is divisible. Default: 4.
        intermediate_dim: Width of the feed-forward layers. Default: None, `4 * hidden_dim`.
        dropout: Dropout rate. Default: 0.1.
        library: "keras" for a KerasHub model or "tf_keras" for a transformers TF model. Default:
            "keras".
        seed: Seed of the weights. Default: 0.

    Returns:
        `(model, tokenizer)`, as from `ke.models.load`.

    Raises:
        InputError: A size or the library is no possible one, the tokenizer is a function, or it
            puts no tokens around a text, as targets need them.

    Examples:
        >>> import tensorflow as tf
        >>> tokenizer = ke.data.train_tokenizer(["a fine film", "a film"], vocabulary_size=300)
        >>> model, tokenizer = ke.models.create(tokenizer, num_layers=1, hidden_dim=8, num_heads=2)
        >>> ids = tf.constant([[0, 5, 6]])
        >>> model({"token_ids": ids, "padding_mask": tf.ones_like(ids)}).shape[:2]
        TensorShape([1, 3])

    Reference:
        Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; Devlin et al.
        2019, "BERT".
    """
    task, tokenizer = tasks.get(task), as_tokenizer(tokenizer)
    if library not in flavors.LIBRARIES:
        raise InputError(
            f"`library` must be one of {flavors.LIBRARIES}. Received: {library!r}. "
            "'keras' creates a KerasHub model, 'tf_keras' a Hugging Face TF model."
        )
    wide = 4 * hidden_dim if intermediate_dim is None else intermediate_dim
    sizes = {"num_layers": num_layers, "hidden_dim": hidden_dim, "num_heads": num_heads}
    sizes["intermediate_dim"] = wide
    wrong = [name for name, value in sizes.items() if type(value) is not int or value < 1]
    if wrong or hidden_dim % num_heads or not 0 <= dropout < 1:
        raise InputError(
            "The sizes of a model must be positive ints, `hidden_dim` a multiple of `num_heads`, "
            f"and `dropout` a share below 1. Received: {sizes}, dropout={dropout!r}. Give for "
            "example num_layers=4, hidden_dim=256, num_heads=4."
        )
    if tokenizer.largest_id is None:
        raise InputError(
            "A model is created for a tokenizers.Tokenizer, whose number of tokens is known. "
            f"Received: {tokenizer!r}. Train one with ke.data.train_tokenizer."
        )
    make = {"next_token": _gpt2, "decoder": _bart}.get(task.head, _bert)
    config = make(tokenizer, num_layers, hidden_dim, num_heads, wide, dropout)
    if task.head == "span":
        config["sep_token_id"] = tokenizer.separator
    model, inputs = loader_of(library).new_model(
        config, task.head_size(num_labels), seed, task.head
    )
    return LoadedModel(model, as_tokenizer(tokenizer, inputs=inputs))


def _gpt2(tokenizer, layers, width, heads, wide, dropout):
    return {
        "model_type": "gpt2",
        "vocab_size": tokenizer.largest_id + 1,
        "n_positions": tokenizer.max_length,
        "n_embd": width,
        "n_layer": layers,
        "n_head": heads,
        "n_inner": wide,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout),
        "bos_token_id": tokenizer.start_id,
        "eos_token_id": tokenizer.end_id,
    }


def _bart(tokenizer, layers, width, heads, wide, dropout):
    begin, end = tokenizer.ends
    sides = {}
    for side in ("encoder", "decoder"):
        sides |= {f"{side}_layers": layers, f"{side}_attention_heads": heads}
        sides[f"{side}_ffn_dim"] = wide
    return {
        "model_type": "bart",
        "vocab_size": tokenizer.largest_id + 1,
        "max_position_embeddings": tokenizer.max_length,
        "d_model": width,
        "num_hidden_layers": layers,
        **sides,
        "dropout": dropout,
        "attention_dropout": dropout,
        "pad_token_id": tokenizer.pad_id,
        "bos_token_id": begin,
        "eos_token_id": end,
        "decoder_start_token_id": begin,
        "forced_eos_token_id": end,
    }


def _bert(tokenizer, layers, width, heads, wide, dropout):
    return {
        "model_type": "bert",
        "vocab_size": tokenizer.largest_id + 1,
        "max_position_embeddings": tokenizer.max_length,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": wide,
        "hidden_act": "gelu",
        "pad_token_id": tokenizer.pad_id,
        **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), dropout),
    }
