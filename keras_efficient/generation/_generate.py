"""`generate`: continue sequences of tokens with a function that computes the next logits."""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from keras_efficient._errors import InputError
from keras_efficient.flavor._typing import Tensor
from keras_efficient.generation._beam_search import beam_search
from keras_efficient.generation._strategies import Beam, Greedy, Strategy


class Generated(NamedTuple):
    """Sequences that `generate` returns.

    Attributes:
        ids: int32 `[batch, given + max_tokens]`, the given tokens, the generated ones with the one
            that ends them, and padding.
        lengths: int32 `[batch]`, the number of tokens without padding.
        scores: float32 `[batch]`, the sum of the log-probabilities of the generated tokens.
    """

    ids: Tensor
    lengths: Tensor
    scores: Tensor


def generate(
    step: Callable[[Tensor, Tensor, Any], tuple[Tensor, Any]],
    state: Any,
    ids: Tensor,
    *,
    max_tokens: int,
    end_id: int,
    lengths: Tensor | None = None,
    pad_id: int = 0,
    strategy: Strategy = Greedy(),  # noqa: B008 - immutable
) -> Generated:
    """Continue sequences of tokens: greedily, at random, or with beam search.

    The tokens are generated in one `tf.while_loop`, which becomes part of an exported graph when
    this is called within a `tf.function`. It ends when all sequences have ended. The state usually
    holds keys and values of the attention layers for the whole length, `given + max_tokens`, into
    which `step` writes those of its token.

    Sequences may begin with different numbers of given tokens. Then all of them start at the end
    of the shortest, and the further given tokens are fed in place of generated ones.

    Args:
        step: Function of token ids, int32 `[rows]`; their index in the sequence, an int32 scalar,
            the same for all rows; and a state. It returns logits of the next token, float
            `[rows, vocabulary]`, and the new state, whose tensors have the same shapes and types.
            There are `batch` rows, or `batch * width` with a beam.
        state: Nested structure of tensors `[batch, ...]`: the state after the tokens before index
            `min(lengths) - 1`, which is the first that `step` is called with. Without `lengths`
            that is the last column of `ids`.
        ids: Int32 `[batch, given]`, at least one given token for each sequence. A decoder starts
            with the token that begins every target.
        max_tokens: Largest number of tokens to generate for each sequence.
        end_id: Token that ends a sequence.
        lengths: Int32 `[batch]`, the number of given tokens of each sequence, from 1 to `given`;
            what follows them in `ids` is ignored. Default: None, all of `ids`.
        pad_id: Token that follows the end of a sequence. Default: 0.
        strategy: `ke.generation.Greedy()`, `Sample(...)` or `Beam(...)`. Default: `Greedy()`.

    Returns:
        `Generated`: ids, lengths and scores.

    Raises:
        InputError: `max_tokens` is not a number of tokens, or `strategy` is none of these.

    Examples:
        >>> import tensorflow as tf
        >>> def count(ids, index, state):
        ...     return tf.one_hot(ids + 1, 9) * 10, state
        >>> generated = ke.generation.generate(count, (), [[2, 3], [6, 7]], max_tokens=3, end_id=8)
        >>> generated.ids.numpy().tolist(), generated.lengths.numpy().tolist()
        ([[2, 3, 4, 5, 6], [6, 7, 8, 0, 0]], [5, 3])

    Reference:
        `keras_hub.samplers`; `transformers.GenerationMixin.generate`.
    """
    if type(max_tokens) is not int or max_tokens < 1:
        raise InputError(
            f"`max_tokens` must be a number of tokens. Received: {max_tokens!r}. Give for example "
            "64."
        )
    if not isinstance(strategy, Strategy):
        raise InputError(
            "`strategy` must be ke.generation.Greedy(), Sample(...) or Beam(...). Received: "
            f"{strategy!r:.80}. Make one of these."
        )
    tokens: Any = tf.convert_to_tensor(ids, tf.int32)
    batch, given = tf.unstack(tf.shape(tokens))
    first: Any = tf.fill([batch], given) if lengths is None else tf.cast(lengths, tf.int32)
    tokens = tf.pad(tokens, [[0, 0], [0, max_tokens]], constant_values=pad_id)
    search = beam_search if isinstance(strategy, Beam) else _one_sequence
    tokens, ends, scores = search(step, state, tokens, first, max_tokens, end_id, pad_id, strategy)
    columns = tf.range(tf.shape(tokens)[1])
    return Generated(tf.where(columns < ends[:, None], tokens, pad_id), ends, scores)


def _one_sequence(step, state, ids, lengths, max_tokens, end_id, pad_id, strategy):
    """Return ids, lengths and scores of one sequence for each row."""
    total = tf.shape(ids)[1]
    columns = tf.range(total)

    def body(index, ids, ended, ends, scores, state):
        logits, new = step(ids[:, index], index, state)
        state = tf.nest.map_structure(lambda old, new: tf.ensure_shape(new, old.shape), state, new)
        logits = tf.cast(logits, tf.float32)
        chosen = strategy.choose(logits, index)
        index += 1
        is_given = index < lengths
        adds = ~(is_given | ended)
        gained = tf.gather(tf.nn.log_softmax(logits), chosen, axis=-1, batch_dims=1)
        scores += tf.where(adds, gained, 0.0)
        chosen = tf.where(is_given, ids[:, index], tf.where(ended, pad_id, chosen))
        ids = tf.where(columns == index, chosen[:, None], ids)
        ends = tf.where(adds, index + 1, ends)
        ended |= adds & ((chosen == end_id) | (index + 1 >= lengths + max_tokens))
        return index, ids, ended, ends, scores, state

    state = tf.nest.map_structure(tf.convert_to_tensor, state)
    zeros = tf.zeros_like(lengths, tf.float32)
    start = (tf.reduce_min(lengths) - 1, ids, tf.zeros_like(lengths, tf.bool), lengths, zeros)
    _, ids, _, ends, scores, _ = tf.while_loop(
        lambda index, ids, ended, *_: (index < total - 1) & ~tf.reduce_all(ended),
        body,
        (*start, state),
        parallel_iterations=1,
    )
    return ids, ends, scores
