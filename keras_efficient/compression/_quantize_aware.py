"""Train a model so that it computes well when rounded."""

from contextlib import contextmanager
from dataclasses import dataclass

from keras_efficient.compression._activation_quantization import ActivationQuantizer, RangeTracker
from keras_efficient.compression._fake_quant import FakeQuant
from keras_efficient.compression._observers import batches_of, observe
from keras_efficient.parametrize._attach import attach, attach_call_wrappers, detach_call_wrappers
from keras_efficient.parametrize._layer_paths import layer_paths
from keras_efficient.parametrize._select import select
from keras_efficient.parametrize._weights import EMBEDDING, KERNEL
from keras_efficient.training._transform_updates import update_transforms


@dataclass(frozen=True)
class QuantizeAwareReport:
    """What `quantize_aware` set.

    Attributes:
        weights: tuple of the paths of the weights that are seen rounded.
        weight_bits: int.
        inputs: tuple of the paths of the layers whose input is rounded.
        activation_bits: int or None.
        begin_step: int, the update from which on they are.
        batches: int, of calibration.
    """

    weights: tuple
    weight_bits: int
    inputs: tuple
    activation_bits: int | None
    begin_step: int
    batches: int

    def __str__(self):
        text = f"quantize_aware: {len(self.weights)} weights in {self.weight_bits} bits"
        if self.inputs:
            text += f", inputs of {len(self.inputs)} layers in {self.activation_bits}"
            measured = (
                f"measured on {self.batches} batches" if self.batches else "found in training"
            )
            text += f" (ranges {measured})"
        return text + (f", from update {self.begin_step}" if self.begin_step else "")


def quantize_aware(
    model,
    weight_bits=8,
    activation_bits=8,
    *,
    per_channel=True,
    group_size=None,
    calibration=None,
    begin_step=0,
    freeze_step=None,
    embeddings=True,
    layers=None,
) -> QuantizeAwareReport:
    """See weights, and what is multiplied by them, rounded to few bits while the model trains.

    Acts from the next `fit` on, before or after `compile`; k microbatches or replicas give the
    ranges of one batch. A weight is rounded to x̂ = s · round(x / s) with s = max|x| / 127 (8 bits)
    or max|x| / 7 (4 bits), for each output its own; zeros stay zeros. A layer's input is rounded to
    256 steps of a range [low, high] around zero: a debiased moving average (decay 0.99) of what the
    updates see, which inference uses and never moves. Gradients pass straight through; those of
    inputs beyond their range are zero. Computed in float32 whatever the policy.

    Args:
        model: a built Keras 3 or tf_keras model of any kind.
        weight_bits: 8 (default) or 4.
        activation_bits: 8 (default), or None: inputs are not rounded.
        per_channel: a scale for each output (default; a row of an embedding is one), or one per
            weight.
        group_size: int, the consecutive inputs of an output that share a scale; for 4 bits. It
            divides the inputs. Default: all share it.
        calibration: some data to measure the ranges on first, in inference mode: one batch as
            `fit` yields it, or a finite iterable of batches. Default: the first update sets them,
            and before it inputs are not rounded.
        begin_step: int >= 0, the update from which on anything is rounded. Default 0.
        freeze_step: int >= 1, the update from which on ranges stay. Default: never.
        embeddings: whether embeddings are rounded too. Default True.
        layers: which weights; see `parametrize.select`. Default: all kernels, and embeddings.

    Returns:
        A `Quantized`, to print.

    Raises:
        ValueError: an argument out of range, a weight whose inputs are not whole groups or bytes,
            no such weights, no calibration data, or weights that are rounded already.
        TypeError: `calibration` is no data.

    Example:
        >>> print(ke.quantize_aware(model, weight_bits=8))  # doctest: +ELLIPSIS
        quantize_aware: ...

    Reference:
        Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference". Ranges and grid are those of
        tensorflow-model-optimization, whose moving averages start at ±6 and are not debiased
        (trap 27), differ between replicas (28), and refuse kernels of three axes (29).
    """
    check_bits("ke.quantize_aware", weight_bits, activation_bits, per_channel, group_size)
    _check_steps(begin_step, freeze_step, activation_bits, calibration)
    kinds = (KERNEL, EMBEDDING) if embeddings else (KERNEL,)
    weights = select(model, layers, kinds, caller="ke.quantize_aware", transform=FakeQuant.name)
    updater = RangeTracker(begin_step, freeze_step) if activation_bits or begin_step else None
    pairs = [
        (w, FakeQuant(weight_bits, per_channel=per_channel, group_size=group_size, updater=updater))
        for w in weights
    ]
    for weight, transform in pairs:
        transform.check(weight)
    batches = [] if calibration is None else batches_of(calibration, "ke.quantize_aware")
    parts = attached(model, weights, updater, activation_bits) if activation_bits else {}
    if batches and parts:
        with undone_on_error(model, parts):
            for part, seen in zip(
                parts.values(), observe(model, list(parts.values()), batches), strict=True
            ):
                if seen.calls:
                    part.set(seen.low, seen.high)
    attach(model, pairs)
    update_transforms(model)
    return QuantizeAwareReport(
        tuple(weight.path for weight in weights),
        weight_bits,
        tuple(parts),
        activation_bits,
        begin_step,
        len(batches),
    )


def attached(model, weights, updater, bits) -> dict:
    """Attach an `Activations` to every layer that has one of these kernels.

    Returns:
        Dict of the layer's path to its part, in the order of the layers.
    """
    wanted = {id(layer) for w in weights if w.kind == KERNEL for layer, _ in w.owners}
    layers = {path: layer for path, layer in layer_paths(model) if id(layer) in wanted}
    parts = {path: ActivationQuantizer(updater, bits) for path in layers}
    attach_call_wrappers(model, [(path, layers[path], part) for path, part in parts.items()])
    return parts


@contextmanager
def undone_on_error(model, parts):
    """A context that takes attached parts off again if what happens in it fails."""
    try:
        yield
    except BaseException:
        _take_off(model, parts)
        raise


@contextmanager
def for_a_while(model, weights):
    """A context with an `Activations` on every layer of these kernels, to look at inputs."""
    parts = attached(model, weights, None, 8)
    try:
        yield list(parts.values())
    finally:
        _take_off(model, parts)


def _take_off(model, parts):
    detach_call_wrappers(model, parts.values())


def check_bits(caller, weight_bits, activation_bits, per_channel, group_size):
    """Refuse what cannot be rounded to."""
    for name, value, allowed in (
        ("weight_bits", weight_bits, (8, 4)),
        ("activation_bits", activation_bits, (8, None)),
    ):
        if isinstance(value, bool) or value not in allowed:
            raise ValueError(
                f"`{name}` of {caller} must be {allowed[0]} or {allowed[1]}. Received: {value!r}."
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
