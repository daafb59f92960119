"""The words that can replace others, and those whose embeddings are nearest to each."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import tokenizers

from keras_efficient import flavor as flavors
from keras_efficient._errors import InputError
from keras_efficient.architecture._embeddings import embeddings as embeddings_of
from keras_efficient.data._tokenizer import Tokenizer

_CHUNK = 4096
#: Rows of a block of similarities: 512 times 40,000 words take 80 MB.
_ROWS = 512


class CandidateWords:
    """The words of some texts and those that are a token of their own, each of them once.

    Words with the same tokens, such as "Film" and "film" for a tokenizer that ignores case, are
    one.

    Args:
        tokenizer: a `Tokenizer`.
        words: the words of the texts, repeated as often as they occur.

    Attributes:
        words: list of the candidates.
        place_of_token: int array `[vocabulary]`: the place in `words` of a token that is a word by
            itself, else -1.
        rows: int array, one per argument: which row of `nearest` is about this word; -1 for words
            that the tokenizer does not know.

    Raises:
        InputError: the tokenizer is a function, or one of another kind.
    """

    def __init__(self, tokenizer: Tokenizer, words: Sequence[str]):
        if tokenizer.serialized is None:
            raise InputError(
                "Words can be replaced if the tokenizer is a tokenizers.Tokenizer. Received: "
                f"{tokenizer!r}. Load the model from a folder with tokenizer.json, or pass "
                "replace=0."
            )
        backend = plain_backend(tokenizer)
        settings = json.loads(tokenizer.serialized)
        unknown = settings["model"].get("unk_token")
        unknown = None if unknown is None else backend.token_to_id(unknown)
        self.words: list[str] = []
        self._pieces: list[list[int]] = []
        places: dict[tuple[int, ...], int] = {}

        def add(word, pieces):
            places[tuple(pieces)] = len(self.words)
            self.words.append(word)
            self._pieces.append(pieces)

        size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        self.place_of_token = np.full(size, -1)
        tokens = backend.decode_batch([[i] for i in range(size)], skip_special_tokens=True)
        tokens = {i: token.strip() for i, token in enumerate(tokens)}
        tokens = {i: token for i, token in tokens.items() if token.isalpha()}
        encoded = _encoded(backend, list(tokens.values()))
        for (number, token), pieces in zip(tokens.items(), encoded, strict=True):
            # Others are parts of words, such as "##ing".
            if pieces == [number] and number != unknown:
                self.place_of_token[number] = len(self.words)
                add(token, pieces)
        distinct = list(dict.fromkeys(words))
        queries: dict[int, int] = {}
        row = {}
        for word, pieces in zip(distinct, _encoded(backend, distinct), strict=True):
            if not pieces or unknown in pieces:
                row[word] = -1
                continue
            if tuple(pieces) not in places:
                add(word, pieces)
            place = places[tuple(pieces)]
            row[word] = queries.setdefault(place, len(queries))
        self._queries = np.array(list(queries), int)
        self.rows = np.array([row[word] for word in words], int)

    def table(self, embeddings: Any, masked_lm: Any) -> np.ndarray | None:
        """Return the table of token embeddings, float32 `[vocabulary, width]`, or None.

        Args:
            embeddings: a model, a table, or None.
            masked_lm: the model whose table is taken without `embeddings`, or None.

        Raises:
            InputError: there is no such table in the model, or it has too few rows.
        """
        if embeddings is None and not hasattr(masked_lm, "weights"):
            return None
        source = masked_lm if embeddings is None else embeddings
        if hasattr(source, "weights"):
            flavors.of(source)
            found = embeddings_of(source).token
            if not found:
                if embeddings is None:
                    return None
                raise InputError(
                    "`embeddings` must be a built model with a table of token embeddings. "
                    f"Received: {type(source).__name__} {source.name!r}, without one that is "
                    "known. Pass the table as an array [vocabulary, width]."
                )
            source = max(found, key=lambda weight: weight.shape[0]).value.numpy()
        table = np.asarray(source, np.float32)
        least = 1 + max((max(pieces) for pieces in self._pieces), default=0)
        if table.ndim != 2 or len(table) < least:
            raise InputError(
                "The table of token embeddings must have the shape [vocabulary, width] and a row "
                f"for each token. Received: shape {list(table.shape)}, for a tokenizer with token "
                f"{least - 1}. Pass the model that the tokenizer belongs to."
            )
        return table

    def nearest(self, table: np.ndarray, number: int) -> np.ndarray:
        """Return the candidates nearest to each word of the texts, by the cosine.

        Words of one token have such words as neighbours, if there are enough: means of several
        embeddings are nearer to the common mean, and so to function words, than their meaning is.
        The mean of all candidates is subtracted first, because embeddings have a large common part.

        Args:
            table: float `[vocabulary, width]`.
            number: how many to return; fewer if there are fewer candidates.

        Returns:
            Int array `[words, number]` of places in `words`, in increasing order.

        Raises:
            InputError: there is only one candidate.
        """
        number = min(number, len(self.words) - 1)
        if number < 1:
            raise InputError(
                "Replacing words needs other words. Received: texts and a tokenizer with "
                f"{len(self.words)} words. Give more texts, or replace=0."
            )
        lengths = np.array([len(pieces) for pieces in self._pieces])
        flat = np.concatenate([np.array(pieces) for pieces in self._pieces])
        vectors = np.add.reduceat(table[flat], np.cumsum(lengths) - lengths) / lengths[:, None]
        single = lengths == 1
        if single.sum() <= number:
            single[:] = False
        found = np.empty((len(self._queries), number), int)
        for queries, pool in (
            (np.flatnonzero(single[self._queries]), np.flatnonzero(single)),
            (np.flatnonzero(~single[self._queries]), np.arange(len(vectors))),
        ):
            rows = np.searchsorted(pool, self._queries[queries])
            found[queries] = pool[_nearest(vectors[pool], rows, number)]
        return found


def _nearest(vectors, queries, number):
    """Return the indices of the vectors nearest to some of them, in increasing order."""
    found = np.empty((len(queries), number), int)
    if not len(queries):
        return found
    vectors = (vectors - vectors.mean(0)).astype(np.float32)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    for start in range(0, len(found), _ROWS):
        rows = queries[start : start + _ROWS]
        similar = vectors[rows] @ vectors.T
        similar[np.arange(len(rows)), rows] = -np.inf
        best = np.argpartition(similar, -number, axis=1)[:, -number:]
        # In an order that does not depend on the last bits of the similarities.
        found[start : start + _ROWS] = np.sort(best, axis=1)
    return found


def plain_backend(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """Return a copy of the backend that neither truncates nor pads."""
    backend: Any = tokenizers.Tokenizer.from_str(tokenizer.serialized or "")
    backend.no_truncation()
    backend.no_padding()
    return backend


def _encoded(backend, words):
    """Return the tokens of each word inside a text, where a space precedes it."""
    found = []
    for start in range(0, len(words), _CHUNK):
        chunk = [f" {word}" for word in words[start : start + _CHUNK]]
        found += [list(e.ids) for e in backend.encode_batch(chunk, add_special_tokens=False)]
    return found
