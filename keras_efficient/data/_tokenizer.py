"""One interface to the tokenizers of Hugging Face, KerasHub and users."""

import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers.implementations import BaseTokenizer

from keras_efficient._errors import InputError
from keras_efficient.data._read_json import MAX_JSON_BYTES, check_file, read_json
from keras_efficient.data._tokenizer_limits import check_tokenizer, special_ids

#: What the inputs of a model may contain.
CONTENTS = ("ids", "mask", "segments", "mask_positions", "target_ids", "target_mask")
#: Input names of KerasHub's backbones, by content.
KERASHUB = {"ids": "token_ids", "mask": "padding_mask", "segments": "segment_ids"}
#: Input names of Hugging Face models, by content.
HUGGING_FACE = {"ids": "input_ids", "mask": "attention_mask", "segments": "token_type_ids"}
#: Further input of models for masked language modelling, of both libraries.
MASK_POSITIONS = {"mask_positions": "mask_positions"}

#: How mask tokens are called in vocabularies.
MASK_TOKENS = ("[MASK]", "<mask>")
#: How tokens are called that begin and end a text, the most specific ones first.
_START_TOKENS = ("<|startoftext|>", "<|begin_of_text|>", "<bos>", "<s>", "<|endoftext|>", "[CLS]")
_END_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "<eos>", "</s>", "[SEP]")

# Limits the memory of the encodings, about 1 kB per token.
_CHUNK = 4096
# Hugging Face writes 1e30 if there is no limit.
_NO_LIMIT = 1_000_000


