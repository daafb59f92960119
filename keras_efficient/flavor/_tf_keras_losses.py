"""Denominators of tf_keras losses, recorded while they are computed."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import tensorflow as tf
import tf_keras

# `tf_keras.losses` has no public hook for the denominator of a loss or its division by replicas.
from tf_keras.src.utils import losses_utils as _losses_utils

from keras_efficient.flavor._forward import EXAMPLES, SUM
from keras_efficient.flavor._patched import patched


def without_replica_scaling() -> AbstractContextManager[None]:
    """Keep tf_keras from dividing losses by the number of replicas inside the block."""
    return patched(_losses_utils, scale_loss_for_distribution=lambda value: value)


@contextmanager
def recorded_denominators() -> Iterator[list]:
    """Yield a list that receives the denominator of each loss computed inside the block."""
    denominators, apply_mask = [], _losses_utils.apply_valid_mask
    reductions = tf_keras.losses.Reduction

    def record(losses, sample_weight, mask, reduction):
        if reduction in (reductions.SUM, reductions.NONE):
            denominators.append(SUM)
        elif mask is None:
            denominators.append(EXAMPLES)
        else:
            denominators.append(tf.reduce_sum(tf.cast(mask, tf.float32)))
        return apply_mask(losses, sample_weight, mask, reduction)

    with patched(_losses_utils, apply_valid_mask=record):
        yield denominators


@contextmanager
def recorded_values() -> Iterator[list]:
    """Yield a list that receives the values of each loss computed inside the block, unreduced."""
    values, apply_mask = [], _losses_utils.apply_valid_mask

    def record(losses, *args, **kwargs):
        values.append(losses)
        return apply_mask(losses, *args, **kwargs)

    with patched(_losses_utils, apply_valid_mask=record):
        yield values
