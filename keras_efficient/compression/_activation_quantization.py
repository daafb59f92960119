"""Round what goes into a layer, and keep the ranges it is rounded in."""

from contextlib import contextmanager

import tensorflow as tf

from keras_efficient.compression._fake_quant import rounded
from keras_efficient.compression._integers import reciprocal
from keras_efficient.parametrize._parametrized_layer import CallWrapper, parametrized_layers
from keras_efficient.training import _replicas as replicas

#: How much of a range an update keeps; averages of about 100 updates.
DECAY = 0.99


class ActivationQuantizer(CallWrapper):
    """See a layer's input rounded to 8 bits of a range [low, high] with zero in it.

    Args:
        updater: the `Ranges` that moves the range while the model trains, or None: it stays.
        bits: int, at most 8.

    Attributes:
        range: float32 `tf.Variable` [3]: low, high, and how sure they are (0: not known yet, and
            inputs are not rounded; 1: an average over many updates).
        smooth: None, or float32 `tf.Variable` [inputs] s: x / s is rounded, and multiplied again.
        look: function called with the input of every call instead of rounding it, or None.
    """

    name, droppable = "activations", True

    def __init__(self, updater=None, bits=8):
        self.updater, self.bits = updater, bits
        self.smooth = self.look = self.pending = None

    def build(self):
        self.range = self.variable("range", (3,), 0.0)
        if self.updater is not None:
            self.updater.parts.append(self)

    def set(self, low, high):
        """Take a range that was measured."""
        self.range.assign([low, high, 1.0])

    def divide(self, weight, smooth):
        """Round inputs divided by `smooth`, one number per input of the layer's weight."""
        self.weight_of_smooth = weight
        self.smooth = self.variable("smooth", smooth.shape, smooth)

    def wrap_call(self, call, inputs, *args, **kwargs):
        # (Ids, and ragged tensors, are no activations.)
        if isinstance(inputs, tf.Tensor) and inputs.dtype.is_floating:
            inputs = self.seen(inputs)
        return call(inputs, *args, **kwargs)

    def seen(self, inputs):
        x = tf.cast(inputs, tf.float32)
        if self.smooth is not None:
            smooth = along_inputs(self.smooth, self.layer, self.weight_of_smooth, len(x.shape))
            x = x / smooth
        if self.look is not None:
            self.look(x)
            return inputs
        if self.updater is not None and self.updater.watching:
            self._watch(tf.stop_gradient(x))
        low, high, sure = tf.unstack(tf.convert_to_tensor(self.range))
        known = (sure > 0) & (high > low)
        # (A division by zero would be NaN in a gradient even where it is not chosen.)
        top = float(2**self.bits - 1)
        scale = tf.where(known, high - low, top) * reciprocal(top)
        zero = tf.round(-low / scale)
        x = rounded(x, scale, -zero, top - zero)
        if self.smooth is not None:
            x = x * smooth
        begun = None if self.updater is None else self.updater.begun()
        known = known if begun is None else known & begun
        return tf.where(known, tf.cast(x, inputs.dtype), inputs)

    def _watch(self, x):
        """Widen what this replica has seen since the last update."""
        pending = replicas.local(self.pending)
        low, high, _ = tf.unstack(pending.read_value())
        low = tf.minimum(low, tf.reduce_min(x))
        high = tf.maximum(high, tf.reduce_max(x))
        # (A second forward pass of the same numbers, as rematerialisation makes, changes nothing.)
        pending.assign(tf.stack([low, high, tf.ones_like(low)]))

    def describe(self):
        return f"inputs in {self.bits} bits"


