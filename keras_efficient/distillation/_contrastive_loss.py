"""Contrastive loss between pooled hidden states of a student and a teacher."""

import tensorflow as tf

from keras_efficient.flavor import Tensor
from keras_efficient.training._logits import wide

#: Negatives whose cosine with the teacher's vector is larger are the example itself.
_SAME = 1.0 - 1e-5


def contrastive_loss(
    student: Tensor,
    teacher: Tensor,
    negatives: Tensor,
    *,
    temperature: float = 0.1,
    projection: Tensor | None = None,
) -> Tensor:
    """Return InfoNCE at each example: how well the teacher's vector is told from others.

    With s, t and n_k of unit length:

        L = -log [ exp(s·t / τ) / (exp(s·t / τ) + Σ_k exp(s·n_k / τ)) ]

    The negatives are given and not taken from the batch, so the loss of an example does not depend
    on the others. Negatives that are the example's own vector t are left out of the sum.

    Args:
        student: float `[examples, width]`.
        teacher: float `[examples, width of the teacher]`. It receives no gradient.
        negatives: float `[number, width of the teacher]`, the teacher's vectors of other examples.
            They receive no gradient.
        temperature: float > 0, τ. Default: 0.1.
        projection: float `[width, width of the teacher]`, applied to the student's vectors, as is
            needed where the widths differ. Default: None.

    Returns:
        Float `[examples]`, at least float32.

    Raises:
        ValueError: the widths differ and there is no `projection`.

    Examples:
        >>> import numpy as np
        >>> one, other = np.eye(2, dtype="float32")
        >>> loss = ke.distillation.contrastive_loss(one[None], one[None], other[None])
        >>> bool(loss[0] < 0.001)
        True

    Reference:
        Tian et al. 2020, "Contrastive Representation Distillation", which draws negatives from a
        memory of the training set; Sun et al. 2020, "CoDIR"; van den Oord et al. 2018, "CPC"
        (InfoNCE).
    """
    student, teacher = wide(student), tf.stop_gradient(wide(teacher))
    if projection is not None:
        student = tf.matmul(student, tf.cast(projection, student.dtype))
    teacher = tf.cast(teacher, student.dtype)
    negatives = tf.stop_gradient(tf.cast(negatives, student.dtype))
    if student.shape[-1] != teacher.shape[-1]:
        raise ValueError(
            "Vectors can be compared if they are equally wide. Received: widths "
            f"{student.shape[-1]} and {teacher.shape[-1]}. Give a projection."
        )
    s, t, n = (tf.math.l2_normalize(x, -1, epsilon=1e-12) for x in (student, teacher, negatives))
    positive = tf.reduce_sum(s * t, -1, keepdims=True) / temperature
    others = tf.matmul(s, n, transpose_b=True) / temperature
    same = tf.matmul(t, n, transpose_b=True) > _SAME
    others = tf.where(same, tf.constant(-float("inf"), others.dtype), others)
    return tf.reduce_logsumexp(tf.concat([positive, others], -1), -1) - positive[:, 0]
