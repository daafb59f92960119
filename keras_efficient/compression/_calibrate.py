"""Round a trained model after its training, with ranges measured on some data."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from keras_efficient.compression import _range_estimation as range_estimation
from keras_efficient.compression._activation_quantization import input_axes
from keras_efficient.compression._fake_quant import FakeQuant
from keras_efficient.compression._integers import from_integers, largest
from keras_efficient.compression._keras_quantize import METHODS, name_of, quantize_with_keras
from keras_efficient.compression._observers import batches_of, observe, products
from keras_efficient.compression._quantize_aware import (
    attached,
    check_bits,
    for_a_while,
    undone_on_error,
)
from keras_efficient.compression._reconstruction import (
    assign,
    check_plain,
    matrix_of,
    quantize_gptq,
)
from keras_efficient.compression._smoothquant import smoothing
from keras_efficient.parametrize._attach import attach
from keras_efficient.parametrize._select import select
from keras_efficient.parametrize._weights import EMBEDDING, KERNEL


@dataclass(frozen=True)
class CalibrationReport:
    """What `calibrate` set.

    Attributes:
        method: str.
        weights: tuple of the paths of the weights that are rounded.
        weight_bits: int.
        ranges: dict of a layer's path to the (low, high) of its input; empty if not rounded.
        unused: tuple of the paths of layers the data did not reach; their input is not rounded.
        batches: int, of data.
    """

    method: str
    weights: tuple
    weight_bits: int
    ranges: dict
    unused: tuple
    batches: int

    def __str__(self):
        text = f"calibrate: {self.method}, {len(self.weights)} weights in {self.weight_bits} bits"
        if self.ranges:
            text += f", inputs of {len(self.ranges)} layers in 8, from {self.batches} batches"
        if self.unused:
            text += f"; not reached, so not rounded: {', '.join(self.unused)}"
        return text


def calibrate(
    model,
    data=None,
    *,
    weight_bits=8,
    activation_bits=8,
    method="minmax",
    percentile=99.99,
    group_size=None,
    migration=0.5,
    layers=None,
) -> CalibrationReport:
    """Round a trained model's weights and activations, with ranges measured on some data.

    Post-training quantization: no training. The model is then one that `ke.quantize_aware` might
    have made, with ranges that stay: it computes in floats what integers would, `ke.summary` shows
    its bytes, and `ke.export` writes it. Each output of a weight (each row of an embedding) has its
    scale.

    Args:
        model: a built Keras 3 or tf_keras model of any kind.
        data: typical inputs: one batch as `fit` yields it (targets are passed over), or a finite
            iterable of batches. A few hundred examples do. Not needed where inputs stay floats,
            or by Keras' own methods.
        weight_bits: 8 (default) or 4.
        activation_bits: 8 (default), or None: inputs are not rounded.
        method: "minmax" (default): ranges cover all that is seen. "percentile": but for the
            `100 - percentile` percent of the numbers at either end. "mse": ranges with the least
            square error, of inputs and of weights. "smoothquant": minmax, after inputs with
            outliers have been made smaller and their weights larger, by
            s_j = max|X_j|^α / max|W_j|^(1-α) (dense layers; the product stays the same).
            "reconstruction": minmax for inputs; weights are rounded such that layers' outputs on
            the data change least (GPTQ), which changes their own numbers; for 4 bits.
            Of Keras 3's own: "int8", "int4", or a config of `keras.quantizers` (`GPTQConfig` and
            `AWQConfig` bring their own data): `model.quantize` then replaces the layers'
            variables by integers, for good.
        percentile: float in (50, 100), of "percentile". Default 99.99.
        group_size: int, the consecutive inputs of an output that share a scale; for 4 bits. It
            divides the inputs. Default: all share it.
        migration: float in [0, 1], α of "smoothquant". Default 0.5.
        layers: which weights; see `parametrize.select`. Default: all kernels and embeddings.

    Returns:
        A `Calibrated`, to print.

    Raises:
        ValueError: an argument out of range or of another method, a weight whose inputs are not
            whole groups or bytes, no such weights, no data, weights that are rounded already, or
            Keras' own method for a model that is not Keras 3 or has transforms.
        TypeError: `data` is no data.

    Example:
        >>> print(ke.calibrate(model, dataset, method="mse"))  # doctest: +ELLIPSIS
        calibrate: mse, ...

    Reference:
        Nagel et al. 2021, "A White Paper on Neural Network Quantization"; Xiao et al. 2022,
        "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models";
        Frantar et al. 2023, "GPTQ".
    """
    caller = "ke.calibrate"
    check_bits(caller, weight_bits, activation_bits, True, group_size)
    if method not in METHODS:
        plain = (weight_bits, activation_bits, group_size) == (8, 8, None)
        paths, bits = quantize_with_keras(model, method, layers, data, plain)
        return CalibrationReport(f"Keras' {name_of(method)}", paths, bits, {}, (), 0)
    _check_numbers(percentile, migration, method, activation_bits)
    weights = select(model, layers, (KERNEL, EMBEDDING), caller=caller, transform=FakeQuant.name)
    pairs = [(weight, FakeQuant(weight_bits, group_size=group_size)) for weight in weights]
    for weight, transform in pairs:
        transform.check(weight)
    rebuilds = method == "reconstruction"
    if rebuilds:
        check_plain(weights, f"{caller} with method='reconstruction'")
    if (activation_bits or rebuilds) and data is None:
        raise ValueError(
            f"{caller} measures the inputs of layers. Received: no `data`. Give a batch, or "
            "activation_bits=None and a method of weights alone."
        )
    grams, batches = {}, []
    if activation_bits or rebuilds:
        batches = batches_of(data, caller)
    if rebuilds:
        kernels = [weight for weight in weights if weight.kind == KERNEL]
        with for_a_while(model, kernels) as parts:
            grams = products(model, parts, kernels, batches)
    paths = tuple(w.path for w in weights)
    if not activation_bits:
        _set_grids(model, pairs, method, grams)
        attach(model, pairs)
        return CalibrationReport(method, paths, weight_bits, {}, (), len(batches))
    parts = attached(model, weights, None, activation_bits)
    with undone_on_error(model, parts):
        if method == "smoothquant":
            _migrate(model, pairs, parts, batches, migration)
        counts = method in ("percentile", "mse")
        found = dict(
            zip(parts, observe(model, list(parts.values()), batches, counts=counts), strict=True)
        )
        ranges = {}
        for path, seen in found.items():
            if seen.calls:
                ranges[path] = _range(seen, method, percentile, activation_bits)
                parts[path].set(*ranges[path])
        _set_grids(model, pairs, method, grams)
    attach(model, pairs)
    unused = tuple(path for path, seen in found.items() if not seen.calls)
    return CalibrationReport(method, paths, weight_bits, ranges, unused, len(batches))


def _range(seen, method, percentile, bits):
    if method == "percentile":
        return range_estimation.of_percentile(seen, percentile)
    if method == "mse":
        return range_estimation.of_least_error(seen, bits)
    return seen.low, seen.high


def _migrate(model, pairs, parts, batches, migration):
    """Divide the inputs of dense layers, and multiply the rows of their weights."""
    by_layer = {id(part.layer): part for part in parts.values()}
    owned = Counter(id(layer) for w, _ in pairs if w.kind == KERNEL for layer, _ in w.owners)
    smoothed = {}
    for weight, transform in pairs:
        mine = [by_layer[id(layer)] for layer, _ in weight.owners if id(layer) in by_layer]
        # (A window of a convolution meets an input with several rows.)
        dense = weight.kind == KERNEL and input_axes(weight.layer, weight, len(weight.shape))
        if dense and all(owned[id(layer)] == 1 for layer, _ in weight.owners):
            smoothed[id(transform)] = mine
    channels = {id(p): w for w, t in pairs for p in smoothed.get(id(t), ())}
    chosen = [p for p in parts.values() if id(p) in channels]
    seen = {
        id(p): s.channels
        for p, s in zip(chosen, observe(model, chosen, batches, channels=channels), strict=True)
    }
    with model.distribute_strategy.scope():
        for weight, transform in pairs:
            mine = [p for p in smoothed.get(id(transform), ()) if seen[id(p)] is not None]
            if mine:
                # (Layers that share a weight share the division.)
                most = np.max([seen[id(part)] for part in mine], 0)
                transform.smooth = smoothing(most, matrix_of(weight), migration)
                for part in smoothed[id(transform)]:
                    part.divide(weight, transform.smooth)


def _set_grids(model, pairs, method, grams):
    """Choose what the scales of weights cover; and by `grams` what is rounded up or down."""
    if method not in ("mse", "reconstruction"):
        return
    new = []
    for weight, transform in pairs:
        bits, group_size = transform.bits, transform.group_size
        if weight not in grams:
            transform.clip = range_estimation.of_weight(matrix_of(weight), bits, group_size)
            continue
        integers, scales = quantize_gptq(matrix_of(weight), grams.pop(weight), bits, group_size)
        new.append((weight, from_integers(integers, scales)))
        # The largest number of a group may be less than the grid's last.
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
