"""`Decoder`: the decoder of a sequence-to-sequence model, one token at a time, with a cache."""

import abc
from typing import Any

import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient._errors import InputError
from keras_efficient.flavor._typing import Model, Tensor

#: Added to the scores of positions that are not attended to; finite in float16.
_MASKED = -3e4


class Decoder(abc.ABC):
    """What `generate` needs of a sequence-to-sequence model: cached keys and values, and a step.

    The products and norms are those of the model's layers, so that transforms of weights and
    exports apply to them. There are no operations but TensorFlow's core ones: KerasHub writes its
    caches by XLA operations, which not every server has, and Hugging Face's grow with every token,
    which a `tf.while_loop` does not allow.

    Args:
        model: the model.

    Examples:
        >>> sorted(ke.generation.Decoder.__abstractmethods__)
        ['embed', 'encode', 'logits']

    Reference:
        Shazeer 2019, "Fast Transformer Decoding: One Write-Head is All You Need", section 2.4, on
        the cached keys and values.
    """

    #: The blocks of the decoder: attention to the tokens before, to the text, and feed-forward
    #: layers, each with its norm.
    blocks: list
    #: Whether a norm stands before its layers, inside of the residual connection.
    norm_first: bool = False

    def __init__(self, model: Model):
        self.model = model
        self.flavor: Any = flavors.of(model)

    @abc.abstractmethod
    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the hidden states of texts, `[batch, tokens, hidden_dim]`."""

    @abc.abstractmethod
    def embed(self, ids: Tensor, index: Tensor) -> Tensor:
        """Return the embeddings of tokens at a position, `[rows, 1, hidden_dim]`."""

    @abc.abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of the next token, `[rows, vocabulary]`, of `[rows, 1, hidden_dim]`."""

    def start(self, ids: Tensor, mask: Tensor, length: Any) -> dict[str, Any]:
        """Encode texts, and return the state before the first token.

        Args:
            ids: int32 `[batch, tokens]`, the texts.
            mask: int32 `[batch, tokens]`, 1 for tokens, 0 for padding.
            length: int32 scalar, the number of tokens that the state has space for.
        """
        with self.flavor.library_context():
            encoded = self.encode(ids, mask)
            cross = [block.cross.keys_and_values(encoded) for block in self.blocks]
        empty = []
        for keys, _ in cross:
            shape = [tf.shape(ids)[0], keys.shape[1], length, keys.shape[3]]
            empty.append(tf.zeros(shape, keys.dtype))
        return {
            "keys": empty,
            "values": list(empty),
            "cross_keys": [keys for keys, _ in cross],
            "cross_values": [values for _, values in cross],
            "mask": mask,
        }

    def step(self, ids: Tensor, index: Tensor, state: dict[str, Any]) -> tuple[Tensor, Any]:
        """Return the logits of the next token and the new state, as `generate` calls it."""
        columns = tf.range(tf.shape(state["keys"][0])[2])
        here = (columns == index)[:, None]
        seen = (columns <= index)[None, None, None]
        real = tf.cast(state["mask"], tf.bool)[:, None, None]
        keys, values = [], []
        with self.flavor.library_context():
            hidden = self.embed(ids, index)
            bias = self.bias(index, columns)
            for i, block in enumerate(self.blocks):

                def own(x, block=block, i=i):
                    key, value = block.own.keys_and_values(x)
                    keys.append(tf.where(here, key, state["keys"][i]))
                    values.append(tf.where(here, value, state["values"][i]))
                    return block.own.attend(x, keys[i], values[i], seen, bias)

                def cross(x, block=block, i=i):
                    cached = state["cross_keys"][i], state["cross_values"][i]
                    return block.cross.attend(x, *cached, real)

                hidden = self._residual(hidden, own, block.own_norm)
                hidden = self._residual(hidden, cross, block.cross_norm)
                hidden = self._residual(hidden, block.feed_forward, block.last_norm)
            return self.logits(hidden), state | {"keys": keys, "values": values}

    def bias(self, index: Tensor, columns: Tensor) -> Tensor | None:
        """Return what is added to the scores of a token for those before it, or None.

        Args:
            index: int32 scalar, the position of the token.
            columns: int32 `[length]`, the positions of all tokens.
        """
        return None

    def _residual(self, hidden, layers, norm):
        if self.norm_first:
            return hidden + layers(norm(hidden))
        return norm(hidden + layers(hidden))


class Attention(abc.ABC):
    """The projections of an attention layer."""

    @abc.abstractmethod
    def project(self, name: str, hidden: Tensor) -> Tensor:
        """Return the projection "query", "key" or "value", `[rows, heads, tokens, head_dim]`."""

    @abc.abstractmethod
    def output(self, mixed: Tensor) -> Tensor:
        """Return the output of heads side by side, `[rows, tokens, heads, head_dim]`."""

    #: What queries are multiplied by.
    scale: float

    def keys_and_values(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return both, each `[rows, heads, tokens, head_dim]`."""
        return self.project("key", hidden), self.project("value", hidden)

    def attend(
        self,
        hidden: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Return what tokens get of others, where `mask` is true."""
        queries = self.project("query", hidden) * self.scale
        scores = tf.matmul(queries, keys, transpose_b=True)
        if bias is not None:
            scores += tf.cast(bias, scores.dtype)
        scores = tf.where(mask, scores, tf.cast(_MASKED, scores.dtype))
        mixed = tf.matmul(tf.nn.softmax(scores), values)
        return self.output(tf.transpose(mixed, [0, 2, 1, 3]))


def decoder_of(model: Model) -> Decoder:
    """Return the decoder of a sequence-to-sequence model.

    Args:
        model: a `keras_hub.models.BartSeq2SeqLM` or `transformers.TFBartForConditionalGeneration`,
            as `ke.models.create` makes them, or a `transformers.TFT5ForConditionalGeneration`.

    Returns:
        A `Decoder`.

    Raises:
        InputError: it is another model.

    Examples:
        >>> from tokenizers import BertWordPieceTokenizer
        >>> tokens = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "a": 4}
        >>> words = BertWordPieceTokenizer(tokens)
        >>> model, tokenizer = ke.models.create(words, task="seq2seq", hidden_dim=32)
        >>> decoder = ke.generation.decoder_of(model)
        >>> state = decoder.start(tf.constant([[2, 4, 3]]), tf.constant([[1, 1, 1]]), 8)
        >>> logits, state = decoder.step(tf.constant([2]), tf.constant(0), state)
        >>> logits.shape
        TensorShape([1, 5])

    Reference:
        `keras_hub.models.BartSeq2SeqLM.call_decoder_with_cache`.
    """
    from keras_efficient.generation._hugging_face_bart import HuggingFaceBart
    from keras_efficient.generation._hugging_face_t5 import HuggingFaceT5
    from keras_efficient.generation._keras_hub_bart import KerasHubBart

    known = {
        "BartSeq2SeqLM": KerasHubBart,
        "TFBartForConditionalGeneration": HuggingFaceBart,
        "TFT5ForConditionalGeneration": HuggingFaceT5,
    }
    for cls in type(model).__mro__:
        if cls.__name__ in known:
            return known[cls.__name__](model)
    raise InputError(
        "Generation knows the decoders of keras_hub.models.BartSeq2SeqLM, and of "
        "TFBartForConditionalGeneration and TFT5ForConditionalGeneration of transformers. "
        f"Received: {type(model).__name__}. Write a `step` of your own, and call "
        "ke.generation.generate."
    )
