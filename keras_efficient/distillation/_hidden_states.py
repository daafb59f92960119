"""Distance between the hidden states of a student and a teacher."""

import tensorflow as tf

from keras_efficient.flavor import Tensor
from keras_efficient.training._logits import wide

METRICS = ("mse", "cosine")


def hidden_state_distance(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    metric: str = "mse",
    projection: Tensor | None = None,
) -> Tensor:
    """Return the distance between hidden states, a mean over the real tokens of each example.

    "mse" is the mean of squared differences over the width; "cosine" is one minus the cosine of
    the angle between the two vectors of a token.

    Args:
        student: float `[examples, tokens, width]`.
        teacher: float `[examples, tokens, width of the teacher]`. It receives no gradient.
        mask: `[examples, tokens]`, nonzero for real tokens. Default: None, all are real.
        metric: "mse" or "cosine". Default: "mse".
        projection: float `[width, width of the teacher]`, applied to the student's hidden states,
            as is needed where the widths differ. Default: None.

    Returns:
        Float `[examples]`, at least float32; 0 for an example without a real token.

    Raises:
        ValueError: `metric` is unknown, or the widths differ and there is no `projection`.

    Examples:
        >>> import numpy as np
        >>> states = np.ones((2, 3, 4), "float32")
        >>> ke.distillation.hidden_state_distance(states, states + 1.0).numpy()
        array([1., 1.], dtype=float32)

    Reference:
        Jiao et al. 2020, "TinyBERT: Distilling BERT for Natural Language Understanding" (mse with
        a projection); Sanh et al. 2019, "DistilBERT" (cosine).
    """
    if metric not in METRICS:
        raise ValueError(f"`metric` must be one of {METRICS}. Received: {metric!r}.")
    student, teacher = wide(student), tf.stop_gradient(wide(teacher))
    if projection is not None:
        student = tf.tensordot(student, tf.cast(projection, student.dtype), 1)
    teacher = tf.cast(teacher, student.dtype)
    if student.shape[-1] != teacher.shape[-1]:
        raise ValueError(
            "Hidden states can be compared if they are equally wide. Received: widths "
            f"{student.shape[-1]} and {teacher.shape[-1]}. Give a projection, or compare relations "
            "of queries, keys and values, which need none."
        )
    if metric == "mse":
        distance = tf.reduce_mean(tf.square(student - teacher), -1)
    else:
        units = (tf.math.l2_normalize(x, -1, epsilon=1e-12) for x in (student, teacher))
        distance = 1.0 - tf.reduce_sum(tf.multiply(*units), -1)
    return token_mean(distance, mask)


def token_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean over the real tokens of each example.

    Args:
        values: float `[examples, tokens]` or `[examples, tokens, width]`.
        mask: `[examples, tokens]`, nonzero for real tokens, or None.

    Returns:
        Float `[examples]` or `[examples, width]`; 0 for an example without a real token.
    """
    if mask is None:
        return tf.reduce_mean(values, 1)
    real = tf.cast(mask, tf.bool)
    real = real if values.shape.rank == 2 else real[..., None]
    total = tf.reduce_sum(tf.where(real, values, tf.zeros_like(values)), 1)
    return tf.math.divide_no_nan(total, tf.reduce_sum(tf.cast(real, values.dtype), 1))
