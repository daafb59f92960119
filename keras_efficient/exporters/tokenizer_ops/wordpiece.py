"""Read the settings of a Hugging Face WordPiece tokenizer from its JSON."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_efficient._errors import InputError
from keras_efficient.exporters.tokenizer_ops import normalizer_tables


@dataclass(frozen=True)
class WordPiece:
    """Settings that determine the token ids of a text, with the vocabulary as a trie.

    Attributes:
        normalizer: str, JSON of the normalizer, "null" if there is none.
        prefix, suffix: lists of int, ids of the special tokens before and after a text.
        keep_end: bool, whether truncation removes the beginning of a text.
        unknown: int, id of words that the vocabulary cannot spell.
        longest_word: int, number of characters; longer words are unknown.
        raw: dict from text to id of added tokens that are matched before normalization.
        normalized: dict from text to id of added tokens that are matched after normalization.
        alphabet: str, letters of the vocabulary, whose symbols are 2, 3 and so on.
        edges: int64 [nodes], sorted, parent * number of symbols + symbol. The node of edge i is
            i + 2; node 0 is the beginning of a word, node 1 is within a word.
        ids: int32 [nodes], id of the token that ends at the node, or -1.
    """

    normalizer: str
    prefix: list
    suffix: list
    keep_end: bool
    unknown: int
    longest_word: int
    raw: dict
    normalized: dict
    alphabet: str
    edges: np.ndarray
    ids: np.ndarray

    @classmethod
    def of(cls, tokenizer) -> "WordPiece":
        """Read a `data.Tokenizer`.

        Raises:
            InputError: the graph could not reproduce its ids.
        """
        if tokenizer.serialized is None:
            raise _unsupported(
                f"a backend of type {type(tokenizer.backend).__name__}, whose Python code no "
                "graph can hold"
            )
        settings = json.loads(tokenizer.serialized)
        model = settings["model"]
        _expect(settings, "model", "WordPiece")
        _expect(settings, "normalizer", "BertNormalizer", None)
        _expect(settings, "pre_tokenizer", "BertPreTokenizer")
        vocabulary, unknown = model["vocab"], model["unk_token"]
        if unknown not in vocabulary:
            raise _unsupported(f"an unknown token, {unknown!r}, that is not in its vocabulary")
        normalizer = json.dumps(settings["normalizer"])
        raw, normalized = _added(settings, normalizer)
        alphabet, edges, ids = _trie(vocabulary, model["continuing_subword_prefix"])
        if pairs := normalizer_tables.reordered(normalizer, alphabet):
            names = ", ".join(" ".join(f"U+{ord(c):04X}" for c in pair) for pair in pairs[:3])
            raise _unsupported(
                f"a vocabulary with marks that its normalizer puts into another order: {names}"
            )
        prefix, suffix = _template(settings)
        return cls(
            normalizer=normalizer,
            prefix=prefix,
            suffix=suffix,
            keep_end=((settings["truncation"] or {}).get("direction", "Right")) == "Left",
            unknown=vocabulary[unknown],
            longest_word=model["max_input_chars_per_word"],
            raw=raw,
            normalized=normalized,
            alphabet=alphabet,
            edges=edges,
            ids=ids,
        )


def _unsupported(received):
    return InputError(
        "A text signature holds a WordPiece tokenizer of Hugging Face's `tokenizers`, as BERT has: "
        "BertNormalizer or none, BertPreTokenizer, WordPiece, and BertProcessing or "
        f"TemplateProcessing. Received: {received}. Export without the text signature, and give "
        "the server token ids."
    )


def _expect(settings, part, *types):
    found = (settings[part] or {}).get("type")
    if found not in types:
        raise _unsupported(f"a {part} of type {found}")


def _added(settings, normalizer):
    """Return the added tokens matched before and after normalization, `{text: id}` each."""
    backend = normalizer_tables.load_normalizer(normalizer)
    raw, normalized = {}, {}
    for token in settings["added_tokens"]:
        text = token["content"]
        if token["single_word"]:
            raise _unsupported(f"the added token {text!r} with single_word=True")
        if token["normalized"] and backend is not None:
            text = backend.normalize_str(text)
        if not text:
            raise _unsupported(f"the added token {token['content']!r}, normalized to nothing")
        if token["normalized"] and normalizer_tables.sorted_marks(normalizer, text):
            # Sorting could move marks of the surrounding text into the token, or out of it.
            raise _unsupported(f"the added token {text!r}, with a mark that its normalizer moves")
        found = normalized if token["normalized"] else raw
        if text in found:
            raise _unsupported(f"two added tokens that are {text!r} when normalized")
        found[text] = token["id"]
    # Spaces beside an added token are dropped anyway, so stripping matters only to other tokens.
    strips = any(token["lstrip"] or token["rstrip"] for token in settings["added_tokens"])
    if strips and (edge := [text for text in (*raw, *normalized) if text != text.strip()]):
        raise _unsupported(f"added tokens that strip spaces, beside {edge[0]!r}, which has some")
    return raw, normalized


def pair_template(settings: dict) -> list[tuple]:
    """Return the parts of a pair of texts in their order, each with its segment.

    A part is the id of a special token, or a tuple with the number of the text, 0 or 1.

    Raises:
        InputError: the tokenizer has no template that holds each text once.
    """
    processor: dict[str, Any] = settings["post_processor"] or {"type": None}
    if processor["type"] in ("BertProcessing", "RobertaProcessing"):
        start, end = processor["cls"][1], processor["sep"][1]
        if processor["type"] == "BertProcessing":
            return [(start, 0), ((0,), 0), (end, 0), ((1,), 1), (end, 1)]
        return [(start, 0), ((0,), 0), (end, 0), (end, 0), ((1,), 0), (end, 0)]
    _expect(settings, "post_processor", "TemplateProcessing")
    parts: list[tuple] = []
    for part in processor["pair"]:
        kind = "Sequence" if "Sequence" in part else "SpecialToken"
        name, segment = part[kind]["id"], part[kind]["type_id"]
        if kind == "Sequence":
            parts.append((("AB".index(name),), segment))
        else:
            parts += [(number, segment) for number in processor["special_tokens"][name]["ids"]]
    if sorted(part for part, _ in parts if isinstance(part, tuple)) != [(0,), (1,)]:
        raise _unsupported("a template of pairs that does not hold each text once")
    return parts


def _template(settings):
    """Return the ids before and after a single text."""
    processor = settings["post_processor"]
    if processor is None:
        return [], []
    if processor["type"] in ("BertProcessing", "RobertaProcessing"):
        return [processor["cls"][1]], [processor["sep"][1]]
    _expect(settings, "post_processor", "TemplateProcessing")
    before, after = parts = [], []
    texts = 0
    for part in processor["single"]:
        if "Sequence" in part:
            texts += 1
        else:
            token = part["SpecialToken"]["id"]
            parts[texts > 0].extend(processor["special_tokens"][token]["ids"])
    if texts != 1:
        raise _unsupported(f"a template with {texts} places for the text")
    return before, after


def _trie(vocabulary, prefix):
    """Return the alphabet, and the trie of tokens that begin (0) or continue (1) a word."""
    pieces = {}
    for token, number in vocabulary.items():
        # Other tokens contain a character that is always a separate word, so they never match.
        if len(token) == 1 or normalizer_tables.is_plain(token):
            pieces[0, token] = number
        rest = token.removeprefix(prefix)
        if token.startswith(prefix) and rest and normalizer_tables.is_plain(rest):
            pieces[1, rest] = number
    alphabet = "".join(sorted({letter for _, text in pieces for letter in text}))
    symbols = {letter: symbol for symbol, letter in enumerate(alphabet, start=2)}
    nodes = {(0, ""): 0, (1, ""): 1}
    edges, ids = [], []
    # Level by level, so that the edges are sorted, with parents before their children.
    for length in range(1, max((len(text) for _, text in pieces), default=0) + 1):
        level = {(root, text[:length]) for root, text in pieces if len(text) >= length}
        order = sorted(
            (nodes[root, text[:-1]], symbols[text[-1]], root, text) for root, text in level
        )
        for parent, symbol, root, text in order:
            edges.append(parent * (len(alphabet) + 2) + symbol)
            nodes[root, text] = len(edges) + 1
            ids.append(pieces.get((root, text), -1))
    # An edge that never matches: tf.searchsorted needs a non-empty array.
    edges, ids = edges or [-1], ids or [-1]
    return alphabet, np.array(edges, np.int64), np.array(ids, np.int32)
