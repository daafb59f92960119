"""`NextTokens`: the tokens of texts, each labelled with the next one."""

import numpy as np

from keras_efficient._errors import InputError
from keras_efficient.data._records import Records
from keras_efficient.data._token_store import MemoryTokens, check_not_empty
from keras_efficient.data._tokenizer import Tokenizer
from keras_efficient.flavor._ignored_label import IGNORED


class NextTokens(MemoryTokens):
    """The tokens of records, each labelled with the next one, for causal language modelling.

    A text begins with the tokenizer's start token and is followed by its end token, which is a
    label too. The end of a text that was truncated is none. Of pairs, prompts and completions, the
    prompt is not a label: its tokens are labelled -100, so that the loss ignores them.

    Args:
        records: The records; those with a second text are prompts and completions.
        tokenizer: Their tokenizer, with a start and an end token.
        max_length: Number of tokens to which texts are truncated, start and end included.

    Attributes:
        lengths, labels, labels_per_token, max_length, truncated, longest, pairs: As those of
            `MemoryTokens`.

    Raises:
        InputError: There are no texts, one has no label that counts, or the tokenizer has no start
            or end token.
    """

    def __init__(self, records: Records, tokenizer: Tokenizer, max_length: int):
        check_not_empty(records)
        start, end = tokenizer.start_id, tokenizer.end_id
        if start is None or end is None:
            raise InputError(
                "Causal language modelling needs a tokenizers.Tokenizer with tokens for the start "
                "and the end of a text, such as <|endoftext|>, <s> and </s>. Received: "
                f"{tokenizer!r}, without them. Load a model that was pretrained so, or train a "
                "tokenizer with ke.data.train_tokenizer."
            )
        self.records, self.max_length = records, max_length
        self.pairs, self.labels_per_token = False, True
        texts = tokenizer.encode_without_special(records.texts)
        seconds = None
        if records.second_texts is not None:
            seconds = tokenizer.encode_without_special(records.second_texts)
        ids, labels = [], []
        for number, text in enumerate(texts):
            parts = [[start], text, [] if seconds is None else seconds[number], [end]]
            row = np.concatenate(parts).astype(np.int32)
            prompt = 1 if seconds is None else 1 + len(text)
            label = np.where(np.arange(1, len(row)) < prompt, IGNORED, row[1:])
            # Of the inputs the last token is not: nothing follows it.
            ids.append(row[:-1][: max_length - 1])
            labels.append(label[: max_length - 1].astype(np.int32))
        whole = np.array([len(text) for text in texts], np.int64) + 2
        if seconds is not None:
            whole += [len(text) for text in seconds]
        self.truncated, self.longest = int((whole > max_length).sum()), int(whole.max())
        for number, label in enumerate(labels):
            if (label == IGNORED).all():
                raise InputError(
                    "Each text must have a token to predict. Received: "
                    f"{self.describe(number)}, of whose completion {max_length} tokens leave none. "
                    "Remove it, shorten the prompt, or raise `max_length`."
                )
        self.labels = np.concatenate(labels)
        self._store(ids)
