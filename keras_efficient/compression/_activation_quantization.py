"""Quantization of layer inputs, and the tracking of their ranges in training."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import tensorflow as tf

from keras_efficient.architecture._weights import Weight
from keras_efficient.compression._fake_quant import fake_quantize
from keras_efficient.compression._integers import reciprocal
from keras_efficient.flavor import Layer, Model
from keras_efficient.flavor._patched import patched
from keras_efficient.parametrize._parametrized_layer import CallWrapper, parametrized_layers
from keras_efficient.training import _replicas as replicas

#: Decay of the moving average of a range: the average of about 100 updates.
DECAY = 0.99


class ActivationQuantizer(CallWrapper):
    """Round the input of a layer to 8 bits of a range [low, high] that contains zero.

    Args:
        updater: the `RangeTracker` that updates the range in training. Default: None, the range is
            constant.
        bits: at most 8. Default: 8.

    Attributes:
        range: float32 `tf.Variable` [3]: low, high and the weight of the average. At weight 0 the
            range is unknown, and inputs are not rounded; it approaches 1 over many updates.
        smooth: float32 `tf.Variable` [inputs] s: x / s is rounded and multiplied by s again. Or
            None.
        observer: function that is called with the input of every call, which is then not rounded;
            or None.
    """

    name, droppable = "activations", True

    range: tf.Variable

    def __init__(self, updater: "RangeTracker | None" = None, bits: int = 8):
        self.updater, self.bits = updater, bits
        self.smooth: tf.Variable | None = None
        self.observer: Callable | None = None
        self.pending: Any = None

    def build(self):
        self.range = self.variable("range", (3,), 0.0)
        if self.updater is not None:
            self.updater.parts.append(self)

    def set_range(self, low: float, high: float) -> None:
        """Set a measured range."""
        self.range.assign([low, high, 1.0])

    def set_smoothing(self, weight: Weight, smooth) -> None:
        """Divide inputs by `smooth` before rounding, one number per input of the layer's weight."""
        self.weight_of_smooth = weight
        self.smooth = self.variable("smooth", smooth.shape, smooth)

    def wrap_call(self, call, inputs, *args, **kwargs):
        # Token ids and ragged tensors are not rounded.
        if isinstance(inputs, tf.Tensor) and inputs.dtype.is_floating:
            inputs = self.quantize(inputs)
        return call(inputs, *args, **kwargs)

    def quantize(self, inputs: tf.Tensor) -> tf.Tensor:
        """Return the rounded inputs, or the inputs themselves while the range is unknown."""
        x, smooth = tf.cast(inputs, tf.float32), None
        if self.smooth is not None:
            smooth = along_inputs(self.smooth, self.layer, self.weight_of_smooth, len(x.shape))
            x = x / smooth
        if self.observer is not None:
            self.observer(x)
            return inputs
        if self.updater is not None and self.updater.tracing:
            self._record(tf.stop_gradient(x))
        low, high, sure = tf.unstack(tf.convert_to_tensor(self.range))
        known = (sure > 0) & (high > low)
        # An unknown range gets a scale of 1: a division by zero would make gradients NaN even
        # where its result is not selected.
        top = float(2**self.bits - 1)
        scale = tf.where(known, high - low, top) * reciprocal(top)
        zero = tf.round(-low / scale)
        x = fake_quantize(x, scale, -zero, top - zero)
        if smooth is not None:
            x = x * smooth
        begun = None if self.updater is None else self.updater.begun()
        known = known if begun is None else known & begun
        return tf.where(known, tf.cast(x, inputs.dtype), inputs)

    def _record(self, x):
        """Extend the range that this replica has observed since the last update."""
        pending = replicas.local(self.pending)
        low, high, _ = tf.unstack(pending.read_value())
        low = tf.minimum(low, tf.reduce_min(x))
        high = tf.maximum(high, tf.reduce_max(x))
        # Recording the same numbers twice, as rematerialisation does, changes nothing.
        pending.assign(tf.stack([low, high, tf.ones_like(low)]))

    def describe(self):
        return f"inputs in {self.bits} bits"


