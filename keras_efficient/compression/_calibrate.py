"""Post-training quantization (PTQ) with ranges measured on some data."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_efficient.architecture._weights import EMBEDDING, KERNEL
from keras_efficient.compression._activation_quantization import input_axes
from keras_efficient.compression._fake_quant import FakeQuant
from keras_efficient.compression._integers import from_integers, largest
from keras_efficient.compression._keras_quantize import METHODS, name_of, quantize_with_keras
from keras_efficient.compression._observers import (
    attach_quantizers,
    batches_of,
    detached_on_error,
    input_grams,
    observe,
)
from keras_efficient.compression._quantize_aware import check_bits
from keras_efficient.compression._range_estimation import (
    least_error_range,
    percentile_range,
    weight_clip,
)
from keras_efficient.compression._reconstruction import (
    assign,
    check_plain,
    matrix_of,
    quantize_gptq,
)
from keras_efficient.flavor import Model
from keras_efficient.parametrize._attach import attach
from keras_efficient.parametrize._select import select


@dataclass(frozen=True)
class CalibrationReport:
    """The result of `calibrate`; prints as one line.

    Attributes:
        method: name of the method.
        weights: tuple of the paths of the weights that are rounded.
        weight_bits: bits of each number of a weight.
        ranges: dict of a layer's path to the (low, high) of its input; empty if inputs are not
            rounded.
        unused: tuple of the paths of the layers the data did not reach, whose input is not rounded.
        batches: number of batches the ranges were measured on.
        reduce_range: whether kernels use 7 of their 8 bits.
    """

    method: str
    weights: tuple[str, ...]
    weight_bits: int
    ranges: dict[str, tuple[float, float]]
    unused: tuple[str, ...]
    batches: int
    reduce_range: bool = False

    def __str__(self):
        text = f"calibrate: {self.method}, {len(self.weights)} weights in {self.weight_bits} bits"
        text += ", kernels in 7" if self.reduce_range else ""
        if self.ranges:
            text += f", inputs of {len(self.ranges)} layers in 8, from {self.batches} batches"
        if self.unused:
            text += f"; not reached, so not rounded: {', '.join(self.unused)}"
        return text


def calibrate(
    model: Model,
    data: Any = None,
    *,
    weight_bits: int = 8,
    activation_bits: int | None = 8,
    reduce_range: bool = False,
    method: Any = "minmax",
    percentile: float = 99.99,
    group_size: int | None = None,
    migration: float = 0.5,
    layers: Any = None,
) -> CalibrationReport:
    """Round a trained model's weights and layer inputs, with ranges measured on some data.

    This is post-training quantization. The model then has the same transforms as after
    `ke.quantize_aware`, with constant ranges: it computes in floats what integers would,
    `ke.summary` shows its bytes, and `ke.export` writes its integers. Each output of a weight, or
    row of an embedding, has its own scale.

    Args:
        model: a built Keras 3 or tf_keras model of any kind.
        data: typical inputs: one batch as `fit` yields it (targets are ignored), or a finite
            iterable of batches. A few hundred examples suffice. Default: None, which is possible
            where inputs are not rounded and with Keras' own methods.
        weight_bits: bits per number of a weight: 8 or 4. Default: 8.
        activation_bits: bits per number of an input: 8, or None not to round inputs. Default: 8.
        reduce_range: whether kernels use 7 of their 8 bits, -63 ... 63, as `ke.export` with
            quantize="int8" needs it for x86 CPUs without VNNI (target="avx2"). The model in memory
            then computes what such an export does, and "mse" and "reconstruction" choose for 7
            bits. Default: False.
        method: how ranges are chosen. Default: "minmax".

            - "minmax": ranges cover all observed numbers.
            - "percentile": ranges exclude `100 - percentile` percent of the numbers at either end.
            - "mse": ranges of inputs with the least mean squared error, and ranges of weights with
              the least mean squared error of the layers' outputs on the data. Embeddings, kernels
              of convolutions, kernels that the data does not reach, and all weights without
              `data` get the least error of the weights themselves. Memory: 8 · inputs² bytes for
              every kernel.
            - "smoothquant": "minmax" after outliers were moved from the inputs to the weights of
              dense layers: x_j / s_j and s_j · W_j with s_j = max|X_j|^α / max|W_j|^(1-α).
            - "reconstruction": "minmax" for inputs; weights are rounded such that the layers'
              outputs on the data change least (GPTQ). This changes the weights themselves; it is
              meant for 4 bits.
            - "int8", "int4" or a config of `keras.quantizers` (`GPTQConfig` and `AWQConfig` have
              their own data): Keras 3's `model.quantize`, which replaces the layers' variables by
              integers and cannot be undone.
        percentile: in (50, 100), used by "percentile". Default: 99.99.
        group_size: number of consecutive inputs of an output that share a scale, mostly used with
            4 bits. It must divide the number of inputs. Default: None, all inputs share it.
        migration: α in [0, 1], used by "smoothquant". Default: 0.5.
        layers: selects the weights; see `parametrize.select`. Default: None, all kernels and
            embeddings.

    Returns:
        A `CalibrationReport`.

    Raises:
        ValueError: an argument is out of range or belongs to another method, a weight's inputs are
            not whole groups or bytes, no weight is selected, there is no data, a weight is
            quantized already, or a method of Keras 3 is used on a tf_keras model or a model with
            transforms.
        TypeError: `data` is not data.

    Examples:
        >>> print(ke.calibrate(model, dataset, method="mse"))  # doctest: +ELLIPSIS
        calibrate: mse, ...

    Reference:
        Nagel et al. 2021, "A White Paper on Neural Network Quantization"; Xiao et al. 2022,
        "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models";
        Frantar et al. 2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
        Transformers".
    """
    caller = "ke.calibrate"
    check_bits(caller, weight_bits, activation_bits, True, group_size, reduce_range)
    if method not in METHODS:
        plain = (weight_bits, activation_bits, group_size) == (8, 8, None) and not reduce_range
        paths, bits = quantize_with_keras(model, method, layers, data, plain)
        return CalibrationReport(f"Keras' {name_of(method)}", paths, bits, {}, (), 0)
    _check_numbers(percentile, migration, method, activation_bits)
    weights = select(model, layers, (KERNEL, EMBEDDING), caller=caller, transform=FakeQuant.name)
    pairs = [
        (
            weight,
            FakeQuant(
                weight_bits,
                reduce_range=reduce_range and weight.kind == KERNEL,
                group_size=group_size,
            ),
        )
        for weight in weights
    ]
    for weight, transform in pairs:
        transform.check(weight)
    reconstructs = method == "reconstruction"
    if reconstructs:
        check_plain(weights, f"{caller} with method='reconstruction'")
    grams, batches = {}, []
    if activation_bits or reconstructs or (method == "mse" and data is not None):
        if data is None:
            raise ValueError(
                f"{caller} measures the inputs of layers. Received: no `data`. Give a batch, or "
                "activation_bits=None and a method of weights alone."
            )
        batches = batches_of(data, caller)
    if batches and method in ("mse", "reconstruction"):
        grams = input_grams(model, [w for w in weights if w.kind == KERNEL], batches)
    paths = tuple(w.path for w in weights)
    if not activation_bits:
        _choose_scales(model, pairs, method, grams)
        attach(model, pairs)
        return CalibrationReport(method, paths, weight_bits, {}, (), len(batches), reduce_range)
    quantizers = attach_quantizers(model, weights, None, activation_bits)
    with detached_on_error(model, quantizers):
        if method == "smoothquant":
            _smooth(model, pairs, quantizers, batches, migration)
        counts = method in ("percentile", "mse")
        measured = observe(model, quantizers.values(), batches, counts=counts)
        stats = dict(zip(quantizers, measured, strict=True))
        ranges = {}
        for path, found in stats.items():
            if found.calls:
                ranges[path] = _range(found, method, percentile, activation_bits)
                quantizers[path].set_range(*ranges[path])
        _choose_scales(model, pairs, method, grams)
    attach(model, pairs)
    unused = tuple(path for path, found in stats.items() if not found.calls)
    return CalibrationReport(method, paths, weight_bits, ranges, unused, len(batches), reduce_range)


def smoothing(channels: np.ndarray, matrix: np.ndarray, migration: float) -> np.ndarray:
    """Compute SmoothQuant's factors, which inputs are divided by and rows of weights multiplied by.

    s_j = max|X_j|^α / max|W_j|^(1-α). With α = 0.5 input j and row j then have the same range.

    Args:
        channels: float array [inputs], max|X_j|.
        matrix: float array [inputs, outputs], W.
        migration: α in [0, 1].

    Returns:
        float32 array [inputs] of numbers above 0.
    """
    x, w = np.asarray(channels, np.float64), np.abs(np.asarray(matrix, np.float64)).max(1)
    # An input that is always zero or has only zero weights keeps its scale.
    usable = (x > 1e-12) & (w > 1e-12)
    x, w = np.where(usable, x, 1.0), np.where(usable, w, 1.0)
    return np.clip(x**migration / w ** (1 - migration), 1e-6, 1e6).astype(np.float32)


def _range(stats, method, percentile, bits):
    if method == "percentile":
        return percentile_range(stats, percentile)
    if method == "mse":
        return least_error_range(stats, bits)
    return stats.low, stats.high


def _smooth(model, pairs, quantizers, batches, migration):
    """Divide the inputs of dense layers by SmoothQuant's factors, and multiply their weights."""
    by_layer = {id(q.layer): q for q in quantizers.values()}
    kernels = Counter(id(layer) for w, _ in pairs if w.kind == KERNEL for layer, _ in w.owners)
    smoothed = {}
    for weight, transform in pairs:
        # A convolution multiplies an input with several rows of its kernel, so it has no factors.
        dense = weight.kind == KERNEL and input_axes(weight.layer, weight, len(weight.shape))
        if dense and all(kernels[id(layer)] == 1 for layer, _ in weight.owners):
            owners = [by_layer[id(layer)] for layer, _ in weight.owners if id(layer) in by_layer]
            smoothed[id(transform)] = owners
    channels = {id(q): w for w, t in pairs for q in smoothed.get(id(t), ())}
    chosen = [q for q in quantizers.values() if id(q) in channels]
    measured = observe(model, chosen, batches, channels=channels)
    largest_inputs = {id(q): s.channels for q, s in zip(chosen, measured, strict=True)}
    with model.distribute_strategy.scope():
        for weight, transform in pairs:
            owners = smoothed.get(id(transform), ())
            found = [x for q in owners if (x := largest_inputs[id(q)]) is not None]
            if found:
                # Layers that share a weight share its factors.
                transform.smooth = smoothing(np.max(found, 0), matrix_of(weight), migration)
                for quantizer in owners:
                    quantizer.set_smoothing(weight, transform.smooth)


