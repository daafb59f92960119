"""What a WordPiece tokenizer of Hugging Face's is made of, read from its own JSON."""

import json
from dataclasses import dataclass

import numpy as np

from keras_efficient._errors import InputError
from keras_efficient.exporters.tokenizer_ops import normalizer_tables


@dataclass(frozen=True)
class WordPiece:
    """The settings that decide a text's ids, and the vocabulary as a trie.

    Attributes:
        normalizer: str, JSON of the normaliser ("null" for none).
        prefix, suffix: lists of int, the special tokens before and after a text.
        keep_end: bool, whether a long text loses its beginning.
        unknown: int, id of a word that the vocabulary cannot spell.
        longest_word: int, characters; longer words are unknown.
        raw: dict of added tokens (text to id) that are found in the text as it is.
        normalized: dict of added tokens that are found in the normalised text.
        alphabet: str, the letters of the vocabulary; their symbols are 2, 3 and so on.
        edges: int64 [nodes], sorted: parent · (symbols) + symbol. The node of edge i is i + 2;
            node 0 is the beginning of a word, 1 is within one.
        ids: int32 [nodes], the token that ends there, or -1.
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
        """Read a `data.Tokenizer`; refuse what the graph would not compute equally."""
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
                f"a vocabulary with marks that its normaliser puts into another order: {names}"
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


def _unsupported(what):
    return InputError(
        "A text signature holds a WordPiece tokenizer of Hugging Face's `tokenizers`, as BERT has: "
        "BertNormalizer or none, BertPreTokenizer, WordPiece, and BertProcessing or "
        f"TemplateProcessing. Received: {what}. Export without the text signature, and give the "
        "server token ids."
    )


def _expect(settings, part, *types):
    found = (settings[part] or {}).get("type")
    if found not in types:
        raise _unsupported(f"a {part} of type {found}")


def _added(settings, normalizer):
    """The added tokens in the text and in the normalised text: `{text: id}` each."""
    ask = normalizer_tables.normaliser(normalizer)
    raw, normalized = {}, {}
    for token in settings["added_tokens"]:
        text = token["content"]
        if token["single_word"]:
            raise _unsupported(f"the added token {text!r} with single_word=True")
        if token["normalized"] and ask is not None:
            text = ask.normalize_str(text)
        if not text:
            raise _unsupported(f"the added token {token['content']!r}, normalised to nothing")
        if token["normalized"] and normalizer_tables.marks(normalizer, text):
            # Marks of the text around could be sorted into it, or out of it.
            raise _unsupported(f"the added token {text!r}, with a mark its normaliser moves")
        found = normalized if token["normalized"] else raw
        if text in found:
            raise _unsupported(f"two added tokens that are {text!r} when normalised")
        found[text] = token["id"]
    # A space beside an added token is left out anyway, so that stripping changes nothing else.
    strips = any(token["lstrip"] or token["rstrip"] for token in settings["added_tokens"])
    if strips and (edge := [text for text in (*raw, *normalized) if text != text.strip()]):
        raise _unsupported(f"added tokens that strip spaces, beside {edge[0]!r}, which has some")
    return raw, normalized


def _template(settings):
    """The ids before and after a single text."""
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
    """The alphabet, and the trie of the tokens that a word can begin with (0) or go on with (1)."""
    pieces = {}
    for token, number in vocabulary.items():
        # Others contain what always is a word of its own, so no word is spelt with them.
        if len(token) == 1 or normalizer_tables.is_plain(token):
            pieces[0, token] = number
        rest = token.removeprefix(prefix)
        if token.startswith(prefix) and rest and normalizer_tables.is_plain(rest):
            pieces[1, rest] = number
    alphabet = "".join(sorted({letter for _, text in pieces for letter in text}))
    symbols = {letter: symbol for symbol, letter in enumerate(alphabet, start=2)}
    nodes = {(0, ""): 0, (1, ""): 1}
    edges, ids = [], []
    # Level by level, so that the edges come out sorted: parents before their children.
    for length in range(1, max((len(text) for _, text in pieces), default=0) + 1):
        level = {(root, text[:length]) for root, text in pieces if len(text) >= length}
        order = sorted(
            (nodes[root, text[:-1]], symbols[text[-1]], root, text) for root, text in level
        )
        for parent, symbol, root, text in order:
            edges.append(parent * (len(alphabet) + 2) + symbol)
            nodes[root, text] = len(edges) + 1
            ids.append(pieces.get((root, text), -1))
    # (One that is never found: a search needs something to search.)
    edges, ids = edges or [-1], ids or [-1]
    return alphabet, np.array(edges, np.int64), np.array(ids, np.int32)
