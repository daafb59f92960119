"""Divergence of a student's predictions from a teacher's."""

from typing import Any

import tensorflow as tf

from keras_efficient.flavor import Tensor
from keras_efficient.training._logits import wide

DIVERGENCES = ("forward_kl", "reverse_kl", "jensen_shannon", "mse")


def soft_target_divergence(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    divergence: str = "forward_kl",
) -> Tensor:
    """Return the divergence of a student's predictions from a teacher's at each position.

    With p = softmax(teacher / T), q = softmax(student / T) and m = (p + q) / 2:

        forward_kl      T² · KL(p‖q)
        reverse_kl      T² · KL(q‖p)
        jensen_shannon  T² · (KL(p‖m) + KL(q‖m)) / 2
        mse             mean over classes of (student - teacher)²

    The factor T² keeps gradients about as large at all temperatures.

    Args:
        student: float `[..., classes]`, logits; log-probabilities will do.
        teacher: likewise. It receives no gradient.
        temperature: float > 0, T; "mse" ignores it. Default: 1.0.
        divergence: one of the four above. Default: "forward_kl".

    Returns:
        Float `[...]`, at least float32.

    Raises:
        ValueError: `divergence` is unknown, or the numbers of classes differ.

    Examples:
        >>> import numpy as np
        >>> logits = np.array([[2.0, 0.0]], "float32")
        >>> ke.distillation.soft_target_divergence(logits, logits, temperature=2.0).numpy()
        array([0.], dtype=float32)

    Reference:
        Hinton et al. 2015, "Distilling the Knowledge in a Neural Network" (temperature); Agarwal
        et al. 2024, "On-Policy Distillation of Language Models" (reverse, Jensen-Shannon); Ba &
        Caruana 2014, "Do Deep Nets Really Need to be Deep?" (logits).
    """
    check_divergence(divergence)
    student, teacher = wide(student), tf.stop_gradient(wide(teacher))
    teacher = tf.cast(teacher, student.dtype)
    if not student.shape[-1:].is_compatible_with(teacher.shape[-1:]):
        raise ValueError(
            "Student and teacher must predict the same classes. Received: outputs of shapes "
            f"{student.shape} and {teacher.shape}. Train a teacher on the student's labels."
        )
    if divergence == "mse":
        return tf.reduce_mean(tf.square(student - teacher), -1)
    log_p, log_q = (tf.nn.log_softmax(x / temperature) for x in (teacher, student))
    if divergence == "forward_kl":
        value = _kl(log_p, log_q)
    elif divergence == "reverse_kl":
        value = _kl(log_q, log_p)
    else:
        # log((p + q) / 2), without the logarithm of a probability that has become zero.
        larger, smaller = tf.maximum(log_p, log_q), tf.minimum(log_p, log_q)
        log_m = larger + tf.math.log1p(tf.exp(smaller - larger)) - tf.math.log(_two(larger))
        value = 0.5 * (_kl(log_p, log_m) + _kl(log_q, log_m))
    return value * temperature**2


def check_divergence(divergence: Any) -> None:
    """Require one of `DIVERGENCES`.

    Raises:
        ValueError: it is another value.
    """
    if divergence not in DIVERGENCES:
        raise ValueError(f"`divergence` must be one of {DIVERGENCES}. Received: {divergence!r}.")


def _kl(log_p, log_q):
    return tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), -1)


def _two(like):
    return tf.constant(2.0, like.dtype)
