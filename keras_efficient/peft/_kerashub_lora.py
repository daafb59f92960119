"""Load LoRA weights from the `.lora.h5` files of KerasHub."""

from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from keras_efficient import flavor as flavors
from keras_efficient._errors import InputError
from keras_efficient.architecture._weights import KERNEL, all_weights
from keras_efficient.flavor import Model
from keras_efficient.parametrize._attach import attach
from keras_efficient.parametrize._checks import check_weights
from keras_efficient.peft._lora import LoRADelta, check_name
from keras_efficient.peft._low_rank import compute_factored
from keras_efficient.peft._report import TuningReport, freeze_base

_A, _B = "lora_kernel_a", "lora_kernel_b"
#: Largest number of values of an array. The rank, and so the size, is what the file claims.
_MAX_VALUES = 2**28


def load_kerashub_lora(model: Model, path: Path, name: str) -> TuningReport:
    """Attach the LoRA that `backbone.save_lora_weights(path)` saved, and freeze all but the head.

    Args:
        model: a KerasHub backbone, or a task with one.
        path: path of the file.
        name: name of the adapter in the model.

    Raises:
        InputError: the file is damaged, or belongs to another backbone.
        ValueError: the model has no KerasHub backbone, or has an adapter of this name.
    """
    own = hasattr(model, "load_lora_weights")
    backbone: Any = model if own else getattr(model, "backbone", None)
    if not hasattr(backbone, "load_lora_weights"):
        raise ValueError(
            "A '.lora.h5' file is for a KerasHub backbone, or a model with one as its `backbone`. "
            f"Received: {type(model).__name__} {model.name!r}. Load a file of ke.save_adapters."
        )
    check_name(name)
    rank, found = _read(path, _kernels(model, backbone), backbone.name)
    # Keras' `enable_lora` uses alpha = rank, and KerasHub does not change that.
    pairs = [(weight, LoRADelta(rank, rank, 0, name, by_last_axis=True)) for weight, _, _ in found]
    values = [(a.reshape(-1, rank), b) for _, a, b in found]
    weights = [weight for weight, _ in pairs]
    check_weights(weights, "ke.load_adapters", transform=name, trains=True)
    freeze_base(model)
    attach(model, pairs)
    for (_, delta), (a, b) in zip(pairs, values, strict=True):
        delta.a.assign(a)
        delta.b.assign(b)
    compute_factored(model, weights)
    return TuningReport.of(model, name, [weight.path for weight in weights])


def _kernels(model, backbone):
    """Return `{index: Weight}` of kernels, by KerasHub's numbers of layers with weights."""
    flavor = flavors.of(model)
    by_layer = {
        id(layer): weight
        for weight in all_weights(model)
        if weight.kind == KERNEL and weight.attribute == "kernel"
        for layer, _ in weight.owners
    }
    layers = list(backbone._flatten_layers(include_self=False))
    stores = [layer for layer in layers if isinstance(layer, flavor.store)]
    ours = {id(variable) for store in stores for variable in store.weights}
    numbered = [layer for layer in layers if any(id(v) not in ours for v in layer.weights)]
    return {i: by_layer[id(x)] for i, x in enumerate(numbered) if id(x) in by_layer}


def _read(path, kernels, backbone):
    """Return `(rank, [(Weight, A, B)])` from a file, whose arrays are checked before they are read.

    Args:
        path: path of the file.
        kernels: dict of layer number to `Weight`.
        backbone: name of the backbone, for error messages.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            group = _member(path, file, "lora", h5py.Group)
            stored: Any = _array(path, _member(path, group, "vars", h5py.Group), "rank", (), "iuf")
            rank = int(stored)
            if rank < 1:
                _refuse(path, f"deltas of rank {rank}")
            found = {}
            key: Any
            for key in group:
                if key == "vars":
                    continue
                weight = kernels.get(int(key))
                if weight is None:
                    _refuse(path, f"a delta for layer {key}, which has no kernel in {backbone!r}")
                if id(weight) in found:
                    _refuse(path, f"two deltas for {weight.path!r}")
                layer = _member(path, group, key, h5py.Group)
                inner = _member(path, layer, "vars", h5py.Group)
                a = _array(path, inner, _A, (*weight.shape[:-1], rank))
                b = _array(path, inner, _B, (rank, weight.shape[-1]))
                found[id(weight)] = weight, a, b
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        _refuse(path, f"one that cannot be read ({error})")
    if not found:
        _refuse(path, "0 deltas")
    return rank, list(found.values())


def _member(path, group, key, kind):
    """Return a member that lies in the file itself: no link, and no data in other files."""
    import h5py

    if not isinstance(group.get(key, getlink=True), h5py.HardLink):
        _refuse(path, f"one without {group.name}/{key}, or with a link there")
    member = group[key]
    elsewhere = isinstance(member, h5py.Dataset) and (member.external or member.is_virtual)
    if not isinstance(member, kind) or elsewhere:
        _refuse(path, f"{member.name}, which is no {kind.__name__.lower()} of the file itself")
    return member


def _array(path, group, name, shape, kinds="f") -> np.ndarray:
    """Read an array of this shape and one of these kinds of dtypes, with finite values."""
    import h5py

    data: Any = _member(path, group, name, h5py.Dataset)
    # A header may claim any size, of which the file need not hold a byte.
    if data.shape != shape or data.dtype.kind not in kinds or data.size > _MAX_VALUES:
        _refuse(path, f"{data.name} of {data.dtype} {data.shape}, not of {shape}")
    with np.errstate(over="ignore"):
        array = np.asarray(data[()]).astype("float32" if kinds == "f" else data.dtype)
    if not np.isfinite(array).all():
        _refuse(path, f"{data.name} with values that are NaN or infinite")
    return array


def _refuse(path, received) -> NoReturn:
    raise InputError(
        f"{path} must be a file of `backbone.save_lora_weights` for this backbone. Received: "
        f"{received}. Save it again, from a backbone of the same architecture."
    )
