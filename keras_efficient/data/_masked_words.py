"""Words that a masked language model predicts in the place of others."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient._errors import InputError
from keras_efficient.data._candidate_words import CandidateWords, plain_backend
from keras_efficient.data._tokenizer import Tokenizer

#: Texts per call of the model.
_BATCH = 64
_CHUNK = 4096


class MaskedWords:
    """Words that are one token in their text, masked one at a time.

    Args:
        model: as `masked_lm` of `augment_texts`.
        tokenizer: a `Tokenizer`.
        pool: the `CandidateWords`.

    Raises:
        InputError: the tokenizer has no mask token.
    """

    def __init__(self, model: Any, tokenizer: Tokenizer, pool: CandidateWords):
        self.model, self.tokenizer, self.pool = model, tokenizer, pool
        self._backend: Any = plain_backend(tokenizer)
        self._backend.enable_truncation(tokenizer.max_length)
        found = [self._backend.token_to_id(token) for token in ("[MASK]", "<mask>")]
        found = [number for number in found if number is not None]
        if not found:
            raise InputError(
                "A masked language model needs a mask token. Received: a tokenizer with neither "
                "'[MASK]' nor '<mask>'. Pass the tokenizer of the masked language model, or "
                "`embeddings` alone."
            )
        self.mask_id: int = found[0]
        self._masked: list[tuple[np.ndarray, int]] = []

    def find(
        self,
        texts: Sequence[str],
        spans: Sequence[tuple[int, int]],
        starts: np.ndarray,
        needed: np.ndarray,
    ) -> np.ndarray:
        """Find the words to be masked; return their places.

        Args:
            texts: the texts.
            spans: `(start, end)` of each word in its text.
            starts: int array `[texts + 1]`, the first word of each text.
            needed: bool array `[words]`, which words are to be replaced.
        """
        places = []
        for first in range(0, len(texts), _CHUNK):
            encodings = self._backend.encode_batch(list(texts[first : first + _CHUNK]))
            for number, encoding in enumerate(encodings, first):
                ids = np.array(encoding.ids, np.int32)
                # Byte-level tokenizers may count the space before a word as part of it.
                tokens = {end: (place, start) for place, (start, end) in _offsets(encoding)}
                for word in range(starts[number], starts[number + 1]):
                    start, end = spans[word]
                    place, begins = tokens.get(end, (0, -2))
                    whole = begins in (start, start - 1) and self._is_word(ids[place])
                    if needed[word] and whole:
                        places.append(word)
                        self._masked.append((ids, place))
        return np.array(places, int)

    def _is_word(self, token):
        known = self.pool.place_of_token
        return token < len(known) and known[token] >= 0

    def predict(self, number: int) -> np.ndarray:
        """Return the best candidates for each masked word.

        Args:
            number: how many to return; fewer if there are fewer candidates.

        Returns:
            Int array `[masked words, number]` of places in the words of the pool.

        Raises:
            InputError: the model's outputs are no logits of the tokenizer's vocabulary.
        """
        allowed = self.pool.place_of_token >= 0
        number = min(number, int(allowed.sum()) - 1)
        found = np.zeros((len(self._masked), number), int)
        # Texts of about the same length need little padding.
        order = np.argsort([len(ids) for ids, _ in self._masked], kind="stable")
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            places = np.array([self._masked[row][1] for row in rows], np.int32)
            ids = [self._masked[row][0] for row in rows]
            own = np.array([row[place] for row, place in zip(ids, places, strict=True)])
            logits = self._logits(ids, places)
            if logits.ndim != 2 or logits.shape[1] < len(allowed):
                raise InputError(
                    "`masked_lm` must return logits [batch, length, vocabulary] of the tokenizer's "
                    f"{len(allowed)} tokens. Received: {list(logits.shape)} for the masked tokens "
                    f"of {len(rows)} texts. Pass the model that the tokenizer belongs to."
                )
            logits = np.where(allowed, logits[:, : len(allowed)], -np.inf)
            logits[np.arange(len(rows)), own] = -np.inf
            best = np.argpartition(logits, -number, axis=1)[:, -number:]
            found[rows] = self.pool.place_of_token[np.sort(best, axis=1)]
        return found

    def _logits(self, ids, places):
        """Return the logits at a place of each text that is masked, `[texts, vocabulary]`."""
        length = max(map(len, ids))
        mask = np.zeros((len(ids), length), np.int32)
        tokens = np.full((len(ids), length), self.tokenizer.pad_id, np.int32)
        for number, (row, place) in enumerate(zip(ids, places, strict=True)):
            tokens[number, : len(row)], mask[number, : len(row)] = row, 1
            tokens[number, place] = self.mask_id
        content = {"ids": tokens, "mask": mask, "segments": np.zeros_like(tokens)}
        features = {name: content[key] for key, name in self.tokenizer.inputs.items()}
        # KerasHub's models return the logits of these places alone.
        inputs = [tensor.name for tensor in getattr(self.model, "inputs", None) or ()]
        chosen = "mask_positions" in inputs
        if chosen:
            features["mask_positions"] = places[:, None]
        features = {name: tf.constant(value) for name, value in features.items()}
        if hasattr(self.model, "weights"):
            outputs = flavors.of(self.model).call(self.model, features, training=False)
        else:
            outputs = self.model(features)
        logits = tf.convert_to_tensor(getattr(outputs, "logits", outputs))
        if logits.shape.rank == 3:
            logits = logits[:, 0] if chosen else tf.gather(logits, places, batch_dims=1)
        return tf.cast(logits, tf.float32).numpy()


def _offsets(encoding):
    """Yield `(place, (start, end))` of the tokens that are not special."""
    special = encoding.special_tokens_mask
    return [(i, span) for i, span in enumerate(encoding.offsets) if not special[i]]
