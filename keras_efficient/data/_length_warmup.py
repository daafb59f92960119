"""`length_warmup`: shorter batches at the beginning of a training."""

from typing import Any

import tensorflow as tf

from keras_efficient._errors import InputError
from keras_efficient.flavor._typing import Dataset


def length_warmup(
    batches: Dataset, *, steps: int, start: int = 32, multiple_of: int = 8
) -> Dataset:
    """Shorten the batches of a language model at first, and to their full length after some steps.

    Step t sees the first `start` + t tokens of each text, where t grows in proportion until the
    longest batch is whole after `steps` steps. What is cut off is not seen in that step. Lengths
    are multiples of a number, so that XLA compiles few shapes.

    All tensors of two or more axes are cut along the second one. This is for
    `ke.data.text(..., next_token=True)`, whose labels stand beside their tokens; the texts of an
    encoder would lose their end and the separator there.

    Args:
        batches: The dataset. The steps are counted from its start, so pass a dataset without end:
            `ke.data.length_warmup(data.repeat(), …)`, and `steps_per_epoch` to `fit`.
        steps: Number of steps until batches are whole.
        start: Number of tokens of the first step. Default: 32.
        multiple_of: Lengths are rounded down to a multiple of this number. Default: 8.

    Returns:
        The dataset.

    Raises:
        InputError: An argument is no positive integer, or the batches have no texts of one length.

    Examples:
        >>> ids = tf.data.Dataset.from_tensors(tf.zeros([2, 64], tf.int32)).repeat()
        >>> short = ke.data.length_warmup(ids, steps=2, start=16)
        >>> [batch.shape[1] for batch in short.take(4)]
        [16, 40, 64, 64]

    Reference:
        Li et al. 2022, "The Stability-Efficiency Dilemma: Investigating Sequence Length Warmup for
        Training GPT Models".
    """
    for name, value in (("steps", steps), ("start", start), ("multiple_of", multiple_of)):
        if type(value) is not int or value < 1:
            raise InputError(
                f"`{name}` must be an int of 1 or more. Received: {value!r:.60}. Give for example "
                "8."
            )
    spec = tf.nest.flatten(batches.element_spec)
    if not any(tensor.shape.rank is not None and tensor.shape.rank > 1 for tensor in spec):
        raise InputError(
            "Length warm-up shortens tensors [batch, tokens]. Received: batches of "
            f"{batches.element_spec!r:.200}. Give batches of texts."
        )

    def is_long(tensor):
        return tensor.shape.rank is not None and tensor.shape.rank > 1

    def cut(step, batch):
        """Return a batch without the ends of its texts."""
        sizes = [tf.shape(tensor)[1] for tensor in tf.nest.flatten(batch) if is_long(tensor)]
        whole: Any = tf.reduce_max(tf.stack(sizes))
        first: Any = tf.minimum(start, whole)
        grown = tf.cast(step, tf.float64) / steps * tf.cast(whole - first, tf.float64)
        length: Any = first + tf.cast(grown, tf.int32)
        length = tf.maximum(length // multiple_of * multiple_of, tf.minimum(first, multiple_of))
        length = tf.where(step >= steps, whole, length)
        return tf.nest.map_structure(lambda t: t[:, :length] if is_long(t) else t, batch)

    found: Any = batches.enumerate().map(cut, num_parallel_calls=tf.data.AUTOTUNE)
    found.stats = getattr(batches, "stats", None)
    return found.prefetch(tf.data.AUTOTUNE)
