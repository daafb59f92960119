"""See a weight rounded to integers times a scale."""

import math

import numpy as np
import tensorflow as tf

from keras_efficient.compression._integers import TINY, largest, reciprocal, to_integers
from keras_efficient.parametrize._parametrized_layer import transform_chain
from keras_efficient.parametrize._transform import QUANTIZE, Transform


def rounded(x, scale, least, most):
    """clip(round(x / scale), least, most) · scale; the gradient passes straight through inside.

    The grid is that of `tf.quantization.fake_quant_with_min_max_vars`, which TF-MOT uses. That op
    itself, compiled by XLA, makes 1e-8 of a zero, and NaN of a channel of zeros; and it goes over a
    matrix column by column. (A tie goes to the even integer here, up there.)

    Args:
        x, scale: float32 tensors that broadcast.
        least, most: the integers at the ends; None: all of x is known to be inside.
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
    """See a weight rounded to `bits` bits: symmetric, each output with its scale.

    The ranges are those of the value at hand (TF-MOT's `LastValueQuantizer`), so there is no state.
    Zeros stay zeros.

    Args:
        bits: 8 or 4.
        per_channel: whether each output has its scale, or all one.
        group_size: int, the consecutive inputs of an output that share a scale; None: all.
        updater: `Ranges` that says from which update on weights are rounded; None: at once.
        clip: None or array [groups, outputs], how many times its largest magnitude a range covers.
        smooth: None or array [inputs] s: s · W is rounded, and divided by s again.
    """

    name, place = "quantize", QUANTIZE

    def __init__(
        self, bits=8, *, per_channel=True, group_size=None, updater=None, clip=None, smooth=None
    ):
        self.bits, self.per_channel, self.group_size = bits, per_channel, group_size
        self.updater, self.clip, self.smooth = updater, clip, smooth

    def check(self, weight):
        """Refuse a weight whose inputs are not whole bytes or groups."""
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
            self.updater.count_with(self)
        if self.clip is not None:
            self.clip = self.variable("clip", np.shape(self.clip), self.clip)
        if self.smooth is not None:
            self.smooth = self.variable("smooth", np.shape(self.smooth), self.smooth)

    # --- in the graph --------------------------------------------------------------------------

    def __call__(self, value):
        x = self._grouped(tf.cast(value, tf.float32))
        if self.smooth is not None:
            smooth = tf.reshape(self.smooth, [1, self.groups, -1, 1])
            x = x * smooth
        most = tf.reduce_max(tf.abs(x), 2 if self.per_channel else None, keepdims=True)
        n = float(largest(self.bits))
        if self.clip is None:
            seen = rounded(x, self._scale(most, n), None, None)
        else:
            before = tf.reshape(self.clip, [self.groups, self._sides[0], 1, self._sides[1]])
            seen = rounded(x, self._scale(most * tf.transpose(before, [1, 0, 2, 3]), n), -n, n)
        if self.smooth is not None:
            seen = seen / smooth
        seen = tf.cast(self._ungrouped(seen), value.dtype)
        begun = None if self.updater is None else self.updater.begun()
        return seen if begun is None else tf.where(begun, seen, value)

    @staticmethod
    def _scale(most, n):
        # A channel of zeros has no range; any scale will do.
        return tf.where(most > TINY, most * reciprocal(n), tf.ones_like(most))

    @property
    def groups(self):
        return 1 if self.group_size is None else self.weight.matrix_shape[0] // self.group_size

    @property
    def _contiguous(self):
        axes = self.weight.inputs
        return tuple(axes) == tuple(range(axes[0], axes[0] + len(axes)))

    @property
    def _sides(self):
        """How many outputs lie before and behind the inputs' axes."""
        weight = self.weight
        if not self._contiguous:
            return 1, weight.matrix_shape[1]
        shape, axes = weight.shape, weight.inputs
        return math.prod(shape[: axes[0]]), math.prod(shape[axes[-1] + 1 :])

    def _grouped(self, value):
        """As [outputs before, groups, inputs, outputs behind], if possible without a transpose."""
        if not self._contiguous:
            value = self.weight.matrix(value)
        size = self.weight.matrix_shape[0] // self.groups
        return tf.reshape(value, [self._sides[0], self.groups, size, self._sides[1]])

    def _ungrouped(self, value):
        if self._contiguous:
            return tf.reshape(value, self.weight.shape)
        return self.weight.unmatrix(tf.reshape(value, self.weight.matrix_shape))

    # --- outside of it -------------------------------------------------------------------------

    def integers(self):
        """What an export writes: the integers of what is seen.

        Returns:
            (int8 array [inputs, outputs], float32 scales [groups, outputs] or [1, 1], float32 array
            [inputs] or None): the matrix seen is `from_integers` of the first two, its rows divided
            by the third.
        """
        chain = transform_chain(self.weight)
        value = chain.value(chain.transforms[: chain.transforms.index(self)])
        matrix = self.weight.matrix(tf.cast(value, tf.float32)).numpy()
        smooth = None if self.smooth is None else self.smooth.numpy()
        if smooth is not None:
            matrix = matrix * smooth[:, None]
        clip = None if self.clip is None else self.clip.numpy()
        made = to_integers(
            matrix, self.bits, self.group_size, per_channel=self.per_channel, clip=clip
        )
        return (*made, smooth)

    @property
    def extra_bytes(self):
        inputs, outputs = self.weight.matrix_shape
        scales = self.groups * outputs if self.per_channel else 1
        return 4 * (scales + (0 if self.smooth is None else inputs))

    def describe(self):
        group = "" if self.group_size is None else f" groups of {self.group_size}"
        return f"int{self.bits}{group}"
