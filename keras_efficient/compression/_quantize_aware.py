"""Quantization-aware training (QAT)."""

from dataclasses import dataclass
from typing import Any

from keras_efficient.architecture._weights import EMBEDDING, KERNEL
from keras_efficient.compression._activation_quantization import RangeTracker
from keras_efficient.compression._fake_quant import FakeQuant
from keras_efficient.compression._observers import (
    attach_quantizers,
    batches_of,
    detached_on_error,
    observe,
)
from keras_efficient.flavor import Model
from keras_efficient.parametrize._attach import attach
from keras_efficient.parametrize._select import select
from keras_efficient.training._transform_updates import update_transforms


@dataclass(frozen=True)
class QuantizeAwareReport:
    """The result of `quantize_aware`; prints as one line.

    Attributes:
        weights: tuple of the paths of the weights that are rounded.
        weight_bits: bits of each number of a weight.
        inputs: tuple of the paths of the layers whose input is rounded.
        activation_bits: bits of each number of an input, or None if inputs are not rounded.
        begin_step: the update from which on weights and inputs are rounded.
        reduce_range: whether kernels use 7 of their 8 bits.
        batches: number of batches the ranges were measured on; 0 without calibration.
    """

    weights: tuple[str, ...]
    weight_bits: int
    inputs: tuple[str, ...]
    activation_bits: int | None
    begin_step: int
    batches: int
    reduce_range: bool = False

    def __str__(self):
        text = f"quantize_aware: {len(self.weights)} weights in {self.weight_bits} bits"
        text += ", kernels in 7" if self.reduce_range else ""
        if self.inputs:
            text += f", inputs of {len(self.inputs)} layers in {self.activation_bits}"
            measured = (
                f"measured on {self.batches} batches" if self.batches else "found in training"
            )
            text += f" (ranges {measured})"
        return text + (f", from update {self.begin_step}" if self.begin_step else "")


def quantize_aware(
    model: Model,
    weight_bits: int = 8,
    activation_bits: int | None = 8,
    *,
    reduce_range: bool = False,
    per_channel: bool = True,
    group_size: int | None = None,
    calibration: Any = None,
    begin_step: int = 0,
    freeze_step: int | None = None,
    embeddings: bool = True,
    layers: Any = None,
) -> QuantizeAwareReport:
    """Train with weights and layer inputs rounded to few bits (quantization-aware training).

    Takes effect at the next `fit`, whether called before or after `compile`. Microbatches and
    replicas give the same ranges as one large batch. A weight is rounded to
    x̂ = s · round(x / s) with s = max|x| / 127 (8 bits) or max|x| / 7 (4 bits), computed for each
    output; zeros stay zeros. A layer's input is rounded to 256 steps of a range [low, high] that
    contains zero. The range is a debiased moving average (decay 0.99) over updates, which inference
    uses and never changes. Gradients pass straight through the rounding, except that inputs outside
    of their range get none. All of this is computed in float32, whatever the dtype policy.

    Args:
        model: a built Keras 3 or tf_keras model of any kind.
        weight_bits: bits per number of a weight: 8 or 4. Default: 8.
        activation_bits: bits per number of an input: 8, or None not to round inputs. Default: 8.
        reduce_range: whether kernels use 7 of their 8 bits, -63 ... 63. `ke.export` with
            quantize="int8" needs that for CPUs whose products of 8 bits saturate, x86 without VNNI
            (target="avx2"); trained so, they lose nothing more there. Embeddings are not
            multiplied and keep 8. Default: False.
        per_channel: whether each output has its own scale (of an embedding, each row). Default:
            True. False: one scale per weight.
        group_size: number of consecutive inputs of an output that share a scale, mostly used with
            4 bits. It must divide the number of inputs. Default: None, all inputs share it.
        calibration: data to measure the ranges on first, in inference mode: one batch as `fit`
            yields it, or a finite iterable of batches. Default: None. The first update then sets
            the ranges, and inputs are not rounded before it.
        begin_step: the update (>= 0) from which on anything is rounded. Default: 0.
        freeze_step: the update (>= 1) from which on ranges are constant. Default: None, never.
        embeddings: whether embeddings are rounded too. Default: True.
        layers: selects the weights; see `parametrize.select`. Default: None, all kernels and
            embeddings.

    Returns:
        A `QuantizeAwareReport`.

    Raises:
        ValueError: an argument is out of range, a weight's inputs are not whole groups or bytes, no
            weight is selected, `calibration` is empty, or a weight is quantized already.
        TypeError: `calibration` is not data.

    Examples:
        >>> print(ke.quantize_aware(model, weight_bits=8))  # doctest: +ELLIPSIS
        quantize_aware: ...

    Reference:
        Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference". The grid is that of tensorflow-model-optimization, whose
        moving averages start at ±6 and are not debiased (trap 27), differ between replicas (28),
        and whose per-axis quantizer fails on kernels of three axes (29).
    """
    check_bits(
        "ke.quantize_aware", weight_bits, activation_bits, per_channel, group_size, reduce_range
    )
    _check_steps(begin_step, freeze_step, activation_bits, calibration)
    kinds = (KERNEL, EMBEDDING) if embeddings else (KERNEL,)
    weights = select(model, layers, kinds, caller="ke.quantize_aware", transform=FakeQuant.name)
    updater = RangeTracker(begin_step, freeze_step) if activation_bits or begin_step else None
    pairs = [
        (
            w,
            FakeQuant(
                weight_bits,
                reduce_range=reduce_range and w.kind == KERNEL,
                per_channel=per_channel,
                group_size=group_size,
                updater=updater,
            ),
        )
        for w in weights
    ]
    for weight, transform in pairs:
        transform.check(weight)
    batches = [] if calibration is None else batches_of(calibration, "ke.quantize_aware")
    quantizers = (
        attach_quantizers(model, weights, updater, activation_bits) if activation_bits else {}
    )
    if batches and quantizers:
        with detached_on_error(model, quantizers):
            measured = observe(model, quantizers.values(), batches)
            for quantizer, stats in zip(quantizers.values(), measured, strict=True):
                if stats.calls:
                    quantizer.set_range(stats.low, stats.high)
    attach(model, pairs)
    update_transforms(model)
    return QuantizeAwareReport(
        tuple(weight.path for weight in weights),
        weight_bits,
        tuple(quantizers),
        activation_bits,
        begin_step,
        len(batches),
        reduce_range,
    )


