"""`span_logits`: the logits of a head of spans, with tokens outside of the context masked."""

from typing import Any

import tensorflow as tf

from keras_efficient.flavor._ignored_label import MASKED
from keras_efficient.flavor._typing import Tensor


def span_logits(logits: Any, ids: Any, mask: Any, separator: int) -> Tensor:
    """Return logits over the tokens that an answer may begin or end with.

    These are the first special token, which stands for no answer, and the tokens of the context,
    which come after the first separator. All tokens of a text without a separator are kept. Others
    have a logit of -100.

    Args:
        logits: float `[batch, tokens, 2]`, of the first and the last token of an answer.
        ids: int `[batch, tokens]`, ids of the tokens.
        mask: int `[batch, tokens]`, 1 for tokens and 0 for padding.
        separator: id of the special token between question and context.

    Returns:
        float `[batch, 2, tokens]`, of the type of `logits`.
    """
    separators = tf.cast(tf.equal(ids, separator), tf.int32)
    after = tf.cumsum(separators, axis=1) > 0
    without = tf.reduce_sum(separators, axis=1, keepdims=True) == 0
    context = (after | without) & (separators == 0) & (tf.cast(mask, tf.int32) > 0)
    kept = context | (tf.range(tf.shape(ids)[1])[None] == 0)
    rows = tf.transpose(logits, [0, 2, 1])
    return tf.where(kept[:, None], rows, tf.constant(MASKED, rows.dtype))
