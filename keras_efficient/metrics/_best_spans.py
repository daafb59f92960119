"""`best_spans`: the most probable answer in each window, and the probability of none."""

from typing import Any

import tensorflow as tf

from keras_efficient.flavor._typing import Tensor

#: Number of tokens of the longest answer, as in the scripts of SQuAD.
MAX_ANSWER_TOKENS = 30


def best_spans(logits: Any, context: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the most probable answer in each window, and the probability that there is none.

    The probability of a span is that of its first token times that of its last token, from two
    softmaxes over the tokens of the context and the first special token, which stands for no
    answer. A span has at most 30 tokens.

    Args:
        logits: float `[windows, 2, tokens]`, of the first and the last token.
        context: bool `[windows, tokens]`, whether a token is one of the context.

    Returns:
        int32 `[windows]`, the first and the last token of the span; float32 `[windows]`, its
        probability, 0 in a window without context; and float32 `[windows]`, that of no answer.

    Reference:
        The question-answering pipeline of Hugging Face.
    """
    logits = tf.cast(logits, tf.float32)
    context = tf.cast(context, tf.bool)
    length = tf.shape(logits)[2]
    allowed = context | (tf.range(length)[None] == 0)
    scores = tf.nn.softmax(tf.where(allowed[:, None], logits, tf.float32.min))
    none = scores[:, 0, 0] * scores[:, 1, 0]
    first, last = (tf.where(context, scores[:, i], 0.0) for i in range(2))
    later = tf.pad(last, [[0, 0], [0, MAX_ANSWER_TOKENS - 1]])
    spans = [first * later[:, more : more + length] for more in range(MAX_ANSWER_TOKENS)]
    # The shortest of equally probable spans comes first.
    flat = tf.reshape(tf.stack(spans, 1), [-1, MAX_ANSWER_TOKENS * length])
    best = tf.argmax(flat, axis=1, output_type=tf.int32)
    start = tf.math.floormod(best, length)
    return start, start + best // length, tf.reduce_max(flat, axis=1), none
