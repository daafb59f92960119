"""Dynamic loss scaling in the variables of the library's own loss-scale optimizer."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LossScale:
    """The dynamic loss scaling of a compiled optimizer, kept in the library's own variables.

    Attributes:
        inner: The optimizer that makes the updates.
        scale: `tf.Variable`, the factor of the loss; a float if it is fixed.
        good_steps: `tf.Variable`, finite steps since the scale last changed; None if it is fixed.
        growth_steps: int, number of finite steps after which the scale doubles.
    """

    inner: Any
    scale: Any
    good_steps: Any = None
    growth_steps: int = 0

    def update(self, finite: Any) -> None:
        """Halve the scale, but not below 1, after a non-finite step; otherwise let it grow.

        Args:
            finite: Scalar bool tensor, whether all gradients of the step were finite.
        """
        import tensorflow as tf

        if self.good_steps is None:
            return
        good = self.good_steps + 1
        grown = tf.logical_and(finite, good >= self.growth_steps)
        larger = tf.where(grown, self.scale * 2.0, self.scale)
        # An infinite scale could never shrink again.
        larger = tf.where(tf.math.is_finite(larger), larger, self.scale)
        smaller = tf.maximum(self.scale / 2.0, 1.0)
        keep = tf.logical_and(finite, tf.logical_not(grown))
        self.scale.assign(tf.where(finite, larger, smaller))
        self.good_steps.assign(tf.where(keep, good, tf.zeros_like(good)))
