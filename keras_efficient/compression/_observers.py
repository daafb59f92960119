"""Measure the inputs of layers while a model runs on some data."""

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.architecture._layer_paths import layer_paths
from keras_efficient.architecture._weights import KERNEL, Weight
from keras_efficient.compression._activation_quantization import (
    ActivationQuantizer,
    RangeTracker,
    input_axes,
)
from keras_efficient.flavor import Model
from keras_efficient.parametrize._attach import attach_call_wrappers, detach_call_wrappers
from keras_efficient.training._flat_model import whole_last_block

_BINS = 2048


@dataclass
class ActivationStats:
    """Statistics of the inputs of a layer.

    Attributes:
        calls: how often the layer was called; 0 if the model does not use it.
        low: smallest number, at most 0.
        high: largest number, at least 0.
        counts: int array [2048], a histogram over [low, high]; None if not measured.
        channels: float array [inputs], the largest magnitude of each input; None if not measured.
    """

    calls: int = 0
    low: float = 0.0
    high: float = 0.0
    counts: np.ndarray | None = field(default=None, repr=False)
    channels: np.ndarray | None = field(default=None, repr=False)

    def update_range(self, x: np.ndarray) -> None:
        """Include an input in `low` and `high`."""
        self.calls += 1
        if x.size:
            self.low = min(self.low, float(x.min()))
            self.high = max(self.high, float(x.max()))

    def update_counts(self, x: np.ndarray) -> None:
        """Include an input in the histogram; `low` and `high` are final."""
        counts = np.histogram(x, _BINS, (self.low, self.high))[0]
        self.counts = counts if self.counts is None else self.counts + counts

    def update_channels(self, x: np.ndarray, axes: tuple[int, ...]) -> None:
        """Include an input in `channels`; the maximum is over all other axes than `axes`."""
        order = [*axes, *(axis for axis in range(x.ndim) if axis not in axes)]
        rows = np.abs(x).transpose(order).reshape(int(np.prod([x.shape[a] for a in axes])), -1)
        most = rows.max(1, initial=0.0)
        self.channels = most if self.channels is None else np.maximum(self.channels, most)


def batches_of(data: Any, caller: str) -> list:
    """Return the model's inputs of each batch of `data`.

    Args:
        data: one batch as `fit` yields it (an array, a dict, or a tuple (x, y[, weights])), or a
            finite iterable of such batches, such as a `tf.data.Dataset` or a list.
        caller: such as "ke.prune", for messages.

    Raises:
        TypeError: `data` is none of these.
        ValueError: it is endless or empty.
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


def attach_quantizers(
    model: Model, weights: Iterable[Weight], updater: RangeTracker | None, bits: int
) -> dict[str, ActivationQuantizer]:
    """Attach an `ActivationQuantizer` to every layer that has one of these kernels.

    Returns:
        Dict of the layer's path to its quantizer, in the order of the layers.
    """
    owners = {id(layer) for w in weights if w.kind == KERNEL for layer, _ in w.owners}
    layers = {path: layer for path, layer in layer_paths(model) if id(layer) in owners}
    quantizers = {path: ActivationQuantizer(updater, bits) for path in layers}
    attach_call_wrappers(model, [(path, layers[path], q) for path, q in quantizers.items()])
    return quantizers


@contextmanager
def detached_on_error(model: Model, quantizers: dict[str, ActivationQuantizer]) -> Iterator[None]:
    """A context that detaches the quantizers if it is left by an exception."""
    try:
        yield
    except BaseException:
        detach_call_wrappers(model, quantizers.values())
        raise


def observe(
    model: Model,
    quantizers: Iterable[ActivationQuantizer],
    batches: list,
    *,
    counts: bool = False,
    channels: dict[int, Weight] | None = None,
) -> list[ActivationStats]:
    """Measure the inputs of the quantizers' layers on these batches, in inference mode.

    Args:
        model: the model.
        quantizers: attached quantizers, which do not round meanwhile.
        batches: list of inputs of the model.
        counts: whether to compute histograms, by a second pass over the batches. Default: False.
        channels: dict of the id of a quantizer to the `Weight` whose inputs' magnitudes are
            measured. Default: None.

    Returns:
        The statistics of each quantizer's layer.
    """
    quantizers = list(quantizers)
    stats = {id(quantizer): ActivationStats() for quantizer in quantizers}

    def update(quantizer, x):
        own = stats[id(quantizer)]
        own.update_range(x)
        weight = (channels or {}).get(id(quantizer))
        axes = weight and input_axes(quantizer.layer, weight, x.ndim)
        if axes is not None:
            own.update_channels(x, axes)

    _run(model, quantizers, batches, update)
    if counts:
        _run(model, quantizers, batches, lambda q, x: stats[id(q)].update_counts(x))
    return [stats[id(quantizer)] for quantizer in quantizers]


def input_grams(model: Model, weights: list[Weight], batches: list) -> dict[Weight, np.ndarray]:
    """Compute XᵀX of the inputs X that each kernel is multiplied with, in inference mode.

    Args:
        model: the model.
        weights: kernels. A kernel that several layers share gets the sum of theirs.
        batches: list of inputs of the model.

    Returns:
        Dict of a `Weight` to a float64 array [inputs, inputs], without the weights of layers that
        the data does not reach and of layers that multiply parts of their input (convolutions).

    Raises:
        ValueError: an input is not finite.
    """
    by_layer = {id(layer): weight for weight in weights for layer, _ in weight.owners}
    sums = {}

    def add(quantizer, x):
        weight = by_layer[id(quantizer.layer)]
        axes = input_axes(quantizer.layer, weight, x.ndim)
        if axes is None or not x.size:
            return
        axes = [axis % x.ndim for axis in axes]
        order = [*(axis for axis in range(x.ndim) if axis not in axes), *axes]
        rows = x.transpose(order).reshape(-1, weight.matrix_shape[0])
        sums[weight] = sums.get(weight, 0) + (rows.T @ rows).astype(np.float64)

    quantizers = attach_quantizers(model, weights, None, 8)
    try:
        _run(model, list(quantizers.values()), batches, add)
    finally:
        detach_call_wrappers(model, quantizers.values())
    for weight, gram in sums.items():
        if not np.all(np.isfinite(gram)):
            raise ValueError(
                "Inputs of layers must be finite to change weights by them. Received: those of "
                f"{weight.path!r} on `data`, which are not. Look at the batches."
            )
    return sums


def _run(model, quantizers, batches, observer: Callable):
    for quantizer in quantizers:
        quantizer.observer = functools.partial(_observe, observer, quantizer)
    # Queries of first tokens alone would get another range than the keys and values, and an export
    # could not compute their block in integers.
    try:
        with whole_last_block(model):
            flavors.of(model).run(model, batches)
    finally:
        for quantizer in quantizers:
            quantizer.observer = None


def _observe(observer, quantizer, x):
    observer(quantizer, x.numpy())
