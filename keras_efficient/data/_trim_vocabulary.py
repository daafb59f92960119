"""`trim_vocabulary`: the tokens that texts need, and a tokenizer of these alone."""

import itertools
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from keras_efficient._errors import InputError, listed
from keras_efficient.data._tokenizer import Tokenizer, as_tokenizer
from keras_efficient.data._tokenizer_limits import special_ids

_CHUNK = 4096


class TrimmedVocabulary(NamedTuple):
    """Result of `trim_vocabulary`, usually unpacked.

    Attributes:
        ids: int32 array of the old ids of the tokens that were kept, increasing. The new id of a
            token is its place in it.
        tokenizer: a `Tokenizer` of these tokens.
    """

    ids: np.ndarray
    tokenizer: Tokenizer


def trim_vocabulary(
    tokenizer: Any, texts: Iterable[str], *, min_frequency: int = 1
) -> TrimmedVocabulary:
    """Find the tokens that some texts need, and make a tokenizer that has no others.

    Kept are the tokens of the texts, all special and added tokens, and all tokens of a single
    character, so that any text can still be written with the new tokenizer where the old one could.
    Texts whose tokens are all kept are tokenized as before; this is verified. Other words may be
    split into smaller pieces. Where the vocabulary is the largest part of a model, this makes it
    much smaller, and not faster.

    Args:
        tokenizer: a `Tokenizer` with a `tokenizers.Tokenizer` as backend, such as those of
            `ke.models.load` for a Hugging Face folder, or what `ke.data.as_tokenizer` accepts. Its
            model is WordPiece, WordLevel, BPE or Unigram.
        texts: typical texts of the task, such as those of the training set.
        min_frequency: a token is kept if the texts have it at least so often. Rare words are then
            split into smaller pieces in these texts, too, so a model should be trained further
            with the new tokenizer. Default: 1, all tokens of the texts.

    Returns:
        `(ids, tokenizer)`, for `ke.shrink(model, vocabulary=ids)` and the model it returns.

    Raises:
        InputError: there are no texts, `min_frequency` is not a whole number >= 1, the tokenizer is
            a function or of another kind, or texts are tokenized differently without the other
            tokens.

    Examples:
        >>> model, tokenizer = ke.models.load("models/all-MiniLM-L6-v2")
        >>> ids, small_tokenizer = ke.data.trim_vocabulary(tokenizer, ["a good film", "a bad plot"])
        >>> len(ids) < 5000
        True

    Reference:
        Yang et al. 2022, "TextPruner: A Model Pruning Toolkit for Pre-Trained Language Models".
    """
    if type(min_frequency) is not int or min_frequency < 1:
        raise InputError(
            f"`min_frequency` must be a whole number >= 1. Received: {min_frequency!r}."
        )
    tokenizer = as_tokenizer(tokenizer)
    if tokenizer.serialized is None:
        raise InputError(
            "The vocabulary of a tokenizer can be trimmed if it is a tokenizers.Tokenizer. "
            f"Received: {tokenizer!r}. Load the model from a folder with tokenizer.json."
        )
    texts = [texts] if isinstance(texts, str) else list(texts)
    if not texts:
        raise InputError("`texts` must hold typical texts. Received: none.")
    settings = json.loads(tokenizer.serialized)
    kind = settings["model"].get("type") or ("BPE" if "merges" in settings["model"] else None)
    if kind not in _TRIM:
        raise InputError(
            f"The vocabulary of a tokenizer can be trimmed if it is one of {', '.join(_TRIM)}. "
            f"Received: {kind}. Keep the whole vocabulary."
        )
    backend = _without_limits(tokenizer.serialized)
    used = [_encoded(backend, texts[n : n + _CHUNK]) for n in range(0, len(texts), _CHUNK)]
    encoded = [row for rows in used for row in rows]
    counts = Counter(itertools.chain.from_iterable(encoded))
    kept = {int(i) for i, count in counts.items() if count >= min_frequency}
    kept |= {token["id"] for token in settings.get("added_tokens") or ()}
    start = tokenizer.decoder_start_id
    kept |= {*special_ids(settings), tokenizer.pad_id} | ({start} - {None})
    new, kept = _TRIM[kind](settings["model"], kept)
    ids = np.array(sorted(kept), np.int32)
    number = {int(old): place for place, old in enumerate(ids)}
    settings["model"] = new(number)
    _renumber(settings, number)
    trimmed = Tokenizer(
        tokenizers.Tokenizer.from_str(json.dumps(settings)),
        inputs=tokenizer.inputs,
        pad_id=number[tokenizer.pad_id],
        max_length=tokenizer.max_length,
        decoder_start_id=None if start is None else number[start],
    )
    _verify(trimmed, ids, texts, encoded)
    return TrimmedVocabulary(ids, trimmed)