class RangeTracker:
    """Keeps the ranges of one `ke.quantize_aware`: debiased moving averages, one for all replicas.

    At every update each range moves to what all microbatches of all replicas saw:
    w ← d · w + 1 - d, low ← low + (1 - d) / w · (seen - low), so that the first update sets it.

    Args:
        begin_step: int, the update from which on weights and activations are rounded.
        freeze_step: int or None, the update from which on ranges stay.
    """

    def __init__(self, begin_step=0, freeze_step=None):
        self.begin_step, self.freeze_step = begin_step, freeze_step
        self.parts, self.updates, self._depth = [], None, 0

    def count_with(self, transform):
        """Make the counter of updates, among the variables of the first transform."""
        if self.updates is None:
            self.updates = transform.variable("updates", (), 0, dtype="int64")

    def begun(self):
        """Whether to round yet, a scalar bool tensor; None: always."""
        if self.begin_step == 0:
            return None
        return tf.convert_to_tensor(self.updates) >= self.begin_step

    @property
    def watching(self):
        """Whether a training step is being traced."""
        return self._depth > 0

    @contextmanager
    def training(self):
        # (The threads of several replicas are in here at once.)
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def build(self, model):
        for part in self.parts:
            if part.pending is None:
                # (Zero is in every range.)
                part.pending = replicas.variable(tf.zeros([3]))

    def watch(self, gradients):
        """Move the ranges: here, where replicas may talk even if a loss scale skips the update."""
        if not self.parts:
            return
        seen = tf.stack([replicas.local(part.pending).read_value() for part in self.parts])
        # An overflow is no range.
        finite = tf.reduce_all(tf.math.is_finite(seen), -1, keepdims=True)
        low, high, known = tf.unstack(_of_all(tf.where(finite, seen, tf.zeros_like(seen))), axis=1)
        move = known > 0
        if self.freeze_step is not None:
            move &= replicas.local(self.updates).read_value() < self.freeze_step
        for index, part in enumerate(self.parts):
            variable = replicas.local(part.range)
            before = variable.read_value()
            sure = DECAY * before[2] + (1 - DECAY)
            rate = (1 - DECAY) / sure
            new = tf.stack(
                [
                    before[0] + rate * (low[index] - before[0]),
                    before[1] + rate * (high[index] - before[1]),
                    sure,
                ]
            )
            variable.assign(tf.where(move[index], new, before))
            replicas.local(part.pending).assign(tf.zeros([3]))

    def after_update(self):
        replicas.local(self.updates).assign_add(1)


def _of_all(seen):
    """The widest of all replicas' `[ranges, 3]`, in one all-reduce: each has its place in a sum."""
    count = replicas.count()
    if count == 1:
        return seen
    index = tf.distribute.get_replica_context().replica_id_in_sync_group
    places = tf.one_hot(index, count)[:, None, None] * seen
    (places,) = replicas.all_sum([places])
    return tf.concat(
        [tf.reduce_min(places[..., :1], 0), tf.reduce_max(places[..., 1:], 0)], axis=-1
    )


def rounds_inputs(model) -> bool:
    """Whether any layer sees its input rounded."""
    return any(
        isinstance(part, ActivationQuantizer)
        for view in parametrized_layers(model)
        for part in view.call_wrappers
    )


def input_axes(layer, weight, rank):
    """The axes of a layer's input that its weight's inputs stand for, in their order, or None."""
    equation = getattr(layer, "equation", None)
    if isinstance(equation, str):
        x, kernel = equation.replace(" ", "").split("->")[0].split(",")
        # From the end, since "..." stands for any number of axes.
        return tuple(rank + x.index(kernel[axis]) - len(x) for axis in weight.inputs)
    return (rank - 1,) if weight.inputs == (0,) and len(weight.shape) == 2 else None


def along_inputs(vector, layer, weight, rank):
    """One number per input of a weight, in a shape that broadcasts with the layer's input."""
    axes = input_axes(layer, weight, rank)
    sizes = dict(zip(axes, (weight.shape[axis] for axis in weight.inputs), strict=True))
    order = sorted(range(len(axes)), key=lambda i: axes[i])
    tensor = tf.reshape(vector, [weight.shape[axis] for axis in weight.inputs])
    return tf.reshape(tf.transpose(tensor, order), [sizes.get(axis, 1) for axis in range(rank)])
