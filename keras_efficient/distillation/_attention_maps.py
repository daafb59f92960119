"""Distance between the attention probabilities of a student and a teacher."""

import tensorflow as tf

from keras_efficient.distillation._hidden_states import token_mean
from keras_efficient.flavor import Tensor
from keras_efficient.training._logits import wide

MAP_METRICS = ("mse", "kl")


def attention_distance(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, metric: str = "kl"
) -> Tensor:
    """Return the distance between attention maps, a mean over heads and real tokens as queries.

    "kl" is the Kullback-Leibler divergence KL(teacher‖student) of the probabilities of each query;
    "mse" is the squared difference of probabilities, a mean over the real tokens as keys. Padding
    is neither a query nor a key.

    Args:
        student: float `[examples, heads, tokens, tokens]`, scores before the softmax.
        teacher: likewise. It receives no gradient.
        mask: `[examples, tokens]`, nonzero for real tokens. Default: None, all are real.
        metric: "kl" or "mse". Default: "kl".

    Returns:
        Float `[examples]`, at least float32; 0 for an example without a real token.

    Raises:
        ValueError: `metric` is unknown, or the numbers of heads differ.

    Examples:
        >>> import numpy as np
        >>> scores = np.random.default_rng(0).normal(size=(2, 4, 3, 3)).astype("float32")
        >>> ke.distillation.attention_distance(scores, scores).numpy()
        array([0., 0.], dtype=float32)

    Reference:
        Jiao et al. 2020, "TinyBERT" ("mse"); Wang et al. 2020, "MiniLM" ("kl").
    """
    if metric not in MAP_METRICS:
        raise ValueError(f"`metric` must be one of {MAP_METRICS}. Received: {metric!r}.")
    student, teacher = wide(student), tf.stop_gradient(wide(teacher))
    teacher = tf.cast(teacher, student.dtype)
    if student.shape[1] != teacher.shape[1]:
        raise ValueError(
            "Attention maps can be compared head by head. Received: "
            f"{student.shape[1]} heads in the student and {teacher.shape[1]} in the teacher. "
            "Compare relations of queries, keys and values, which do not depend on heads."
        )
    if mask is not None:
        real = tf.cast(mask, tf.bool)[:, None, None, :]
        student, teacher = (tf.where(real, x, _far(x)) for x in (student, teacher))
    log_p, log_q = tf.nn.log_softmax(teacher), tf.nn.log_softmax(student)
    if metric == "kl":
        # Masked keys have the probability 0 in the teacher.
        per_query = tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), -1)
    else:
        squares = tf.square(tf.exp(log_p) - tf.exp(log_q))
        keys = tf.cast(tf.shape(squares)[-1], squares.dtype)
        if mask is not None:
            keys = tf.reduce_sum(tf.cast(real, squares.dtype), -1)
        per_query = tf.math.divide_no_nan(tf.reduce_sum(squares, -1), keys)
    return token_mean(tf.reduce_mean(per_query, 1), mask)


def _far(like):
    return tf.constant(-1e9, like.dtype)
