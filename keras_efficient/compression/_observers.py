"""Measure what goes into layers while a model looks at some data."""

import functools
from dataclasses import dataclass, field

import numpy as np
import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.compression._activation_quantization import input_axes

BINS = 2048


@dataclass
class ActivationStats:
    """What went into a layer.

    Attributes:
        calls: int, how often it was called; 0: the model does not use it.
        low, high: floats, low <= 0 <= high.
        counts: int array [2048]: how many numbers lie in equal parts of [low, high]; or None.
        channels: float array [inputs], the largest magnitude of each input; None: not measured.
    """

    calls: int = 0
    low: float = 0.0
    high: float = 0.0
    counts: np.ndarray | None = field(default=None, repr=False)
    channels: np.ndarray | None = field(default=None, repr=False)

    def widen(self, x):
        self.calls += 1
        if x.size:
            self.low = min(self.low, float(x.min()))
            self.high = max(self.high, float(x.max()))

    def count(self, x):
        counts = np.histogram(x, BINS, (self.low, self.high))[0]
        self.counts = counts if self.counts is None else self.counts + counts

    def raise_channels(self, x, axes):
        """`axes`: those of the inputs, in their order; all others are passed over."""
        order = [*axes, *(axis for axis in range(x.ndim) if axis not in axes)]
        rows = np.abs(x).transpose(order).reshape(int(np.prod([x.shape[a] for a in axes])), -1)
        most = rows.max(1, initial=0.0)
        self.channels = most if self.channels is None else np.maximum(self.channels, most)


def batches_of(data, caller) -> list:
    """The inputs of the model in each batch of `data`.

    Args:
        data: one batch as `fit` yields it (an array, a dict, or a tuple (x, y[, weights])), or a
            finite iterable of such batches, as a `tf.data.Dataset` or a list.
        caller: str, for messages.
    """
    rule = f"{caller} needs a batch (array, dict, or tuple (x, y)) or an iterable of batches."
    if isinstance(data, tuple | dict | np.ndarray | tf.Tensor):
        batches = [data]
    elif isinstance(data, str | bytes) or not hasattr(data, "__iter__"):
        raise TypeError(f"{rule} Received: {data!r}. Give some examples as `fit` gets them.")
    else:
        if isinstance(data, tf.data.Dataset) and data.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise ValueError(f"{rule} Received: an endless dataset. Give `dataset.take(8)`.")
        batches = list(data)
    if not batches:
        raise ValueError(f"{rule} Received: no batch at all. Give at least one.")
    return [batch[0] if isinstance(batch, tuple) else batch for batch in batches]


def observe(model, parts, batches, *, counts=False, channels=None) -> list:
    """What goes into the layers of some `Activations` on these batches, in inference mode.

    Args:
        model: the model; nothing of it is rounded that is not yet.
        parts: list of `Activations`, attached.
        batches: list of inputs of the model.
        counts: whether to count (a second pass over the data).
        channels: None or dict of a part to the `Weight` whose inputs are measured.

    Returns:
        List of `Seen`, one per part.
    """
    seen = {id(part): ActivationStats() for part in parts}

    def widen(part, x):
        mine = seen[id(part)]
        mine.widen(x)
        weight = (channels or {}).get(id(part))
        axes = weight and input_axes(part.layer, weight, x.ndim)
        if axes is not None:
            mine.raise_channels(x, axes)

    _pass(model, parts, batches, widen)
    if counts:
        _pass(model, parts, batches, lambda part, x: seen[id(part)].count(x))
    return [seen[id(part)] for part in parts]


def products(model, parts, weights, batches) -> dict:
    """XᵀX of what each weight is multiplied with on these batches, in inference mode.

    Args:
        model: the model.
        parts: `Activations` attached to the weights' layers.
        weights: list of `Weight`s, kernels; those that share one are summed.
        batches: list of inputs of the model.

    Returns:
        Dict of a `Weight` to a float64 array [inputs, inputs]. Without the weights of layers that
        the data does not reach, and of layers that see parts of their input (convolutions).

    Raises:
        ValueError: an input is not finite.
    """
    by_layer = {id(layer): weight for weight in weights for layer, _ in weight.owners}
    sums = {}

    def add(part, x):
        weight = by_layer[id(part.layer)]
        axes = input_axes(part.layer, weight, x.ndim)
        if axes is None or not x.size:
            return
        axes = [axis % x.ndim for axis in axes]
        order = [*(axis for axis in range(x.ndim) if axis not in axes), *axes]
        rows = x.transpose(order).reshape(-1, weight.matrix_shape[0])
        sums[weight] = sums.get(weight, 0) + (rows.T @ rows).astype(np.float64)

    _pass(model, parts, batches, add)
    for weight, gram in sums.items():
        if not np.all(np.isfinite(gram)):
            raise ValueError(
                "Inputs of layers must be finite to change weights by them. Received: those of "
                f"{weight.path!r} on `data`, which are not. Look at the batches."
            )
    return sums


def _pass(model, parts, batches, look):
    flavor = flavors.of(model)
    # (A model may compile its call by itself, and would not look again, or for good.)
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    for part in parts:
        part.look = functools.partial(_look, look, part)
    try:
        for batch in batches:
            flavor.call(model, tf.nest.map_structure(tf.convert_to_tensor, batch), training=False)
    finally:
        tf.config.run_functions_eagerly(before)
        for part in parts:
            part.look = None


def _look(look, part, x):
    look(part, x.numpy())
