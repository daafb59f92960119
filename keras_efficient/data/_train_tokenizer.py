"""`train_tokenizer`: a vocabulary from the texts that a model is trained on from scratch."""

from collections.abc import Iterable, Mapping
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from keras_efficient._errors import InputError
from keras_efficient.data._records import Records
from keras_efficient.data._tokenizer import HUGGING_FACE, Tokenizer

#: The token that begins, ends and pads texts of byte-level BPE, as in GPT-2.
_END = "<|endoftext|>"
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def train_tokenizer(
    texts: Any,
    *,
    vocabulary_size: int = 8000,
    kind: str = "bpe",
    inputs: Mapping[str, str] = HUGGING_FACE,
    max_length: int = 512,
) -> Tokenizer:
    """Train a tokenizer on texts, for a model that is trained from scratch.

    Args:
        texts: `Records`, or strings: a list or another iterable.
        vocabulary_size: Largest number of tokens, special ones included. Default: 8000.
        kind: "bpe" for the byte-level byte-pair encoding of GPT-2, which encodes any text without
            loss; its only special token, <|endoftext|>, begins and ends texts. "wordpiece" for
            that of BERT, lower-cased, which exports can run in the graph; texts begin with [CLS]
            and end with [SEP]. Default: "bpe".
        inputs: Names of the model's inputs. Default: those of Hugging Face.
        max_length: Longest text the model accepts, in tokens. Default: 512.

    Returns:
        The tokenizer.

    Raises:
        InputError: There are no texts, `kind` is another one, or the vocabulary is too small for
            single bytes or characters.

    Examples:
        >>> tokenizer = ke.data.train_tokenizer(["a fine film", "a film"], vocabulary_size=300)
        >>> ids = tokenizer.encode_without_special(["A fine film!"])
        >>> tokenizer.decode(ids)
        ['A fine film!']

    Reference:
        Sennrich, Haddow & Birch 2016, "Neural Machine Translation of Rare Words with Subword
        Units"; https://huggingface.co/docs/tokenizers.
    """
    found: Iterable[str] = texts.texts if isinstance(texts, Records) else texts
    found = [found] if isinstance(found, str) else list(found)
    if not found:
        raise InputError(
            "A tokenizer is trained on texts. Received: none. Check what selected them."
        )
    least = 257 if kind == "bpe" else len(_SPECIAL) + 1
    if type(vocabulary_size) is not int or vocabulary_size < least:
        raise InputError(
            f"`vocabulary_size` must be an int of {least} or more. Received: "
            f"{vocabulary_size!r}. Give for example 8000."
        )
    trainer: Any
    if kind == "bpe":
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary_size,
            special_tokens=[_END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(found, trainer)
        start = end = _END
    elif kind == "wordpiece":
        backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        backend.normalizer = normalizers.BertNormalizer(lowercase=True)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocabulary_size, special_tokens=list(_SPECIAL), show_progress=False
        )
        backend.train_from_iterator(found, trainer)
        start, end = "[CLS]", "[SEP]"
    else:
        raise InputError(
            f"`kind` must be 'bpe' or 'wordpiece'. Received: {kind!r:.60}. Choose one."
        )
    numbers = {token: backend.token_to_id(token) for token in (start, end)}
    backend.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        pair=f"{start} $A {end} $B:1 {end}:1",
        special_tokens=list(numbers.items()),
    )
    pad_id = backend.token_to_id("[PAD]") or 0
    return Tokenizer(backend, inputs=inputs, pad_id=pad_id, max_length=max_length)
