"""The rows of causal language modelling: the tokens of texts between a start and an end token."""

from collections.abc import Callable, Sequence

import numpy as np

from keras_efficient._errors import InputError
from keras_efficient.data._tokenizer import Tokenizer


def next_token_rows(
    texts: Sequence[str],
    second_texts: Sequence[str] | None,
    tokenizer: Tokenizer,
    max_length: int,
    describe: Callable[[int], str],
) -> tuple[list[np.ndarray], list[np.ndarray] | None, int, int]:
    """Return tokens, each of which but the last is an input, and each but the first a label.

    A text begins with the tokenizer's start token and is followed by its end token. A text that is
    truncated has no end token. Of pairs, prompts and completions, only completions are labels.

    Args:
        texts: The texts, or the prompts.
        second_texts: The completions, or None.
        tokenizer: Their tokenizer, with a start and an end token.
        max_length: Number of tokens to which texts are truncated, start and end included.
        describe: Function of a position that returns the beginning of that text and its origin.

    Returns:
        `(rows, segments, truncated, longest)`: int32 arrays `[tokens]`; of pairs uint8 arrays, 1
        for tokens that are labels, otherwise None; the number of truncated texts; and the number of
        tokens of the longest text before truncation.

    Raises:
        InputError: A text has no token that is a label, or the tokenizer has no start or end token.
    """
    start, end = tokenizer.start_id, tokenizer.end_id
    if start is None or end is None:
        raise InputError(
            "Causal language modelling needs a tokenizers.Tokenizer with tokens for the start and "
            f"the end of a text, such as <|endoftext|>, <s> and </s>. Received: {tokenizer!r}, "
            "without them. Load a model that was pretrained so, or train a tokenizer with "
            "ke.data.train_tokenizer."
        )
    encoded = tokenizer.encode_without_special(texts)
    seconds = None
    if second_texts is not None:
        seconds = tokenizer.encode_without_special(second_texts)
    rows, segments, truncated, longest = [], [], 0, 0
    for number, text in enumerate(encoded):
        second = [] if seconds is None else seconds[number]
        row = np.concatenate([[start], text, second, [end]]).astype(np.int32)
        prompt = 1 if seconds is None else 1 + len(text)
        truncated += len(row) > max_length
        longest = max(longest, len(row))
        row = row[:max_length]
        if len(row) <= prompt:
            raise InputError(
                "Each text must have a token to predict. Received: "
                f"{describe(number)}, of whose completion {max_length} tokens leave none. "
                "Remove it, shorten the prompt, or raise `max_length`."
            )
        rows.append(row)
        segments.append((np.arange(len(row)) >= prompt).astype(np.uint8))
    return rows, None if seconds is None else segments, truncated, longest
