"""Divergence of the self-attention relations of a student and a teacher."""

import math

import tensorflow as tf

from keras_efficient.distillation._attention_maps import attention_distance
from keras_efficient.flavor import Tensor
from keras_efficient.training._logits import wide


def relation_divergence(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, heads: int
) -> Tensor:
    """Return the divergence of relations between tokens, a mean over heads and real tokens.

    The relations of vectors A, the queries, keys or values of all heads side by side, divided
    anew into `heads` parts of size d, are softmax(A Aᵀ / √d): how much each token's vector
    resembles those of the others. They depend neither on the width nor on the heads of a model.

    Args:
        student: float `[examples, tokens, width]`.
        teacher: float `[examples, tokens, width of the teacher]`. It receives no gradient.
        mask: `[examples, tokens]`, nonzero for real tokens. Default: None, all are real.
        heads: int, number of relation heads; divides both widths.

    Returns:
        Float `[examples]`, at least float32, KL(teacher‖student); 0 for an example without a real
        token.

    Raises:
        ValueError: `heads` does not divide a width.

    Examples:
        >>> import numpy as np
        >>> queries = np.random.default_rng(0).normal(size=(2, 3, 8)).astype("float32")
        >>> wider = np.concatenate([queries, np.zeros_like(queries)], -1)
        >>> ke.distillation.relation_divergence(queries, wider, heads=4).shape
        TensorShape([2])

    Reference:
        Wang et al. 2021, "MiniLMv2: Multi-Head Self-Attention Relation Distillation for
        Compressing Pretrained Transformers".
    """
    return attention_distance(_relations(student, heads), _relations(teacher, heads), mask)


def _relations(vectors, heads):
    """Scores `[examples, heads, tokens, tokens]`."""
    vectors = wide(vectors)
    width = vectors.shape[-1]
    if width % heads:
        raise ValueError(
            "Relation heads must divide the widths of student and teacher. Received: "
            f"{heads} heads for a width of {width}. Give a common divisor."
        )
    shape = tf.concat([tf.shape(vectors)[:2], [heads, width // heads]], 0)
    parts = tf.transpose(tf.reshape(vectors, shape), [0, 2, 1, 3])
    parts = tf.ensure_shape(parts, [None, heads, None, width // heads])
    return tf.matmul(parts, parts, transpose_b=True) / math.sqrt(width // heads)
