"""Tables of what a tokenizer's normalizer and pre-tokenizer do to each Unicode code point.

A BERT normalizer treats every code point separately, so its results for all 1,114,112 code points
describe it completely, and the Unicode data of Python, ICU or TensorFlow need not agree with it.
"""

import json
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from tokenizers import Tokenizer, models
from tokenizers.normalizers import NFD
from tokenizers.pre_tokenizers import BertPreTokenizer

#: Symbols that a code point may become, besides code points or letters, which are numbered from 2:
#: the end of a word, a letter outside the vocabulary, the code point itself, and padding of rows.
BREAK, UNKNOWN, ITSELF, NOTHING = 0, 1, -(2**31), -(2**31) + 1
#: Row of the table for an added token, which is a separate word.
ADDED = 0

LIMIT = 0x110000
PAGE = 256
_PLAIN, _SPACE, _SEPARATE = 0, 1, 2
_SURROGATES = range(0xD800, 0xE000)
# A separator that no normalizer changes, and that no single character can complete.
_BETWEEN = "q7q"
_CHUNK = 65536


@dataclass(frozen=True)
class CharacterTable:
    """Two-level table from code points to symbols: `rows[codes[pages[c // 256], c % 256]]`.

    The padding symbol `NOTHING` at the end of a row is to be ignored.

    Attributes:
        pages: int32 [4352].
        codes: int32 [distinct pages, 256].
        rows: int32 [distinct rows, longest row].
    """

    pages: np.ndarray
    codes: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, changed, rest):
        """Build a table.

        Args:
            changed: {code point: symbols}.
            rest: (rows, row number of every code point) for the other code points.
        """
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
    """Return the table from code points to normalized code points; `normalizer` is JSON."""
    changed = {point: tuple(map(ord, text)) for point, text in normalized(normalizer).items()}
    return CharacterTable.of(changed, ([(ITSELF,)], np.zeros(LIMIT, np.int32)))


@lru_cache(maxsize=8)
def splitting(normalizer: str, alphabet: str) -> CharacterTable:
    """Return the table from code points to letters and word breaks, for normalizing and splitting.

    Args:
        normalizer: str, JSON of the normalizer; "null" if the text is normalized already.
        alphabet: str, the letters, whose symbols are 2, 3 and so on.
    """
    kind = _kinds()
    symbol = np.full(LIMIT, UNKNOWN, np.int64)
    symbol[list(map(ord, alphabet))] = np.arange(2, len(alphabet) + 2)

    def row(kind, symbol):
        return ((symbol,), (BREAK,), (BREAK, symbol, BREAK))[kind]

    # Vectorized over the million code points, which have few distinct pairs of kind and symbol.
    pairs, codes = np.unique(symbol * 4 + kind, return_inverse=True)
    rest = [row(int(pair) % 4, int(pair) // 4) for pair in pairs], codes.reshape(-1)
    pieces = [rest[0][code] for code in codes.reshape(-1).tolist()]
    changed = {
        point: sum((pieces[ord(letter)] for letter in text), ())
        for point, text in normalized(normalizer).items()
    }
    return CharacterTable.of(changed, rest)


def is_plain(text: str) -> bool:
    """Return whether the pre-tokenizer leaves `text` in one piece, as part of a word."""
    return not _kinds()[list(map(ord, text))].any()


@lru_cache(maxsize=8)
def normalized(normalizer: str) -> dict:
    """Return `{code point: normalized text}` of the code points that a normalizer changes."""
    backend = load_normalizer(normalizer)
    points = [point for point in range(LIMIT) if point not in _SURROGATES]
    if backend is None:
        return {}
    found = {}
    for start in range(0, len(points), _CHUNK):
        part = points[start : start + _CHUNK]
        for point, text in zip(part, _normalize_each(backend, map(chr, part)), strict=True):
            if text != chr(point):
                found[point] = text
    return found


def load_normalizer(normalizer: str):
    """Return the normalizer of `tokenizers` that JSON describes; None for "null"."""
    state = json.loads(Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")).to_str())
    state["normalizer"] = json.loads(normalizer)
    return Tokenizer.from_str(json.dumps(state)).normalizer


def sorted_marks(normalizer: str, letters) -> list:
    """Return those of `letters` that canonical decomposition sorts and the normalizer keeps.

    A BERT normalizer that strips accents decomposes the text first, which sorts consecutive
    combining marks by their class. It then removes most of them, but the order of the remaining
    ones may have changed.
    """
    settings = json.loads(normalizer) or {}
    strips = settings.get("strip_accents")
    if not (settings.get("lowercase") if strips is None else strips):
        return []
    changed = normalized(normalizer)
    letters = [letter for letter in letters if letter in changed.get(ord(letter), letter)]
    # Marks of the lowest and the highest class: any sorted mark swaps places with one of them.
    low, high = "\u0334", "\u0345"
    after = _normalize_each(NFD(), [letter + low for letter in letters])
    before = _normalize_each(NFD(), [high + letter for letter in letters])
    return [
        letter
        for letter, a, b in zip(letters, after, before, strict=True)
        if a == low + letter or b == letter + high
    ]


def reordered(normalizer: str, letters) -> list:
    """Return the pairs of consecutive `letters` whose order the normalizer changes."""
    found = sorted_marks(normalizer, letters)
    pairs = [a + b for a in found for b in found]
    return [
        pair
        for pair, text in zip(pairs, _normalize_each(NFD(), pairs), strict=True)
        if pair != text
    ]


def _normalize_each(normalizer, texts):
    """Normalize each text, in one call."""
    joined = _BETWEEN + "".join(text + _BETWEEN for text in texts)
    return normalizer.normalize_str(joined).split(_BETWEEN)[1:-1]


@lru_cache(maxsize=1)
def _kinds():
    """Return int8 [code points]: plain, a space, which is left out, or a separate word."""
    kinds = np.zeros(LIMIT, np.int8)
    split = BertPreTokenizer()
    points = [point for point in range(LIMIT) if point not in _SURROGATES]
    for start in range(0, len(points), _CHUNK):
        part = points[start : start + _CHUNK]
        found = np.full(2 * len(part) + 1, _SPACE, np.int8)
        # Each code point is placed between two letters, in whose word it is, or not.
        for _, (first, last) in split.pre_tokenize_str(f"a{'a'.join(map(chr, part))}a"):
            found[first:last] = _SEPARATE if last - first == 1 else _PLAIN
        kinds[part] = found[1::2]
    return kinds
