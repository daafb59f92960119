"""Cosine similarities of embeddings, which the contrastive losses share."""

from numbers import Real

import tensorflow as tf

from keras_efficient.flavor import Tensor


def normalized(embeddings: Tensor) -> Tensor:
    """Return embeddings of unit length, in float32 unless they are float64."""
    embeddings = tf.convert_to_tensor(embeddings)
    if embeddings.dtype != tf.float64:
        embeddings = tf.cast(embeddings, tf.float32)
    return tf.math.l2_normalize(embeddings, -1, epsilon=1e-12)


def check_temperature(temperature: float) -> None:
    """Require a positive number.

    Raises:
        ValueError: it is none.
    """
    if isinstance(temperature, bool) or not isinstance(temperature, Real) or not temperature > 0:
        raise ValueError(
            f"`temperature` must be a number > 0. Received: {temperature!r}. Give for example 0.05."
        )


def check_shapes(embeddings: dict[str, Tensor]) -> None:
    """Require embeddings `[rows, width]`, all equally wide.

    Raises:
        ValueError: they are not.
    """
    shapes = [tensor.shape for tensor in embeddings.values()]
    widths = {shape[-1] for shape in shapes if shape.rank == 2} - {None}
    if any(shape.rank != 2 for shape in shapes) or len(widths) > 1:
        found = ", ".join(f"{name} {tuple(t.shape)}" for name, t in embeddings.items())
        raise ValueError(
            "Embeddings that are compared must have the shape [examples, width], with one width. "
            f"Received: {found}. Pool the hidden states of tokens to one vector per text first."
        )