class RangeTracker:
    """Updates the ranges of one `ke.quantize_aware` by debiased moving averages.

    After every update each range moves towards the extremes of all microbatches and replicas:
    w ← d · w + 1 - d, low ← low + (1 - d) / w · (observed - low). The first update sets it.

    Args:
        begin_step: the update from which on weights and activations are rounded. Default: 0.
        freeze_step: the update from which on ranges are constant. Default: None, never.

    Attributes:
        parts: list of the `ActivationQuantizer`s.
        updates: int64 `tf.Variable`, the number of updates.
    """

    def __init__(self, begin_step: int = 0, freeze_step: int | None = None):
        self.begin_step, self.freeze_step = begin_step, freeze_step
        self.parts: list[ActivationQuantizer] = []
        self.updates: Any = None
        self._depth = 0

    def create_counter(self, transform) -> None:
        """Create the counter of updates, as a variable of the first transform that calls this."""
        if self.updates is None:
            self.updates = transform.variable("updates", (), 0, dtype="int64")

    def begun(self) -> tf.Tensor | None:
        """Return whether to round yet, as a scalar bool tensor; None means always."""
        if self.begin_step == 0:
            return None
        return tf.convert_to_tensor(self.updates) >= self.begin_step

    @property
    def tracing(self) -> bool:
        """Whether a training step is being traced."""
        return self._depth > 0

    @contextmanager
    def training(self) -> Iterator[None]:
        # A counter, because the threads of several replicas are inside at the same time.
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def build(self, model):
        for part in self.parts:
            if part.pending is None:
                # It starts at zero, which every range contains.
                part.pending = replicas.variable(tf.zeros([3]))

    def watch(self, gradients):
        """Update the ranges.

        This happens here and not in `after_update`, because replicas communicate, which they can
        do here even if the loss scale skips the update.
        """
        if not self.parts:
            return
        observed = tf.stack([replicas.local(part.pending).read_value() for part in self.parts])
        # Extremes that overflowed are ignored.
        finite = tf.reduce_all(tf.math.is_finite(observed), -1, keepdims=True)
        observed = tf.where(finite, observed, tf.zeros_like(observed))
        low, high, known = tf.unstack(_of_all_replicas(observed), axis=1)
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


def _of_all_replicas(observed):
    """Return the widest of all replicas' ranges [ranges, 3].

    One all-reduce: each replica puts its ranges at its own index of a sum.
    """
    count = replicas.count()
    if count == 1:
        return observed
    index = tf.distribute.get_replica_context().replica_id_in_sync_group
    indexed = tf.one_hot(index, count)[:, None, None] * observed
    (indexed,) = replicas.all_sum([indexed])
    return tf.concat(
        [tf.reduce_min(indexed[..., :1], 0), tf.reduce_max(indexed[..., 1:], 0)], axis=-1
    )


def rounds_inputs(model: Model) -> bool:
    """Return whether any layer of the model rounds its input."""
    return bool(_quantizers(model))


@contextmanager
def unrounded_inputs(model: Model) -> Iterator[None]:
    """Let no layer of a model round its input, for the time of a block."""
    with ExitStack() as stack:
        for part in _quantizers(model):
            # While a quantizer is observed, it does not round.
            stack.enter_context(patched(part, observer=lambda x: None))
        yield


def _quantizers(model):
    return [
        part
        for layer in parametrized_layers(model)
        for part in layer.call_wrappers
        if isinstance(part, ActivationQuantizer)
    ]


def input_axes(layer: Layer, weight: Weight, rank: int) -> tuple[int, ...] | None:
    """Return the axes of a layer's input that its weight's input axes are multiplied with.

    Args:
        layer: the layer that has the weight.
        weight: a kernel.
        rank: number of axes of the layer's input.

    Returns:
        The axes in the order of the weight's, or None if the layer multiplies parts of its input,
        as convolutions do.
    """
    equation = getattr(layer, "equation", None)
    if isinstance(equation, str):
        x, kernel = equation.replace(" ", "").split("->")[0].split(",")
        # Counted from the end, because "..." matches any number of axes.
        return tuple(rank + x.index(kernel[axis]) - len(x) for axis in weight.inputs)
    return (rank - 1,) if weight.inputs == (0,) and len(weight.shape) == 2 else None


def along_inputs(vector, layer: Layer, weight: Weight, rank: int) -> tf.Tensor:
    """Reshape one number per input of a weight so that it broadcasts with the layer's input."""
    axes = input_axes(layer, weight, rank)
    assert axes is not None
    sizes = dict(zip(axes, (weight.shape[axis] for axis in weight.inputs), strict=True))
    order = sorted(range(len(axes)), key=lambda i: axes[i])
    tensor = tf.reshape(vector, [weight.shape[axis] for axis in weight.inputs])
    return tf.reshape(tf.transpose(tensor, order), [sizes.get(axis, 1) for axis in range(rank)])
