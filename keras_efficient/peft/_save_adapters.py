"""Save adapters and the weights that train with them to a small file."""

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_efficient import flavor as flavors
from keras_efficient.flavor import Model
from keras_efficient.parametrize._checks import check_model
from keras_efficient.peft._adapter_state import AdapterState, saved_variables, to_array

#: Key of this package's entry in the metadata of a file, and version of its format.
KEY, VERSION = "keras_efficient", 1


@dataclass(frozen=True)
class AdapterFileReport:
    """Result of `save_adapters`.

    Attributes:
        path: path of the file.
        adapters: tuple of the names of LoRA and AdaLoRA adapters in it.
        parameters: number of parameters in the file.
        bytes: size of the file in bytes.
    """

    path: str
    adapters: tuple[str, ...]
    parameters: int
    bytes: int

    def __str__(self):
        names = ", ".join(self.adapters) or "no LoRA"
        return f"{self.path}: {names}; {self.parameters:,} numbers, {self.bytes / 1e6:.2f} MB"


def save_adapters(
    model: Model, path: str | os.PathLike, *, name: str | None = None, head: bool = True
) -> AdapterFileReport:
    """Save only what parameter-efficient tuning has trained, to a `.safetensors` file.

    The file holds the variables of LoRA, AdaLoRA, adapters and prefixes, the base weights that
    train, such as the head or BitFit's biases, and moving averages of BatchNormalization. Its
    metadata describe the adapters, so that `ke.load_adapters` needs only the base model. The file
    is replaced atomically.

    Args:
        model: a model tuned by `ke.lora`, `ke.adalora`, `ke.adapters`, `ke.prefix_tuning` or
            `ke.bitfit`.
        path: path of the file, ending in ".safetensors". If there are several workers, the first
            one writes it.
        name: name of the only LoRA adapter to save. Default: None, all.
        head: whether to save the base weights that train. Default: True.

    Returns:
        An `AdapterFileReport`, to print.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: the model is not built, `path` has another suffix, there is no adapter of this
            name, or there is nothing to save.

    Examples:
        >>> report = ke.lora(model, rank=2)
        >>> saved = ke.save_adapters(model, "reviews.safetensors")
        >>> saved.adapters
        ('lora',)

    Reference:
        `save_pretrained` of PEFT; the format of https://github.com/huggingface/safetensors.
    """
    from safetensors.numpy import save_file

    check_model(model, "ke.save_adapters", changes=False)
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(
            "ke.save_adapters writes a safetensors file. Received: "
            f"{str(path)!r}. End its name in '.safetensors'."
        )
    state, flavor = AdapterState.of(model), flavors.of(model)
    deltas_by_name = state.deltas
    if name is not None:
        if name not in deltas_by_name:
            raise ValueError(
                "`name` must be that of a LoRA of the model. Received: "
                f"{name!r}; there is {', '.join(deltas_by_name) or 'none'}."
            )
        deltas_by_name = {name: deltas_by_name[name]}
    if not deltas_by_name and not state.others and not (head and _is_partly_frozen(state)):
        raise ValueError(
            "ke.save_adapters writes what parameter-efficient tuning has trained. Received: "
            f"{model.name!r}, of which nothing was tuned. Apply ke.lora or the like first, or "
            "use `model.save_weights`."
        )
    tensors, adapters = {}, []
    for adapter, deltas in deltas_by_name.items():
        first = next(iter(deltas.values()))
        facts = {"name": adapter, "method": first.method, "settings": first.settings()}
        adapters.append({**facts, "weights": list(deltas)})
        for weight_path, delta in deltas.items():
            for variable_name, variable in saved_variables(delta).items():
                tensors[f"{weight_path}.{adapter}.{variable_name}"] = to_array(variable, flavor)
    others = {} if name is not None else state.others
    tensors |= {key: to_array(variable, flavor) for key, (_, variable) in others.items()}
    base = state.trained if head else {}
    tensors |= {key: to_array(weight.variable, flavor) for key, weight in base.items()}
    metadata = {
        "version": VERSION,
        "base": state.fingerprint,
        "adapters": adapters,
        "others": {key: class_name for key, (class_name, _) in others.items()},
        "weights": list(base),
    }
    cluster = getattr(model.distribute_strategy, "cluster", None)
    # All workers have to take part in reading the variables above; one writes.
    if cluster is None or cluster.index == 0:
        _write(path, lambda new: save_file(tensors, new, {KEY: json.dumps(metadata)}))
    parameters = sum(tensor.size for tensor in tensors.values())
    size = path.stat().st_size if path.exists() else 0
    return AdapterFileReport(str(path), tuple(deltas_by_name), parameters, size)


def _is_partly_frozen(state):
    return 0 < len(state.trained) < len(state.weights)


def _write(path: Path, write: Callable[[str], Any]) -> None:
    """Write a file under a temporary name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, new = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(new)
        # `mkstemp` gives access to the owner only; use the permissions of a normally created file.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(new, 0o666 & ~mask)
        os.replace(new, path)
    finally:
        if os.path.exists(new):
            os.unlink(new)