def _without_limits(serialized):
    backend: Any = tokenizers.Tokenizer.from_str(serialized)
    backend.no_truncation()
    backend.no_padding()
    return backend


def _encoded(backend, texts):
    return [encoding.ids for encoding in backend.encode_batch(texts)]


def _verify(trimmed, ids, texts, encoded):
    backend, known = _without_limits(trimmed.serialized), set(ids.tolist())
    for start in range(0, len(texts), _CHUNK):
        chunk = texts[start : start + _CHUNK]
        for text, new, old in zip(chunk, _encoded(backend, chunk), encoded[start:], strict=False):
            # Others have rare tokens, which are split.
            if known.issuperset(old) and list(ids[new]) != list(old):
                raise InputError(
                    "Texts must be tokenized as before without the other tokens. Received: "
                    f"{text!r:.80}, which is not. Keep the whole vocabulary of this tokenizer."
                )


# --- the kinds of vocabularies -------------------------------------------------------------------


def _word_piece(model, kept):
    prefix = model.get("continuing_subword_prefix") or ""
    vocabulary = model["vocab"]
    kept = kept | {i for token, i in vocabulary.items() if len(token.removeprefix(prefix)) == 1}
    if model.get("unk_token") in vocabulary:
        kept.add(vocabulary[model["unk_token"]])
    return _dict_model(model), kept


def _dict_model(model, **changed):
    def new(number):
        pairs = sorted(model["vocab"].items(), key=lambda pair: pair[1])
        return {**model, "vocab": {t: number[i] for t, i in pairs if i in number}, **changed}

    return new


def _bpe(model, kept):
    odd = [k for k in ("continuing_subword_prefix", "end_of_word_suffix") if model.get(k)]
    if odd or model.get("ignore_merges"):
        raise InputError(
            "The vocabulary of a BPE tokenizer can be trimmed if it marks words by a character. "
            f"Received: one with {listed(odd or ['ignore_merges'])}. Keep the whole vocabulary."
        )
    vocabulary = model["vocab"]
    tokens = {i: token for token, i in vocabulary.items()}
    pairs = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    ranks = {pair: rank for rank, pair in enumerate(pairs)}
    kept = kept | {i for token, i in vocabulary.items() if len(token) == 1}
    if model.get("unk_token") in vocabulary:
        kept.add(vocabulary[model["unk_token"]])
    needed = set()
    for i in list(kept):
        needed |= _merges_of(tokens.get(i, ""), ranks)
    kept |= {vocabulary["".join(pair)] for pair in needed}
    merges = [m for m, pair in zip(model["merges"], pairs, strict=True) if pair in needed]
    return _dict_model(model, merges=merges), kept


def _merges_of(token, ranks):
    """The merges that make a token of its characters, which every text with it needs."""
    symbols, done = list(token), set()
    while True:
        found = [(ranks[p], p) for p in itertools.pairwise(symbols) if p in ranks]
        if not found:
            return done
        _, pair = min(found)
        done.add(pair)
        merged, at = [], 0
        while at < len(symbols):
            both = tuple(symbols[at : at + 2]) == pair
            merged.append("".join(pair) if both else symbols[at])
            at += 1 + both
        symbols = merged


def _unigram(model, kept):
    kept = kept | {i for i, (piece, _) in enumerate(model["vocab"]) if len(piece) == 1}
    unknown = model.get("unk_id")
    if unknown is not None:
        kept.add(unknown)

    def new(number):
        pieces = [piece for i, piece in enumerate(model["vocab"]) if i in number]
        return {**model, "vocab": pieces, "unk_id": None if unknown is None else number[unknown]}

    return new, kept


_TRIM = {"WordPiece": _word_piece, "WordLevel": _word_piece, "BPE": _bpe, "Unigram": _unigram}


def _renumber(settings, number):
    """Replace the ids outside of the vocabulary: of added tokens, templates and padding."""
    for token in settings.get("added_tokens") or ():
        token["id"] = number[token["id"]]
    if settings.get("padding"):
        settings["padding"]["pad_id"] = number.get(settings["padding"]["pad_id"], 0)
    waiting = [settings.get("post_processor")]
    while waiting:
        step = waiting.pop()
        if step is None:
            continue
        waiting += step.get("processors", ())
        for key in ("sep", "cls"):
            if key in step:
                step[key][1] = number[step[key][1]]
        for token in (step.get("special_tokens") or {}).values():
            token["ids"] = [number[i] for i in token["ids"]]