def _choose_scales(model, pairs, method, grams):
    """Set the clipping of the weights' scales; for "reconstruction", round weights by GPTQ."""
    if method not in ("mse", "reconstruction"):
        return
    new = []
    for weight, transform in pairs:
        bits, group_size = transform.range_bits, transform.group_size
        gram = grams.pop(weight, None)
        if gram is None or method == "mse":
            transform.clip = weight_clip(matrix_of(weight), bits, group_size, gram)
            continue
        integers, scales = quantize_gptq(matrix_of(weight), gram, bits, group_size)
        new.append((weight, from_integers(integers, scales)))
        # The largest integer of a group may be below the grid's last one.
        most = np.abs(integers.reshape(len(scales), -1, integers.shape[1])).max(1)
        transform.clip = (largest(bits) / np.maximum(most, 1)).astype(np.float32)
    assign(model, new)


def _check_numbers(percentile, migration, method, activation_bits):
    if not 50 < percentile < 100:
        raise ValueError(f"`percentile` must be in (50, 100). Received: {percentile!r}.")
    if not 0 <= migration <= 1:
        raise ValueError(f"`migration` must be in [0, 1]. Received: {migration!r}.")
    if activation_bits is None and method in ("percentile", "smoothquant"):
        raise ValueError(
            f"method={method!r} is for ranges of activations. Received: activation_bits=None. "
            "Choose 'minmax' or 'mse'."
        )