def check_bits(
    caller: str,
    weight_bits: int,
    activation_bits: int | None,
    per_channel: bool,
    group_size: int | None,
    reduce_range: bool,
) -> None:
    """Raise a ValueError if the bits or groups are not supported."""
    for name, value, allowed in (
        ("weight_bits", weight_bits, (8, 4)),
        ("activation_bits", activation_bits, (8, None)),
    ):
        if isinstance(value, bool) or value not in allowed:
            raise ValueError(
                f"`{name}` of {caller} must be {allowed[0]} or {allowed[1]}. Received: {value!r}."
            )
    if not isinstance(reduce_range, bool):
        raise ValueError(
            f"`reduce_range` of {caller} must be True or False. Received: {reduce_range!r}."
        )
    if reduce_range and weight_bits != 8:
        raise ValueError(
            "Products saturate with weights of 8 bits, whose range can be reduced to 7. Received: "
            f"reduce_range=True with weight_bits={weight_bits} in {caller}. Leave it out."
        )
    if group_size is None:
        return
    if not isinstance(group_size, int) or isinstance(group_size, bool) or group_size < 2:
        raise ValueError(f"`group_size` must be an int of at least 2. Received: {group_size!r}.")
    if not per_channel:
        raise ValueError(
            "Groups are parts of a channel. Received: "
            f"group_size={group_size} with per_channel=False. Leave one of them out."
        )


def _check_steps(begin_step, freeze_step, activation_bits, calibration):
    if not isinstance(begin_step, int) or isinstance(begin_step, bool) or begin_step < 0:
        raise ValueError(
            f"`begin_step` must be an int of at least 0, an update. Received: {begin_step!r}."
        )
    if freeze_step is not None and (
        not isinstance(freeze_step, int) or isinstance(freeze_step, bool) or freeze_step < 1
    ):
        raise ValueError(
            f"`freeze_step` must be None or an int of at least 1, an update. Received: "
            f"{freeze_step!r}."
        )
    if activation_bits is None and (freeze_step is not None or calibration is not None):
        what = "calibration" if calibration is not None else "freeze_step"
        raise ValueError(
            "Ranges are those of rounded inputs. Received: "
            f"`{what}` with activation_bits=None. Leave it out, or choose activation_bits=8."
        )
