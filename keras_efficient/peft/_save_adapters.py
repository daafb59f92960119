"""Write what parameter-efficient tuning has trained into a small file of its own."""

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from keras_efficient import flavor as flavors
from keras_efficient.parametrize._checks import check_model
from keras_efficient.peft._adapter_state import Parts, array, variables_of

#: The key of our part in the file's metadata, and what it says of itself.
KEY, VERSION = "keras_efficient", 1


@dataclass(frozen=True)
class AdapterFileReport:
    """What `save_adapters` wrote.

    Attributes:
        path: str.
        adapters: tuple of the names of LoRAs and the like.
        parameters: int, numbers in the file.
        bytes: int, of the file.
    """

    path: str
    adapters: tuple
    parameters: int
    bytes: int

    def __str__(self):
        names = ", ".join(self.adapters) or "no LoRA"
        return f"{self.path}: {names}; {self.parameters:,} numbers, {self.bytes / 1e6:.2f} MB"


def save_adapters(model, path, *, name=None, head=True) -> AdapterFileReport:
    """Write what tuning has trained, and nothing else, to a `.safetensors` file.

    The file holds the variables of LoRA, AdaLoRA, adapters and prefixes, and the weights of the
    base that train (the head, biases of BitFit) or are averages (BatchNormalization's). Its
    metadata say what it is for, so that `ke.load_adapters` needs nothing but the base model. It
    appears whole or not at all.

    Args:
        model: a model tuned by ke.lora, ke.adalora, ke.adapters, ke.prefix_tuning or ke.bitfit.
        path: str or path, ending in ".safetensors"; an existing file is replaced. Of several
            workers the first one writes.
        name: str, write this LoRA only, of several. Default: all.
        head: bool, whether to write the weights of the base that train. Default True.

    Returns:
        A `SavedAdapters`, to print.

    Raises:
        ValueError: another suffix, no such adapter, or nothing to write.

    Example:
        >>> report = ke.lora(model, rank=2)
        >>> saved = ke.save_adapters(model, "reviews.safetensors")
        >>> saved.adapters
        ('lora',)
    """
    from safetensors.numpy import save_file

    check_model(model, "ke.save_adapters", strategy=False)
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(
            "ke.save_adapters writes a safetensors file. Received: "
            f"{str(path)!r}. End its name in '.safetensors'."
        )
    parts, flavor = Parts.of(model), flavors.of(model)
    adapters = parts.adapters
    if name is not None:
        if name not in adapters:
            raise ValueError(
                "`name` must be that of a LoRA of the model. Received: "
                f"{name!r}; there is {', '.join(adapters) or 'none'}."
            )
        adapters = {name: adapters[name]}
    if not adapters and not parts.others and not (head and _is_tuned(parts)):
        raise ValueError(
            "ke.save_adapters writes what parameter-efficient tuning has trained. Received: "
            f"{model.name!r}, of which nothing was tuned. Apply ke.lora or the like first, or "
            "use `model.save_weights`."
        )
    tensors, listed = {}, []
    for adapter, deltas in adapters.items():
        first = next(iter(deltas.values()))
        facts = {"name": adapter, "method": first.method, "settings": first.settings()}
        listed.append({**facts, "weights": list(deltas)})
        for where, delta in deltas.items():
            for variable_name, variable in variables_of(delta).items():
                tensors[f"{where}.{adapter}.{variable_name}"] = array(variable, flavor)
    others = {} if name is not None else parts.others
    tensors |= {key: array(variable, flavor) for key, (_, variable) in others.items()}
    base = parts.trained if head else {}
    tensors |= {where: array(weight.variable, flavor) for where, weight in base.items()}
    facts = {
        "version": VERSION,
        "base": parts.fingerprint,
        "adapters": listed,
        "others": {key: kind for key, (kind, _) in others.items()},
        "weights": list(base),
    }
    cluster = getattr(model.distribute_strategy, "cluster", None)
    # (All workers have read their replicas.)
    if cluster is None or cluster.index == 0:
        _write(path, lambda new: save_file(tensors, new, {KEY: json.dumps(facts)}))
    parameters = sum(tensor.size for tensor in tensors.values())
    size = path.stat().st_size if path.exists() else 0
    return AdapterFileReport(str(path), tuple(adapters), parameters, size)


def _is_tuned(parts):
    """Whether some of the base is frozen."""
    return 0 < len(parts.trained) < len(parts.weights)


def _write(path, write):
    """Write a file under another name, then give it its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, new = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(new)
        # As a file that is opened has it, not as one for oneself alone.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(new, 0o666 & ~mask)
        os.replace(new, path)
    finally:
        if os.path.exists(new):
            os.unlink(new)
