"""`augment_texts`: altered copies of texts, as unlabelled data for distillation."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_efficient._errors import InputError
from keras_efficient.data._as_records import as_records
from keras_efficient.data._candidate_words import CandidateWords
from keras_efficient.data._masked_words import MaskedWords
from keras_efficient.data._records import Records
from keras_efficient.data._tokenizer import as_tokenizer

_CHUNK = re.compile(r"\S+")
#: Characters that may stand between the letters of a word.
_INNER = "'’-"


class AugmentedTexts(NamedTuple):
    """Result of `augment_texts`.

    Attributes:
        records: `Records` of the new texts, or of the new first texts with the second texts of
            their originals, without labels. All differ from each other and from the originals;
            `len(records)` is the number of distinct ones.
        origins: int64 array `[texts]`, the index of the text that each was made of, increasing.
        dropped: number of copies that were left out, because they were identical to another copy
            or to an original.
    """

    records: Records
    origins: np.ndarray
    dropped: int


def augment_texts(
    records: Any,
    tokenizer: Any = None,
    *,
    embeddings: Any = None,
    masked_lm: Any = None,
    copies: int = 5,
    replace: float = 0.4,
    delete: float = 0.0,
    swap: float = 0.0,
    candidates: int = 15,
    seed: int = 0,
) -> AugmentedTexts:
    """Make altered copies of texts, for a teacher to label.

    Each word of each copy is replaced, deleted and swapped with the given probabilities. A word
    that is one token in its text is replaced by one of the words that a masked language model
    predicts in its place, if there is such a model; any other word by one of those whose
    embeddings are nearest to its own: among the words of one token for such a word, and among all
    words for one of several tokens, whose embedding is the mean of theirs. Numbers, punctuation,
    white space and special tokens stay, as does at least one word of each text. Of pairs of texts
    the first one is altered: the question, where the second text is its context.

    A word is what stands between white space and punctuation and consists of letters, so languages
    that put no spaces between words are not augmented sensibly. The copies have no labels: the
    meaning may change. They are made once and stay the same, so that the outputs of a teacher can
    be stored by `ke.distillation.cache`; for other copies in other epochs, change `seed`.

    Args:
        records: `Records`, or what `ke.data.text` takes as records.
        tokenizer: a `Tokenizer` with a `tokenizers.Tokenizer` as backend, or what `as_tokenizer`
            accepts. Needed to replace words. Default: None.
        embeddings: a built model with a table of token embeddings, such as the teacher, or such a
            table, float `[vocabulary, width]`. Default: None, the table of `masked_lm`, if it is a
            model that has one; otherwise no word is replaced by its neighbours.
        masked_lm: a KerasHub or Hugging Face masked language model with the tokenizer's
            vocabulary and input names, or a function of such features that returns logits
            `[batch, length, vocabulary]`. It runs once on a text for each word that some copy
            replaces. Default: None.
        copies: number of copies per text. Default: 5.
        replace: probability of replacing a word. Default: 0.4.
        delete: probability of deleting a word. Default: 0.
        swap: probability of exchanging a word with a random one of the same text. Default: 0.
        candidates: number of words from which the replacement is drawn, all with the same
            probability. Default: 15.
        seed: seed of all draws. Default: 0.

    Returns:
        `(records, origins, dropped)`.

    Raises:
        InputError: an argument is out of range, there are no texts, or words cannot be replaced
            because the tokenizer or the models are missing or do not fit.

    Examples:
        >>> model, tokenizer = ke.models.load("models/all-MiniLM-L6-v2")
        >>> texts = ["A film that moves.", "A plot of 3 lines."]
        >>> new = ke.data.augment_texts(texts, tokenizer, embeddings=model, copies=3)
        >>> 0 < len(new.records) <= 6 and len(new.records) + new.dropped == 6
        True
        >>> new = ke.data.augment_texts(texts, replace=0.0, delete=0.2, swap=0.2, seed=1)
        >>> all("3" in text for text in new.records.texts[new.origins.searchsorted(1) :])
        True

    Reference:
        Jiao et al. 2020, "TinyBERT: Distilling BERT for Natural Language Understanding" (replacing;
        it takes GloVe's word vectors for words of several pieces, 20 copies and p = 0.4); Wei & Zou
        2019, "EDA: Easy Data Augmentation Techniques" (deleting and swapping).
    """
    copies, candidates = _whole("copies", copies, 1), _whole("candidates", candidates, 1)
    seed = _whole("seed", seed, 0)
    rates = {"replace": replace, "delete": delete, "swap": swap}
    _check_rates(rates)
    records = as_records(records)
    if not len(records):
        raise InputError(f"There must be at least one text. Received: none ({records.source}).")
    if tokenizer is not None:
        tokenizer = as_tokenizer(tokenizer)
    if replace and (tokenizer is None or (embeddings is None and masked_lm is None)):
        raise InputError(
            "Replacing words needs a tokenizer, and `embeddings` or `masked_lm`. Received: "
            f"replace={replace}, without them. Pass the tokenizer and embeddings=teacher, or "
            "replace=0 to delete and swap only."
        )
    rng = np.random.default_rng(seed)
    texts = _Texts(records.texts, () if tokenizer is None else tokenizer.special_tokens)
    replaced = rng.random((copies, len(texts.words))) < replace
    source = _Unchanged()
    if replaced.any():
        source = _Replacements(
            texts, tokenizer, embeddings, masked_lm, candidates, replaced.any(axis=0)
        )
    second = records.second_texts or (None,) * len(records)
    found, seen = [], set(zip(records.texts, second, strict=True))
    for here in replaced:
        new = source.draw(here, rng)
        gone = _deleted(texts, rng, delete)
        order = _swapped(texts, rng, swap)
        for number, text in texts.changed(new, gone, order):
            if (text, second[number]) not in seen:
                seen.add((text, second[number]))
                found.append((number, text))
    found.sort(key=lambda pair: pair[0])
    made = Records(
        tuple(text for _, text in found),
        source=f"{records.source}, augmented",
        second_texts=records.second_texts and tuple(second[number] for number, _ in found),
    )
    origins = np.array([number for number, _ in found], np.int64)
    return AugmentedTexts(made, origins, copies * len(records) - len(made))


class _Texts:
    """Texts, divided into words and what stands between them.

    Attributes:
        words: list of the words of all texts, one after the other.
        starts: int array `[texts + 1]`, the first word of each text, and the number of all words.
        spans: list of `(start, end)` of each word in its text.
    """

    def __init__(self, texts: Sequence[str], special: Sequence[str]):
        self.texts = texts
        self.words: list[str] = []
        self.spans: list[tuple[int, int]] = []
        known: dict[str, Any] = {}
        starts = [0]
        for text in texts:
            for match in _CHUNK.finditer(text):
                chunk = match.group()
                if chunk not in known:
                    known[chunk] = _word_in(chunk, special)
                if (word := known[chunk]) is not None:
                    start = match.start()
                    self.spans.append((start + word[0], start + word[1]))
                    self.words.append(chunk[word[0] : word[1]])
            starts.append(len(self.words))
        self.starts = np.array(starts)

    def per_text(self, marked: np.ndarray) -> np.ndarray:
        """Return the number of marked words of each text."""
        sums = np.concatenate([[0], np.cumsum(marked)])
        return sums[self.starts[1:]] - sums[self.starts[:-1]]

    def changed(self, new: list, gone: np.ndarray, order: np.ndarray):
        """Yield `(index, text)` of each text with a word that changes.

        Args:
            new: list of what each word becomes, None for words that are not replaced.
            gone: bool array `[words]`, which are deleted.
            order: int array `[words]`, which word comes to the place of each.
        """
        moved = order != np.arange(len(order))
        changes = moved | gone | np.array([word is not None for word in new], bool)
        order, gone, starts = order.tolist(), gone.tolist(), self.starts.tolist()
        for number in np.flatnonzero(self.per_text(changes)).tolist():
            text, parts, end = self.texts[number], [], 0
            for place in range(starts[number], starts[number + 1]):
                start, stop = self.spans[place]
                parts.append(text[end:start])
                source = order[place]
                word = self.words[source] if new[source] is None else new[source]
                parts.append("" if gone[place] else word)
                end = stop
            parts.append(text[end:])
            yield number, _joined(parts)


def _word_in(chunk, special):
    """Return `(start, end)` of the word in what stands between white space, or None."""
    kinds = [unicodedata.category(character)[0] for character in chunk]
    places = [i for i, kind in enumerate(kinds) if kind in "LMN"]
    if not places or any(token in chunk for token in special):
        return None
    start, end = places[0], places[-1] + 1
    inside = zip(chunk[start:end], kinds[start:end], strict=True)
    return (start, end) if all(k in "LM" or c in _INNER for c, k in inside) else None


def _joined(parts):
    """Join what stands between words and the words; a deleted one takes a space along."""
    text = parts[0]
    for word, gap in zip(parts[1::2], parts[2::2], strict=True):
        if not word and text[-1:].isspace() and (not gap or gap[0].isspace() or gap[0] in ".,;:!?"):
            text = text[:-1]
        elif not word and not text:
            gap = gap.lstrip()
        text += word + gap
    return text


def _deleted(texts, rng, rate):
    """Return which words are deleted: never all of a text."""
    drawn = rng.random(len(texts.words))
    gone = drawn < rate
    counts = np.diff(texts.starts)
    for number in np.flatnonzero((texts.per_text(gone) == counts) & (counts > 0)):
        first = texts.starts[number]
        gone[first + drawn[first : texts.starts[number + 1]].argmax()] = False
    return gone


def _swapped(texts, rng, rate):
    """Return which word comes to the place of each, after random exchanges within each text."""
    swap = rng.random(len(texts.words)) < rate
    counts = np.diff(texts.starts)
    other = np.repeat(texts.starts[:-1], counts)
    other = other + (rng.random(len(swap)) * np.repeat(counts, counts)).astype(int)
    order = np.arange(len(swap))
    for place in np.flatnonzero(swap):
        order[[place, other[place]]] = order[[other[place], place]]
    return order


class _Unchanged:
    """No replacement for any word."""

    @staticmethod
    def draw(here, rng):
        return [None] * len(here)


class _Replacements:
    """Candidates for the words that are replaced.

    Args:
        texts: `_Texts`.
        tokenizer: `Tokenizer`.
        embeddings: as in `augment_texts`.
        masked_lm: likewise.
        candidates: number of candidates per word.
        needed: bool array `[words]`, which words some copy replaces.
    """

    def __init__(self, texts, tokenizer, embeddings, masked_lm, candidates, needed):
        self.texts = texts
        self.pool = CandidateWords(tokenizer, texts.words)
        #: Per word, its row in `options`, which are places in the pool; -1 without candidates.
        self.rows = np.full(len(texts.words), -1)
        options = []
        if masked_lm is not None:
            masked = MaskedWords(masked_lm, tokenizer, self.pool)
            places = masked.find(texts.texts, texts.spans, texts.starts, needed)
            self.rows[places] = np.arange(len(places))
            options.append(masked.predict(candidates))
        table = self.pool.table(embeddings, masked_lm)
        if table is not None:
            near = self.pool.nearest(table, candidates)
            distinct = self.pool.rows
            others = (self.rows < 0) & (distinct >= 0)
            self.rows[others] = distinct[others] + (len(options[0]) if options else 0)
            options.append(near)
        width = max(option.shape[1] for option in options)
        # Both have the same number of candidates, unless the pool is smaller.
        self.options = np.concatenate([_repeated(option, width) for option in options])

    def draw(self, here, rng):
        """Return what each word becomes: a candidate where `here` holds, else None."""
        chosen = (rng.random(len(here)) * self.options.shape[1]).astype(int)
        new: list = [None] * len(here)
        for place in np.flatnonzero(here & (self.rows >= 0)).tolist():
            word = self.pool.words[self.options[self.rows[place], chosen[place]]]
            new[place] = _cased_like(self.texts.words[place], word)
        return new


def _repeated(options, width):
    return options[:, np.arange(width) % options.shape[1]]


def _cased_like(old, new):
    if old.istitle() and new.islower():
        return new.capitalize()
    return new.upper() if old.isupper() and new.islower() else new


def _whole(name, value, least):
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InputError(f"`{name}` must be an integer of {least} or more. Received: {value!r}.")
    return int(value)


def _check_rates(rates):
    for name, rate in rates.items():
        number = isinstance(rate, int | float) and not isinstance(rate, bool)
        if not number or not 0 <= rate <= 1:
            raise InputError(f"`{name}` must be a probability, from 0 to 1. Received: {rate!r}.")
    if not any(rates.values()):
        raise InputError(
            "Copies must differ from their texts. Received: replace=0, delete=0 and swap=0. Set "
            "one of these probabilities, such as replace=0.4."
        )
