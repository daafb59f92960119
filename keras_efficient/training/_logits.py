"""A model's outputs as logits, whether they are logits or probabilities."""

import tensorflow as tf

from keras_efficient.flavor import Tensor


def logits_of(outputs: Tensor, from_logits: bool, independent: bool = False) -> Tensor:
    """Return outputs as logits `[..., classes]` whose softmax gives the probabilities.

    A single output `[..., 1]` is that of the second of two classes.

    Args:
        outputs: float `[..., classes]`, logits or probabilities.
        from_logits: whether they are logits.
        independent: whether each output is a choice of its own, as several labels of one example
            are; the result is `[..., classes, 2]`. Default: False.
    """
    outputs = wide(outputs)
    pairs = independent or outputs.shape[-1] == 1
    if pairs:
        outputs = outputs[..., None] if independent else outputs
        other = tf.zeros_like(outputs) if from_logits else 1.0 - outputs
        outputs = tf.concat([other, outputs], -1)
    return outputs if from_logits else tf.math.log(tf.clip_by_value(outputs, 1e-7, 1.0))


def wide(tensor: Tensor) -> Tensor:
    """Return a tensor in float32, unless it is float64."""
    tensor = tf.convert_to_tensor(tensor)
    return tensor if tensor.dtype == tf.float64 else tf.cast(tensor, tf.float32)
