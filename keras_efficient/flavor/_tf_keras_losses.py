"""Denominators and weights of tf_keras losses, recorded while they are computed."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import tensorflow as tf
import tf_keras

# `tf_keras.losses` has no public hook for the denominator of a loss or its division by replicas.
from tf_keras.src.utils import losses_utils as _losses_utils

from keras_efficient.flavor._forward import EXAMPLES, SUM, LossWeights
from keras_efficient.flavor._patched import patched


def without_replica_scaling() -> AbstractContextManager[None]:
    """Keep tf_keras from dividing losses by the number of replicas inside the block."""
    return patched(_losses_utils, scale_loss_for_distribution=lambda value: value)


@contextmanager
def recorded() -> Iterator[list]:
    """Yield a list that receives the `LossWeights` of each loss computed inside the block."""
    found, apply_mask = [], _losses_utils.apply_valid_mask

    def record(losses, sample_weight, mask, reduction):
        divisor = _denominator(mask, reduction)
        found.append(LossWeights(divisor, losses, sample_weight, mask))
        return apply_mask(losses, sample_weight, mask, reduction)

    with patched(_losses_utils, apply_valid_mask=record):
        yield found


def _denominator(mask, reduction):
    reductions = tf_keras.losses.Reduction
    if reduction in (reductions.SUM, reductions.NONE):
        return SUM
    return EXAMPLES if mask is None else tf.reduce_sum(tf.cast(mask, tf.float32))
