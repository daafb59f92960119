"""What a tokenizer does to each character, asked of the tokenizer itself and kept as a table.

A Bert normaliser treats every code point alone, so its answer for each of the 1,114,112 is all
there is to know: no Unicode data of Python's, ICU's or TensorFlow's has to agree with it.
"""

import json
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from tokenizers import Tokenizer, models
from tokenizers.normalizers import NFD
from tokenizers.pre_tokenizers import BertPreTokenizer

#: Symbols that a code point may become, besides code points or letters (from 2): the end of a
#: word, a letter of no token, the code point itself, and nothing (which fills the rows).
BREAK, UNKNOWN, ITSELF, NOTHING = 0, 1, -(2**31), -(2**31) + 1
#: Row of the table for an added token: a word of its own.
ADDED = 0

LIMIT = 0x110000
PAGE = 256
_PLAIN, _SPACE, _ALONE = 0, 1, 2
_SURROGATES = range(0xD800, 0xE000)
# What no normaliser changes and no single character contains two of.
_BETWEEN = "q7q"
_CHUNK = 65536


@dataclass(frozen=True)
class CharacterTable:
    """What each code point becomes: `rows[codes[pages[c // 256], c % 256]]`, without `NOTHING`.

    Attributes:
        pages: int32 [4352].
        codes: int32 [different pages, 256].
        rows: int32 [different rows, longest row].
    """

    pages: np.ndarray
    codes: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, changed, rest):
        """Of `{code point: symbols}`, and `(rows, row of every code point)` for the others."""
        default, codes = rest
        rows = {(BREAK, ITSELF, BREAK): ADDED}
        order = np.array([rows.setdefault(row, len(rows)) for row in default], np.int32)
        codes = order[codes]
        for point, row in changed.items():
            codes[point] = rows.setdefault(row, len(rows))
        longest = max(map(len, rows))
        padded = [[*row, *[NOTHING] * (longest - len(row))] for row in rows]
        unique, pages = np.unique(codes.reshape(-1, PAGE), axis=0, return_inverse=True)
        return cls(pages.reshape(-1).astype(np.int32), unique, np.array(padded, np.int32))


def normalizing(normalizer: str) -> CharacterTable:
    """The table from code points to those of the normalised text; `normalizer` is its JSON."""
    changed = {point: tuple(map(ord, text)) for point, text in normalized(normalizer).items()}
    return CharacterTable.of(changed, ([(ITSELF,)], np.zeros(LIMIT, np.int32)))


@lru_cache(maxsize=8)
def splitting(normalizer: str, alphabet: str) -> CharacterTable:
    """The table from code points to letters and breaks: normalised, then split into words.

    Args:
        normalizer: str, JSON of the normaliser; "null" where the text is normalised already.
        alphabet: str, the letters; their symbols are 2, 3 and so on.
    """
    kind = _kinds()
    symbol = np.full(LIMIT, UNKNOWN, np.int64)
    symbol[list(map(ord, alphabet))] = np.arange(2, len(alphabet) + 2)

    def row(kind, symbol):
        return ((symbol,), (BREAK,), (BREAK, symbol, BREAK))[kind]

    # All but the changed ones at once: there are a million, and few different (kind, symbol).
    pairs, codes = np.unique(symbol * 4 + kind, return_inverse=True)
    rest = [row(int(pair) % 4, int(pair) // 4) for pair in pairs], codes.reshape(-1)
    pieces = [rest[0][code] for code in codes.reshape(-1).tolist()]
    changed = {
        point: sum((pieces[ord(letter)] for letter in text), ())
        for point, text in normalized(normalizer).items()
    }
    return CharacterTable.of(changed, rest)


def is_plain(text: str) -> bool:
    """Whether the pre-tokenizer leaves `text` whole, as part of a word."""
    return not _kinds()[list(map(ord, text))].any()


@lru_cache(maxsize=8)
def normalized(normalizer: str) -> dict:
    """`{code point: normalised text}` of those that a normaliser, given as JSON, changes."""
    ask = normaliser(normalizer)
    points = [point for point in range(LIMIT) if point not in _SURROGATES]
    if ask is None:
        return {}
    found = {}
    for start in range(0, len(points), _CHUNK):
        part = points[start : start + _CHUNK]
        for point, text in zip(part, _each(ask, map(chr, part)), strict=True):
            if text != chr(point):
                found[point] = text
    return found


def normaliser(normalizer: str):
    """The normaliser of `tokenizers` that JSON describes; None for "null"."""
    state = json.loads(Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")).to_str())
    state["normalizer"] = json.loads(normalizer)
    return Tokenizer.from_str(json.dumps(state)).normalizer


def marks(normalizer: str, letters) -> list:
    """Those of `letters` that canonical decomposition sorts, and the normaliser keeps.

    A Bert normaliser that strips accents decomposes first, which sorts the combining marks that
    follow each other by their class. Most it then removes; the others may have changed places.
    """
    settings = json.loads(normalizer) or {}
    strips = settings.get("strip_accents")
    if not (settings.get("lowercase") if strips is None else strips):
        return []
    changed = normalized(normalizer)
    letters = [letter for letter in letters if letter in changed.get(ord(letter), letter)]
    # Of the lowest and of the highest class: every mark changes places with one of them.
    low, high = "\u0334", "\u0345"
    after = _each(NFD(), [letter + low for letter in letters])
    before = _each(NFD(), [high + letter for letter in letters])
    return [
        letter
        for letter, a, b in zip(letters, after, before, strict=True)
        if a == low + letter or b == letter + high
    ]


def reordered(normalizer: str, letters) -> list:
    """The pairs of `letters` whose order the normaliser changes when they follow each other."""
    found = marks(normalizer, letters)
    pairs = [a + b for a in found for b in found]
    return [pair for pair, text in zip(pairs, _each(NFD(), pairs), strict=True) if pair != text]


def _each(ask, texts):
    """The normalised form of each text, in one call."""
    joined = _BETWEEN + "".join(text + _BETWEEN for text in texts)
    return ask.normalize_str(joined).split(_BETWEEN)[1:-1]


@lru_cache(maxsize=1)
def _kinds():
    """int8 [code points]: plain, a space (left out), or a word of its own."""
    kinds = np.zeros(LIMIT, np.int8)
    split = BertPreTokenizer()
    points = [point for point in range(LIMIT) if point not in _SURROGATES]
    for start in range(0, len(points), _CHUNK):
        part = points[start : start + _CHUNK]
        found = np.full(2 * len(part) + 1, _SPACE, np.int8)
        # Between two letters: in a word with them, a word of its own, or in none.
        for _, (first, last) in split.pre_tokenize_str(f"a{'a'.join(map(chr, part))}a"):
            found[first:last] = _ALONE if last - first == 1 else _PLAIN
        kinds[part] = found[1::2]
    return kinds
