"""Denominators and weights of Keras 3 losses, recorded while they are computed."""

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import tensorflow as tf

# `keras.losses` has no public hook for the denominator of a loss or its division by replicas.
from keras.src.losses import loss as _loss_module

from keras_efficient.flavor._forward import EXAMPLES, SUM, LossWeights
from keras_efficient.flavor._patched import patched


def without_replica_scaling() -> AbstractContextManager[None]:
    """Keep Keras from dividing losses by the number of replicas inside the block."""
    names = ("scale_loss_for_distribution", "unscale_loss_for_distribution")
    return patched(_loss_module, **dict.fromkeys(names, _identity))


def _identity(value):
    return value


@contextmanager
def weighted_by_examples(trackers: list, examples: Any) -> Iterator[None]:
    """Make the loss trackers of the outputs weight a microbatch by its number of examples.

    Keras uses the static batch size, which is unknown in a loop.
    """
    with ExitStack() as stack:
        for tracker in trackers:
            update = functools.partial(_update, tracker.update_state, examples)
            stack.enter_context(patched(tracker, update_state=update))
        yield


def _update(update, examples, value, sample_weight=None):
    return update(value, sample_weight=examples)


@contextmanager
def recorded() -> Iterator[list]:
    """Yield a list that receives the `LossWeights` of each loss computed inside the block."""
    found, reduce = [], _loss_module.reduce_weighted_values

    def record(values, sample_weight=None, mask=None, reduction="sum_over_batch_size", dtype=None):
        standard = _loss_module.standardize_reduction(reduction)
        divisor = _denominator(sample_weight, mask, standard)
        found.append(LossWeights(divisor, values, sample_weight, mask))
        return reduce(values, sample_weight, mask, reduction, dtype)

    with patched(_loss_module, reduce_weighted_values=record):
        yield found


def _denominator(sample_weight, mask, reduction) -> Any:
    """Return the denominator that Keras' `reduce_weighted_values` uses."""
    if reduction in ("sum", "none", None):
        return SUM
    if reduction == "mean_with_sample_weight":
        weight: Any = _loss_module.apply_mask(sample_weight, mask, "float64", reduction)
        return EXAMPLES if weight is None else tf.reduce_sum(weight)
    return EXAMPLES if mask is None else tf.reduce_sum(tf.cast(mask, tf.float32))
