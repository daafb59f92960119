"""`generate_text`: continue prompts with a causal language model in memory."""

from collections.abc import Sequence
from typing import Any

from keras_efficient._errors import InputError
from keras_efficient.data._tokenizer import as_tokenizer
from keras_efficient.flavor._typing import Model


def generate_text(
    model: Model,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_tokens: int = 64,
    strategy: Any = None,
) -> list[str]:
    """Continue prompts with a causal language model in memory, of either library.

    Keys and values of earlier tokens are cached, and the tokens are generated in one TensorFlow
    loop. Special tokens are left out of the texts.

    Args:
        model: A KerasHub `CausalLM`, or a transformers `TFGPT2LMHeadModel`.
        tokenizer: Its `ke.data.Tokenizer`.
        prompts: Beginnings of texts; "" for whole texts.
        max_tokens: Largest number of tokens to generate for each prompt. Default: 64.
        strategy: `ke.generation.Greedy()`, `Sample(...)` or `Beam(...)`. Default: None, greedy.

    Returns:
        What follows each prompt.

    Raises:
        InputError: There is no prompt, one is too long for the model with `max_tokens` more, or the
            model or tokenizer is of another kind.

    Examples:
        >>> tokenizer = ke.data.train_tokenizer(["a fine film"] * 9, vocabulary_size=300)
        >>> model, tokenizer = ke.models.create(tokenizer, num_layers=1, hidden_dim=8, num_heads=2)
        >>> texts = ke.models.generate_text(model, tokenizer, ["a fine"], max_tokens=4)
        >>> len(texts)
        1

    Reference:
        `keras_hub.models.CausalLM.generate`; `transformers.GenerationMixin.generate`.
    """
    import numpy as np
    import tensorflow as tf

    from keras_efficient.generation._causal_steps import causal_steps
    from keras_efficient.generation._generate import generate
    from keras_efficient.generation._strategies import Greedy

    steps, tokenizer = causal_steps(model), as_tokenizer(tokenizer)
    if isinstance(prompts, str) or not len(prompts):
        raise InputError(
            f"`prompts` must be a list of strings, at least one. Received: {prompts!r:.80}. Give "
            "for example ['Once upon a time']."
        )
    start, end = tokenizer.start_id, tokenizer.end_id
    rows = [[start, *ids] for ids in tokenizer.encode_without_special(prompts)]
    lengths = np.array([len(row) for row in rows], np.int32)
    total = int(lengths.max()) + max_tokens
    if total > tokenizer.max_length:
        raise InputError(
            f"A prompt and what follows it may have {tokenizer.max_length} tokens. Received: a "
            f"prompt of {lengths.max()} tokens with max_tokens={max_tokens}. Shorten the prompt, "
            "or lower `max_tokens`."
        )
    ids = np.full((len(rows), lengths.max()), tokenizer.pad_id, np.int32)
    for row, own in zip(ids, rows, strict=True):
        row[: len(own)] = own

    # The libraries' layers are not converted by AutoGraph.
    @tf.function(autograph=False)
    def run(ids, lengths):
        return generate(
            steps.step,
            steps.start(ids, tf.shape(ids)[1] + max_tokens),
            ids,
            lengths=lengths,
            max_tokens=max_tokens,
            end_id=end,
            pad_id=tokenizer.pad_id,
            strategy=Greedy() if strategy is None else strategy,
        )

    found = run(tf.constant(ids), tf.constant(lengths))
    ends = found.lengths.numpy()
    return tokenizer.decode(
        [row[a:b] for row, a, b in zip(found.ids.numpy(), lengths, ends, strict=True)]
    )
