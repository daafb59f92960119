"""Fake quantization of weights: integers times scales, with straight-through gradients."""

import math
from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient.architecture._weights import Weight
from keras_efficient.compression._integers import TINY, largest, reciprocal, to_integers
from keras_efficient.parametrize._parametrized_layer import transform_chain
from keras_efficient.parametrize._transform import QUANTIZE, Transform


def fake_quantize(x: Any, scale: Any, least: Any, most: Any) -> Any:
    """Return clip(round(x / scale), least, most) · scale, with a straight-through gradient inside.

    The grid is that of `tf.quantization.fake_quant_with_min_max_vars`, which TF-MOT uses, but for
    ties: here they are rounded to the even integer, there up. That op is not used because, compiled
    by XLA, it turns zeros into 1e-8 and channels of zeros into NaN; it also processes a matrix
    column by column.

    Args:
        x: float32 tensor.
        scale: float32 tensor that broadcasts with `x`.
        least: the smallest integer, or None if all of `x` is known to be inside the range.
        most: the largest integer, or None.
    """

    @tf.custom_gradient
    def round_to_grid(x, scale):
        integers = tf.round(x / scale)
        if least is None:
            return integers * scale, lambda upstream: (upstream, None)
        inside = (x >= least * scale) & (x <= most * scale)

        def gradient(upstream):
            return tf.where(inside, upstream, tf.zeros_like(upstream)), None

        return tf.clip_by_value(integers, least, most) * scale, gradient

    return round_to_grid(x, tf.stop_gradient(scale))


class FakeQuant(Transform):
    """Round a weight to `bits` bits, symmetrically, with a scale for each output.

    Ranges are computed from the current value (TF-MOT's `LastValueQuantizer`), so there is no
    state. Zeros stay zeros.

    Args:
        bits: 8 or 4. Default: 8.
        reduce_range: whether the integers of 8 bits use only 7, -63 ... 63. Default: False.
        per_channel: whether each output has its own scale. Default: True. False: one for all.
        group_size: number of consecutive inputs of an output that share a scale. Default: None,
            all inputs.
        updater: `RangeTracker` that says from which update on weights are rounded. Default: None,
            always.
        clip: array [groups, outputs], the range as a share of the largest magnitude. Default: None.
        smooth: array [inputs] s: s · W is rounded and divided by s again. Default: None.
    """

    name, place = "quantize", QUANTIZE

    bits: int

    def __init__(
        self,
        bits: int = 8,
        *,
        reduce_range: bool = False,
        per_channel: bool = True,
        group_size: int | None = None,
        updater: Any = None,
        clip: Any = None,
        smooth: Any = None,
    ):
        self.bits, self.per_channel, self.group_size = bits, per_channel, group_size
        self.reduce_range = reduce_range
        self.updater, self.clip, self.smooth = updater, clip, smooth

    def check(self, weight: Weight) -> None:
        """Raise a ValueError if the weight's inputs are not whole bytes or groups."""
        inputs = weight.matrix_shape[0]
        if self.group_size is not None and inputs % self.group_size:
            rule = f"whole groups of {self.group_size} inputs"
        elif self.bits == 4 and (self.group_size or inputs) % 2:
            rule = "an even number of inputs, since two make a byte"
        else:
            return
        raise ValueError(
            f"Weights of {self.bits} bits need {rule}. Received: {weight.path!r} with {inputs} "
            "inputs. Leave it out with `layers=`, or choose another `group_size` or 8 bits."
        )

    def build(self):
        if self.updater is not None:
            self.updater.create_counter(self)
        if self.clip is not None:
            self.clip = self.variable("clip", np.shape(self.clip), self.clip)
        if self.smooth is not None:
            self.smooth = self.variable("smooth", np.shape(self.smooth), self.smooth)

    def __call__(self, value):
        x, smooth = self._grouped(tf.cast(value, tf.float32)), None
        if self.smooth is not None:
            smooth = tf.reshape(self.smooth, [1, self.groups, -1, 1])
            x = x * smooth
        most = tf.reduce_max(tf.abs(x), 2 if self.per_channel else None, keepdims=True)
        n = float(largest(self.range_bits))
        if self.clip is None:
            x = fake_quantize(x, self._scale(most, n), None, None)
        else:
            clip = tf.reshape(self.clip, [self.groups, self._sides[0], 1, self._sides[1]])
            most = most * tf.transpose(clip, [1, 0, 2, 3])
            x = fake_quantize(x, self._scale(most, n), -n, n)
        if smooth is not None:
            x = x / smooth
        rounded = tf.cast(self._ungrouped(x), value.dtype)
        begun = None if self.updater is None else self.updater.begun()
        return rounded if begun is None else tf.where(begun, rounded, value)

    @staticmethod
    def _scale(most, n):
        # Any scale will do for a channel of zeros, which has no range.
        return tf.where(most > TINY, most * reciprocal(n), tf.ones_like(most))

    @property
    def range_bits(self) -> int:
        """Bits that the integers use of those they are stored in."""
        return self.bits - self.reduce_range

    @property
    def groups(self) -> int:
        """Number of groups of inputs."""
        return 1 if self.group_size is None else self.weight.matrix_shape[0] // self.group_size

    @property
    def _contiguous(self):
        axes = self.weight.inputs
        return tuple(axes) == tuple(range(axes[0], axes[0] + len(axes)))

    @property
    def _sides(self):
        """Number of outputs before and after the axes of the inputs."""
        weight = self.weight
        if not self._contiguous:
            return 1, weight.matrix_shape[1]
        shape, axes = weight.shape, weight.inputs
        return math.prod(shape[: axes[0]]), math.prod(shape[axes[-1] + 1 :])

    def _grouped(self, value):
        """Reshape to [outputs before, groups, inputs, outputs after], transposed only if needed."""
        if not self._contiguous:
            value = self.weight.matrix(value)
        size = self.weight.matrix_shape[0] // self.groups
        return tf.reshape(value, [self._sides[0], self.groups, size, self._sides[1]])

    def _ungrouped(self, value):
        if self._contiguous:
            return tf.reshape(value, self.weight.shape)
        return self.weight.unmatrix(tf.reshape(value, self.weight.matrix_shape))

    def integers(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return the integers that an export writes, computed outside of the graph.

        Returns:
            (int8 array [inputs, outputs], float32 scales [groups, outputs] or [1, 1], float32 array
            [inputs] or None). The rounded matrix is `from_integers` of the first two, with its rows
            divided by the third.
        """
        chain = transform_chain(self.weight)
        assert chain is not None
        value = chain.value(chain.transforms[: chain.transforms.index(self)])
        matrix = self.weight.matrix(tf.cast(value, tf.float32)).numpy()
        smooth = None if self.smooth is None else self.smooth.numpy()
        if smooth is not None:
            matrix = matrix * smooth[:, None]
        clip = None if self.clip is None else self.clip.numpy()
        made = to_integers(
            matrix, self.range_bits, self.group_size, per_channel=self.per_channel, clip=clip
        )
        return (*made, smooth)

    @property
    def extra_bytes(self) -> int:
        inputs, outputs = self.weight.matrix_shape
        scales = self.groups * outputs if self.per_channel else 1
        return 4 * (scales + (0 if self.smooth is None else inputs))

    def describe(self):
        group = "" if self.group_size is None else f" groups of {self.group_size}"
        reduced = f" of {self.range_bits} bits" if self.reduce_range else ""
        return f"int{self.bits}{reduced}{group}"