class Tokenizer:
    """A tokenizer together with the names of the model's inputs.

    Args:
        backend: A `tokenizers.Tokenizer`, which is copied and not changed, an object with a method
            `encode_batch(texts, max_length)`, or a function of `texts` and `max_length`. The
            latter two return one sequence of ints per text, with special tokens, truncated to
            `max_length` tokens and without padding.
        inputs: Names of the model's inputs by content: "ids" and, if the model has them, "mask",
            "segments", "mask_positions", the positions of mask tokens, and "target_ids" and
            "target_mask" of a decoder. See `KERASHUB`, `HUGGING_FACE` and `MASK_POSITIONS`.
        pad_id: Id of the padding token. Default: 0.
        max_length: Longest text the model accepts, in tokens. Default: 512.
        decoder_start_id: Id of the token that a decoder reads first, before those of a target.
            Default: None, the token that the backend puts before each text.

    Raises:
        InputError: An argument is invalid.
        TypeError: The backend is none of the three kinds.

    Examples:
        >>> def encode(texts, max_length):
        ...     return [list(map(len, text.split()))[:max_length] for text in texts]
        >>> tokenizer = ke.data.Tokenizer(encode, inputs=ke.data.KERASHUB)
        >>> tokenizer.encode(["A good film."])[0].tolist()
        [1, 4, 5]

    Reference:
        `tokenizers.Tokenizer`, https://huggingface.co/docs/tokenizers.
    """

    def __init__(
        self,
        backend: Any,
        *,
        inputs: Mapping[str, str],
        pad_id: int = 0,
        max_length: int = 512,
        decoder_start_id: int | None = None,
    ):
        names = list(inputs.values()) if isinstance(inputs, Mapping) else []
        if (
            "ids" not in (inputs if names else ())
            or not set(inputs) <= set(CONTENTS)
            or not all(isinstance(name, str) and name for name in names)
            or len(set(names)) != len(names)
        ):
            raise InputError(
                f'`inputs` must map "ids" and, if the model has them, others of {CONTENTS[1:]} to '
                f"different input names. Received: {inputs!r}. Pass KERASHUB or HUGGING_FACE, or "
                "look at `model.input_names`."
            )
        if not _is_int(pad_id) or pad_id < 0:
            raise InputError(
                f"`pad_id` must be a token id. Received: {pad_id!r}. Give the tokenizer's, often 0."
            )
        if decoder_start_id is not None and (not _is_int(decoder_start_id) or decoder_start_id < 0):
            raise InputError(
                f"`decoder_start_id` must be a token id. Received: {decoder_start_id!r}. Give that "
                "of the model's configuration, or None."
            )
        if not _is_int(max_length) or max_length < 3:
            raise InputError(
                f"`max_length` must be an integer of 3 tokens or more. Received: {max_length!r}. "
                "Give the model's number of positions, for example 512."
            )
        self.inputs = dict(inputs)
        self.pad_id = int(pad_id)
        self.max_length = int(max_length)
        self.decoder_start_id = None if decoder_start_id is None else int(decoder_start_id)
        self.backend = backend
        self._copies: dict[int, tokenizers.Tokenizer] = {}
        if isinstance(backend, tokenizers.Tokenizer | BaseTokenizer):
            self._serialized = _serialized(backend)
            self._function = None
        elif callable(getattr(backend, "encode_batch", None)):
            self._function = backend.encode_batch
        elif callable(backend):
            self._function = backend
        else:
            raise TypeError(
                "`backend` must be a tokenizers.Tokenizer, have `encode_batch(texts, max_length)`, "
                f"or be a function of both. Received: {backend!r} of type "
                f"{type(backend).__name__}. For a Hugging Face tokenizer call `as_tokenizer`."
            )

    def __repr__(self) -> str:
        return (
            f"Tokenizer({type(self.backend).__name__}, inputs={self.inputs}, "
            f"pad_id={self.pad_id}, max_length={self.max_length})"
        )

    @property
    def serialized(self) -> str | None:
        """Return the JSON of the `tokenizers.Tokenizer`, or None if the backend is another kind."""
        return self._serialized if self._function is None else None

    @property
    def special_tokens(self) -> list[str]:
        """Return the special tokens as they stand in texts; none if the backend is a function."""
        if self._function is not None:
            return []
        added = json.loads(self._serialized).get("added_tokens") or ()
        return [token["content"] for token in added if token.get("special")]

    @property
    def vocabulary(self) -> list[str]:
        """Return the tokens by their ids, "" for ids without one; none if it is a function."""
        if self._function is not None:
            return []
        tokens = self.backend.get_vocab(with_added_tokens=True)
        found = [""] * (max(tokens.values()) + 1)
        for token, number in tokens.items():
            found[number] = token
        return found

    @property
    def mask_id(self) -> int | None:
        """Return the id of the mask token, [MASK] or <mask>, or None if there is none."""
        return self._first_id(MASK_TOKENS)

    @property
    def start_id(self) -> int | None:
        """Return the id of the token that begins a text, such as <s>, or None."""
        return self._first_id(_START_TOKENS)

    @property
    def end_id(self) -> int | None:
        """Return the id of the token that ends a text, such as </s>, or None."""
        return self._first_id(_END_TOKENS)

    def _first_id(self, tokens):
        if self._function is not None:
            return None
        found = [self.backend.token_to_id(token) for token in tokens]
        return next((number for number in found if number is not None), None)

    @property
    def separator(self) -> int:
        """Return the id of the special token after the first text of a pair, as [SEP] in BERT.

        Raises:
            InputError: The backend is a function, or joins two texts in another way.
        """
        if self._function is None:
            encoding = _batch(self._copy(_NO_LIMIT), [("a", "a")], offsets=True)[0]
            texts = encoding.sequence_ids
            if texts and texts[0] is None and 0 in texts and 1 in texts:
                after = len(texts) - texts[::-1].index(0)
                if after < texts.index(1):
                    return encoding.ids[after]
        raise InputError(
            "Questions and contexts need a tokenizers.Tokenizer that joins them as in [CLS] "
            f"question [SEP] context [SEP]. Received: {self!r}. Load a model of this kind, such as "
            "BERT, RoBERTa or DistilBERT, from a folder with tokenizer.json."
        )

    @classmethod
    def from_directory(
        cls,
        path: str | os.PathLike,
        *,
        inputs: Mapping[str, str],
        max_length: int | None = None,
        decoder_start_id: int | None = None,
    ) -> "Tokenizer":
        """Load the tokenizer of a model folder from tokenizer.json or a WordPiece vocab.txt.

        Args:
            path: The folder. Its tokenizer_config.json, if there is one, specifies the casing for
                vocab.txt, the padding token and the longest text of the model.
            inputs: Names of the model's inputs, as above.
            max_length: Longest text in tokens. Default: None, the folder's `model_max_length` or
                else 512.
            decoder_start_id: As above. Default: None.

        Returns:
            The tokenizer.

        Raises:
            InputError: The folder has neither file, or a file cannot be read.

        Examples:
            >>> folder = "models/all-MiniLM-L6-v2"
            >>> tokenizer = ke.data.Tokenizer.from_directory(folder, inputs=ke.data.KERASHUB)
        """
        path = pathlib.Path(path)
        config = _config(path / "tokenizer_config.json")
        padding = _pad_token(config, path)
        full, vocabulary = path / "tokenizer.json", path / "vocab.txt"
        file = full if full.is_file() else vocabulary
        if not file.is_file():
            raise InputError(
                "A model folder must hold tokenizer.json or vocab.txt. Received: "
                f"{path}, which has neither. Point to the folder that the model was saved in."
            )
        check_file(file, "the tokenizer", MAX_JSON_BYTES)
        try:
            if file == full:
                backend = tokenizers.Tokenizer.from_file(str(full))
            else:
                backend = tokenizers.BertWordPieceTokenizer(
                    str(vocabulary),
                    lowercase=bool(config.get("do_lower_case", True)),
                    strip_accents=config.get("strip_accents"),
                    handle_chinese_chars=bool(config.get("tokenize_chinese_chars", True)),
                )
        except BaseException as error:
            if not _is_of_tokenizers(error):
                raise
            raise InputError(
                f"The tokenizer's file must be readable. Received: {file} "
                f"({type(error).__name__}: {error}). Copy it again from the model's source."
            ) from error
        if max_length is None:
            max_length = _limit(config.get("model_max_length"))
        pad_id = _pad_id(backend, padding)
        tokenizer = cls(
            backend,
            inputs=inputs,
            pad_id=pad_id,
            max_length=max_length,
            decoder_start_id=decoder_start_id,
        )
        # As the library understood the file, not as it is written.
        check_tokenizer(json.loads(tokenizer._serialized), str(file))
        return tokenizer

    @property
    def largest_id(self) -> int | None:
        """Return the largest id of any token, or None if the backend is a function or object."""
        if self._function is not None:
            return None
        settings = json.loads(self._serialized)
        ids = self.backend.get_vocab(with_added_tokens=True).values()
        return max([*ids, *special_ids(settings), self.pad_id])

    @property
    def ends(self) -> tuple[int, int]:
        """Return the ids of the tokens that begin and end every text, such as [CLS] and [SEP].

        Raises:
            InputError: The tokenizer does not put one token before and another one after a text.
        """
        found = self._around()
        if len(found) != 2 or found[0] == found[1]:
            raise InputError(
                "To generate text the tokenizer must put a token before and another one after each "
                f"text. Received: {self!r}, which encodes an empty text as {found}. Give the "
                "backend a post-processor, such as tokenizers.processors.BertProcessing."
            )
        return found[0], found[1]

    @property
    def target_ends(self) -> tuple[int, int]:
        """Return the ids of the tokens that a decoder reads first, and that end a target.

        Raises:
            InputError: The tokenizer puts no token after a text, or there is none to begin with.
        """
        if self.decoder_start_id is None:
            return self.ends
        found = self._around()
        if not found:
            raise InputError(
                "To generate text the tokenizer must put a token after each text. Received: "
                f"{self!r}, which puts none. Give the backend a post-processor, such as "
                "tokenizers.processors.TemplateProcessing."
            )
        return self.decoder_start_id, found[-1]

    def _around(self):
        """Return the ids of the tokens around each text; none if the backend is a function."""
        return [] if self._function is not None else self.encode([""])[0].tolist()

    def encode_targets(
        self, texts: Sequence[str], max_length: int | None = None
    ) -> tuple[list[np.ndarray], int, int | None]:
        """Encode targets of a decoder, which begin with the token that it reads first.

        Args:
            texts: The targets.
            max_length: As for `encode`. Default: None.

        Returns:
            What `encode_and_count` returns.

        Raises:
            InputError: As `encode`, or `target_ends`.
        """
        first = self.target_ends[0]
        ids, cut, longest = self.encode_and_count(texts, max_length)
        if len(ids) and ids[0][0] != first:
            begin = np.array([first], np.int32)
            ids = [np.concatenate([begin, row]) for row in ids]
        return ids, cut, longest

    def encode(self, texts: Sequence[str], max_length: int | None = None) -> list[np.ndarray]:
        """Encode texts as token ids with special tokens, truncated and without padding.

        Args:
            texts: The texts.
            max_length: Maximum number of tokens per text; truncation keeps the closing special
                token. Default: None, the tokenizer's own `max_length`.

        Returns:
            One int32 array of shape `[tokens]` per text.

        Raises:
            InputError: `texts` is a single string, `max_length` is out of range, or the backend
                did not return one sequence of ints per text.
        """
        return self.encode_and_count(texts, max_length)[0]

    def encode_and_count(
        self, texts: Sequence[str], max_length: int | None = None
    ) -> tuple[list[np.ndarray], int, int | None]:
        """Encode texts as `encode` does, and count what had to be truncated.

        Returns:
            The ids; the number of truncated texts; and the number of tokens that the longest text
            has without truncation, None if a function truncated texts, which does not tell.
        """
        if isinstance(texts, str):
            raise InputError(
                f"`texts` must be a list of strings. Received one string: {texts[:60]!r}. Put it "
                "in a list."
            )
        max_length = self.check_length(self.max_length if max_length is None else max_length)
        texts = list(texts)
        ids, cut, longest = [], 0, 0
        encode = self._chunk_by_copy if self._function is None else self._chunk_by_function
        for start in range(0, len(texts), _CHUNK):
            more, lengths = encode(texts[start : start + _CHUNK], max_length)
            ids += more
            cut += len(lengths)
            longest = max([longest, *map(len, more), *lengths])
        return ids, cut, None if cut and self._function is not None else longest

    def encode_pairs(
        self, texts: Sequence[str], second_texts: Sequence[str], max_length: int | None = None
    ) -> tuple[list[np.ndarray], list[np.ndarray], int, int]:
        """Encode pairs of texts, joined by the tokenizer's special tokens.

        What is too long is truncated as the tokenizer does it: from the longer text first.

        Args:
            texts: The first text of each pair.
            second_texts: The second text of each pair.
            max_length: Maximum number of tokens per pair, special tokens included. Default: None,
                the tokenizer's own `max_length`.

        Returns:
            One int32 array of ids per pair; one of segments, 0 for the tokens of the first text
            and 1 for those of the second, if the tokenizer tells them apart; the number of
            truncated pairs; and the number of tokens of the longest pair without truncation.

        Raises:
            InputError: The backend is a function, or `max_length` is out of range.
        """
        max_length = self.check_length(self.max_length if max_length is None else max_length)
        if self._function is not None:
            raise InputError(
                "Pairs of texts need a tokenizers.Tokenizer, which knows how to join them. "
                f"Received: {self!r}. Load the model from a folder with tokenizer.json, or join "
                "the texts in one column."
            )
        ids: list[np.ndarray] = []
        segments: list[np.ndarray] = []
        cut, longest = 0, 0
        pairs = list(zip(texts, second_texts, strict=True))
        for start in range(0, len(pairs), _CHUNK):
            chunk = pairs[start : start + _CHUNK]
            encodings = _batch(self._copy(max_length), chunk)
            ids += [np.array(encoding.ids, np.int32) for encoding in encodings]
            segments += [np.array(encoding.type_ids, np.int32) for encoding in encodings]
            longer = [p for p, e in zip(chunk, encodings, strict=True) if e.overflowing]
            whole = _batch(self._copy(_NO_LIMIT), longer) if longer else encodings
            cut += len(longer)
            longest = max([longest, *(len(encoding.ids) for encoding in whole)])
        return ids, segments, cut, longest

    def encode_words(
        self, texts: Sequence[str], max_length: int | None = None
    ) -> tuple[list[np.ndarray], list[np.ndarray], int, int]:
        """Encode texts as `encode` does, and tell of which characters each token consists.

        Args:
            texts: The texts.
            max_length: As for `encode`. Default: None, the tokenizer's own `max_length`.

        Returns:
            One int32 array of ids per text; one int32 array `[tokens, 3]` per text with the first
            character of each token, the character after its last one, and the number of its word,
            0, 0 and -1 for special tokens; the number of truncated texts; and the number of tokens
            of the longest text without truncation.

        Raises:
            InputError: The backend is a function, or `max_length` is out of range.
        """
        max_length = self.check_length(self.max_length if max_length is None else max_length)
        if self._function is not None:
            raise InputError(
                "Labels of words need a tokenizers.Tokenizer, which knows of which characters a "
                f"token consists. Received: {self!r}. Load the model from a folder with "
                "tokenizer.json."
            )
        ids: list[np.ndarray] = []
        spans: list[np.ndarray] = []
        cut, longest = 0, 0
        texts, copy = list(texts), self._copy(max_length)
        special = copy.num_special_tokens_to_add(False)
        for start in range(0, len(texts), _CHUNK):
            for encoding in _batch(copy, texts[start : start + _CHUNK], offsets=True):
                ids.append(np.array(encoding.ids, np.int32))
                words = [-1 if word is None else word for word in encoding.word_ids]
                spans.append(np.column_stack([encoding.offsets, words]).astype(np.int32))
                cut += bool(encoding.overflowing)
                longest = max(longest, _whole_length(encoding, special))
        return ids, spans, cut, longest

    def encode_without_special(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encode texts without special tokens and without truncation.

        Raises:
            InputError: The backend is a function.
        """
        if self._function is not None:
            raise InputError(
                "Special tokens can be left out by a tokenizers.Tokenizer. Received: "
                f"{self!r}. Load the model from a folder with tokenizer.json."
            )
        copy: Any = tokenizers.Tokenizer.from_str(self._serialized)
        copy.no_truncation()
        copy.no_padding()
        ids: list[np.ndarray] = []
        texts = list(texts)
        for start in range(0, len(texts), _CHUNK):
            found = _batch(copy, texts[start : start + _CHUNK], special=False)
            ids += [np.array(encoding.ids, np.int32) for encoding in found]
        return ids

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Return the texts of token ids, without special tokens.

        Raises:
            InputError: The backend is a function.
        """
        if self._function is not None:
            raise InputError(
                "Tokens can be read by a tokenizers.Tokenizer. Received: "
                f"{self!r}. Load the model from a folder with tokenizer.json."
            )
        rows = [np.asarray(row).tolist() for row in ids]
        return self.backend.decode_batch(rows, skip_special_tokens=True)

    def encode_contexts(
        self, questions: Sequence[str], contexts: Sequence[str]
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """Encode questions with their contexts, without truncation.

        Args:
            questions: The first text of each pair.
            contexts: The second text of each pair.

        Yields:
            For each pair its ids, int32 `[tokens]`; its segments, as `encode_pairs` returns them;
            int32 `[tokens, 4]`: the first character of a token's word in the context, the character
            after its last one, and the same of the token itself, all 0 outside of the context; and
            0 for the tokens of the question, 1 for those of the context and -1 for special ones,
            int32 `[tokens]`.

        Raises:
            InputError: The backend is a function, or joins two texts in another way.
        """
        # Raises the error for other tokenizers.
        assert self.separator >= 0
        copy, pairs = self._copy(_NO_LIMIT), list(zip(questions, contexts, strict=True))
        for start in range(0, len(pairs), _CHUNK):
            for encoding in _batch(copy, pairs[start : start + _CHUNK], offsets=True):
                parts = [-1 if part is None else part for part in encoding.sequence_ids]
                parts = np.array(parts, np.int32)
                spans = np.array(encoding.offsets, np.int32).reshape(-1, 2)
                words = np.array([-1 if w is None else w for w in encoding.word_ids])
                here = parts == 1
                found = np.zeros((len(parts), 4), np.int32)
                found[here] = np.column_stack([_of_words(words[here], spans[here]), spans[here]])
                ids, segments = (np.array(x, np.int32) for x in (encoding.ids, encoding.type_ids))
                yield ids, segments, found, parts

    def check_length(self, max_length: int) -> int:
        """Require a `max_length` that the model accepts; returns it as an int."""
        if not _is_int(max_length) or not 3 <= max_length <= self.max_length:
            raise InputError(
                f"`max_length` must be an integer from 3 to the tokenizer's {self.max_length} "
                f"tokens. Received: {max_length!r}. Choose one in this range."
            )
        return int(max_length)

    def _chunk_by_copy(self, texts, max_length):
        encodings = _batch(self._copy(max_length), texts)
        ids = [np.array(encoding.ids, np.int32) for encoding in encodings]
        special = self._copy(max_length).num_special_tokens_to_add(False)
        lengths = [_whole_length(e, special) for e in encodings if e.overflowing]
        return ids, lengths

    def _copy(self, max_length):
        # Truncation is a setting of the tokenizer; one copy per length is thread-safe.
        if max_length not in self._copies:
            copy: Any = tokenizers.Tokenizer.from_str(self._serialized)
            direction = (copy.truncation or {}).get("direction", "right")
            copy.enable_truncation(max_length, direction=direction)
            copy.no_padding()
            self._copies[max_length] = copy
        return self._copies[max_length]

    def _chunk_by_function(self, texts, max_length):
        ids = self._call(texts, max_length)
        # A function does not report truncation: encode texts of full length with one token more.
        full = [text for text, row in zip(texts, ids, strict=True) if len(row) == max_length]
        longer = self._call(full, max_length + 1) if full else []
        return ids, [len(row) for row in longer if len(row) > max_length]

    def _call(self, texts, max_length):
        function: Any = self._function
        rows = [np.asarray(row) for row in function(texts, max_length)]
        if len(rows) != len(texts):
            raise InputError(
                "A tokenizer's function must return one sequence per text. Received: "
                f"{len(rows)} for {len(texts)} texts. Return a list of int sequences."
            )
        for row in rows:
            if row.ndim != 1 or (row.size and row.dtype.kind not in "iu") or row.size > max_length:
                raise InputError(
                    "A tokenizer's function must return int sequences of at most "
                    f"max_length={max_length} tokens. Received: shape {row.shape}, {row.dtype}. "
                    "Truncate inside it, and return ids."
                )
        return [row.astype(np.int32) for row in rows]


def as_tokenizer(obj: Any, *, inputs: Mapping[str, str] | None = None) -> Tokenizer:
    """Convert a tokenizer of another library to a `Tokenizer`.

    Args:
        obj: A `Tokenizer`, a Hugging Face fast tokenizer or a `tokenizers.Tokenizer`.
        inputs: Names of the model's inputs. Default: None, those of a `Tokenizer`, otherwise
            those of Hugging Face that the fast tokenizer's model accepts.

    Returns:
        The tokenizer; `obj` itself if it is a `Tokenizer` and `inputs` is None.

    Raises:
        TypeError: `obj` is none of these.

    Examples:
        >>> import tokenizers
        >>> fast = tokenizers.Tokenizer.from_file("models/all-MiniLM-L6-v2/tokenizer.json")
        >>> ke.data.as_tokenizer(fast).inputs["ids"]
        'input_ids'

    Reference:
        `transformers.PreTrainedTokenizerFast` and `tokenizers.Tokenizer`.
    """
    if isinstance(obj, Tokenizer):
        if inputs is None:
            return obj
        return Tokenizer(
            obj.backend,
            inputs=inputs,
            pad_id=obj.pad_id,
            max_length=obj.max_length,
            decoder_start_id=obj.decoder_start_id,
        )
    if isinstance(obj, tokenizers.Tokenizer | BaseTokenizer):
        return Tokenizer(obj, inputs=inputs or HUGGING_FACE, pad_id=_pad_id(obj, None))
    backend = getattr(obj, "backend_tokenizer", None)
    if isinstance(backend, tokenizers.Tokenizer):
        taken = getattr(obj, "model_input_names", None) or HUGGING_FACE.values()
        names = {key: name for key, name in HUGGING_FACE.items() if name in taken}
        return Tokenizer(
            backend,
            inputs=inputs or names,
            pad_id=obj.pad_token_id or 0,
            max_length=_limit(obj.model_max_length),
        )
    raise TypeError(
        "`tokenizer` must be a keras_efficient.data.Tokenizer, a fast Hugging Face tokenizer or a "
        f"tokenizers.Tokenizer. Received: {obj!r:.80} of type {type(obj).__name__}. Load slow "
        "Hugging Face tokenizers with use_fast=True; wrap others: Tokenizer(function, inputs=...)."
    )


def _is_int(value) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _serialized(backend) -> str:
    try:
        return backend.to_str()
    except Exception as error:  # `tokenizers` raises Exception itself.
        raise InputError(
            f"A tokenizers.Tokenizer must be one that can be saved. Received: one that cannot "
            f"({error}). Wrap it in a function: Tokenizer(lambda texts, max_length: ...)."
        ) from error


def _whole_length(encoding, special):
    """Return the number of tokens of a text without truncation."""
    # What was cut off stands in further encodings, each with special tokens of its own.
    return len(encoding.ids) + sum(len(rest.ids) - special for rest in encoding.overflowing)


def _of_words(words, spans):
    """Return the first and the last character of the word of each token, int32 `[tokens, 2]`."""
    begins = np.flatnonzero(np.diff(words, prepend=-2))
    if not begins.size:
        return spans
    sizes = np.diff(begins, append=len(words))
    starts = np.minimum.reduceat(spans[:, 0], begins)
    ends = np.maximum.reduceat(spans[:, 1], begins)
    return np.column_stack([np.repeat(starts, sizes), np.repeat(ends, sizes)])


def _batch(backend, texts, offsets=False, special=True):
    encode: Callable = backend.encode_batch
    if not offsets:
        # This method omits character offsets; older versions of `tokenizers` do not have it.
        encode = getattr(backend, "encode_batch_fast", encode)
    try:
        return encode(texts, add_special_tokens=special)
    except BaseException as error:
        if not _is_of_tokenizers(error):
            raise
        raise InputError(
            "A tokenizer must be able to encode any text. Received: one that cannot encode these "
            f"{len(texts)} ({type(error).__name__}: {str(error)[:200]}). Correct its regular "
            "expressions and its unknown token, or use another tokenizer."
        ) from error


def _is_of_tokenizers(error: BaseException) -> bool:
    # `tokenizers` raises Exception itself. A panic of its Rust code, as of a regular expression
    # that explodes, derives from BaseException only.
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _config(file: pathlib.Path) -> dict:
    return read_json(file, "the tokenizer's configuration") if file.exists() else {}


def _pad_token(config: dict, path: pathlib.Path) -> str | None:
    """Return the padding token of a tokenizer_config.json, whose values are checked."""
    token, limit = config.get("pad_token"), config.get("model_max_length")
    if isinstance(token, dict):
        token = token.get("content")
    if not isinstance(token, str | None):
        problem = f"`pad_token` {token!r:.60}, which is no string"
    elif limit is not None and (isinstance(limit, bool) or not isinstance(limit, int | float)):
        problem = f"`model_max_length` {limit!r:.60}, which is no number"
    elif limit is not None and not limit >= 3:
        problem = f"`model_max_length` {limit!r:.60}, which is less than 3"
    else:
        return token
    raise InputError(
        f"The tokenizer's configuration must fit a tokenizer. Received: {path}/"
        f"tokenizer_config.json with {problem}. Copy it again from the model's source."
    )


def _limit(model_max_length) -> int:
    if model_max_length is None or model_max_length > _NO_LIMIT:
        return 512
    return int(model_max_length)


def _pad_id(backend, pad_token) -> int:
    for token in (pad_token, "[PAD]", "<pad>"):
        found = backend.token_to_id(token) if token else None
        if found is not None:
            return found
    return 0  # Models without a padding token, such as GPT-2, may use any id under the mask.
