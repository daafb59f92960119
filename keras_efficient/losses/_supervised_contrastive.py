"""Supervised contrastive loss: embeddings of one class attract each other."""

import tensorflow as tf

from keras_efficient.flavor import Tensor
from keras_efficient.losses._similarity import check_shapes, check_temperature, normalized


def supervised_contrastive(
    embeddings: Tensor, labels: Tensor, *, temperature: float = 0.1
) -> Tensor:
    """Return the supervised contrastive loss of each example.

    With z of unit length, P(i) the other examples of the class of i and A(i) all other examples:

        Lᵢ = -1 / |P(i)| · Σₚ log [ exp(zᵢ·zₚ / τ) / Σₐ exp(zᵢ·zₐ / τ) ]        p ∈ P(i), a ∈ A(i)

    It is the form called L_out. An example that is alone in its class has the loss 0.

    Args:
        embeddings: Float `[examples, width]`.
        labels: Int `[examples]`, the class of each.
        temperature: Float > 0, τ. Default: 0.1.

    Returns:
        Float `[examples]`, float32 unless the embeddings are float64.

    Raises:
        ValueError: A shape does not fit, or `temperature` is not positive.

    Examples:
        >>> import numpy as np
        >>> z = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> ke.losses.supervised_contrastive(z, [0, 0, 1], temperature=1.0).numpy()[:2].round(3)
        array([0.313, 0.313])

    Reference:
        Khosla et al. 2020, "Supervised Contrastive Learning"; for texts Gunel et al. 2021,
        "Supervised Contrastive Learning for Pre-trained Language Model Fine-tuning".
    """
    check_temperature(temperature)
    z, labels = normalized(embeddings), tf.convert_to_tensor(labels)
    check_shapes({"embeddings": z})
    if labels.shape.rank != 1 or not labels.dtype.is_integer:
        raise ValueError(
            "`labels` must be an int class per example, [examples]. Received: "
            f"{labels.dtype.name} {tuple(labels.shape)}. Name the classes by numbers from 0."
        )
    similarity = tf.matmul(z, z, transpose_b=True) / temperature
    others = 1.0 - tf.eye(tf.shape(z)[0], dtype=z.dtype)
    least = tf.constant(similarity.dtype.min, similarity.dtype)
    masked = tf.where(others > 0, similarity, least)
    log_probability = similarity - tf.reduce_logsumexp(masked, -1, keepdims=True)
    positive = others * tf.cast(labels[:, None] == labels[None], z.dtype)
    # Of a single example no other exists, and the logarithm is no number that counts.
    total = tf.reduce_sum(tf.where(positive > 0, log_probability, tf.zeros_like(masked)), -1)
    return tf.math.divide_no_nan(-total, tf.reduce_sum(positive, -1))
