"""`Detokenizer`: token ids back to texts, in TensorFlow operations."""

import json
from typing import Any

import tensorflow as tf

from keras_efficient._errors import InputError
from keras_efficient.data._tokenizer import Tokenizer
from keras_efficient.flavor._typing import Tensor


class Detokenizer:
    """Make texts of token ids; special tokens and padding are left out.

    The pieces of words are joined, and words are separated by spaces as the tokenizer marks them:
    WordPiece by "##", word tokenizers for each token, byte-level BPE by bytes, and SentencePiece by
    "▁". White space that a tokenizer drops is not restored: BERT's gives "do n ' t". The same
    function is used in memory and in exported graphs.

    Args:
        tokenizer: `data.Tokenizer` whose backend is a `tokenizers.Tokenizer`.

    Raises:
        InputError: the tokenizer is of another kind.

    Examples:
        >>> tokenizer = ke.data.Tokenizer.from_directory(
        ...     "models/all-MiniLM-L6-v2", inputs=ke.data.KERASHUB
        ... )
        >>> detokenize = ke.data.Detokenizer(tokenizer)
        >>> detokenize(tokenizer.encode(["a good film"])[0][None]).numpy().tolist()
        [b'a good film']

    Reference:
        `tokenizers.decoders`, https://huggingface.co/docs/tokenizers/api/decoders.
    """

    def __init__(self, tokenizer: Tokenizer):
        if tokenizer.serialized is None or tokenizer.largest_id is None:
            raise InputError(
                f"Texts are made of the tokens of a tokenizers.Tokenizer. Received: {tokenizer!r}, "
                "whose backend is a function. Give a tokenizer with a vocabulary."
            )
        settings = json.loads(tokenizer.serialized)
        text_of = _rule(settings, tokenizer)
        special = {token["id"] for token in settings.get("added_tokens") or () if token["special"]}
        # Of a token that has no name nothing is left.
        pieces = [b""] * (tokenizer.largest_id + 1)
        backend: Any = tokenizer.backend
        for token, number in backend.get_vocab(with_added_tokens=True).items():
            if number not in special and number != tokenizer.pad_id:
                pieces[number] = text_of(token)
        self._pieces = pieces

    def __call__(self, ids: Tensor) -> Tensor:
        """Return string `[batch]` for int32 ids `[batch, tokens]`."""
        with tf.device("CPU:0"):
            pieces = tf.gather(tf.constant(self._pieces), ids)
            return tf.strings.strip(tf.strings.reduce_join(pieces, axis=-1))


def _rule(settings, tokenizer):
    """Return the function from a token to its bytes in the text."""
    model, decoder = settings["model"], settings.get("decoder") or {}
    kinds = {decoder.get("type")} | {part.get("type") for part in decoder.get("decoders") or ()}
    if model["type"] == "WordPiece":
        prefix = model["continuing_subword_prefix"]
        return lambda token: (
            token.removeprefix(prefix) if token.startswith(prefix) else f" {token}"
        ).encode()
    if model["type"] == "WordLevel":
        return lambda token: f" {token}".encode()
    if "ByteLevel" in kinds:
        numbers = _byte_characters()
        return lambda token: bytes(numbers[character] for character in token)
    if "Metaspace" in kinds:
        return lambda token: token.replace("▁", " ").encode()
    raise InputError(
        "Texts are made of the tokens of WordPiece, WordLevel, byte-level BPE and SentencePiece. "
        f"Received: {tokenizer!r} with the model {model['type']!r} and the decoder "
        f"{decoder.get('type')!r}. Decode the ids with the tokenizer itself."
    )


def _byte_characters() -> dict[str, int]:
    """Return the byte that each character of byte-level BPE stands for."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    characters = {chr(byte): byte for byte in plain}
    return characters | {chr(256 + i): byte for i, byte in enumerate(others)}
