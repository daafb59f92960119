"""Load adapters from a file into a model."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import tensorflow as tf

from keras_efficient._errors import InputError
from keras_efficient.architecture._weights import Weight
from keras_efficient.flavor import Model
from keras_efficient.parametrize._attach import attach, freeze
from keras_efficient.parametrize._checks import check_model, check_weights
from keras_efficient.peft._adalora import (
    AdaLoRADelta,
    RankAllocator,
    attach_adalora,
    check_settings,
)
from keras_efficient.peft._adapter_state import AdapterState, saved_variables
from keras_efficient.peft._kerashub_lora import load_kerashub_lora
from keras_efficient.peft._lora import LoRADelta, check_name
from keras_efficient.peft._low_rank import check_alpha, check_rank, compute_factored
from keras_efficient.peft._report import TuningReport, freeze_base
from keras_efficient.peft._save_adapters import KEY, VERSION

#: The method that attaches what a file does not describe, by class name.
_METHODS = {
    "Bottleneck": "ke.adapters",
    "PrefixVectors": "ke.prefix_tuning",
    "Mask": "ke.prune",
}
#: dtypes of safetensors: floats, which convert to each other, and integers, which do not.
_FLOATS = ("F16", "F32", "F64")
_INTEGERS = {"U8": "uint8", "I64": "int64"}
#: dtypes of the variables of LoRA and AdaLoRA that are not float32.
_DELTA_DTYPES = {"mask": "uint8", "updates": "int64"}


def load_adapters(model: Model, path: str | os.PathLike, name: str | None = None) -> TuningReport:
    """Load a file of `ke.save_adapters` into a base model of the same architecture.

    LoRA and AdaLoRA adapters that the model does not have are attached as the file describes them;
    then the base is frozen except for the weights in the file, or for the head if it holds none.
    Other methods have to be applied before, with the arguments used for the saved model. The model
    changes only if the entire file fits: every shape and dtype, and no value NaN or infinite.

    A `.lora.h5` file of a KerasHub backbone (`backbone.save_lora_weights`) is also read. Its
    deltas, which belong to each head's matrix, become an equivalent adapter of this package.

    AdaLoRA continues with the ranks and the number of updates in the file; its moving averages
    start anew. To continue a run exactly, use `ke.callbacks.Resume`.

    Args:
        model: a built Keras 3 or tf_keras model with the base weights that the adapters were
            trained on. The file holds their names and shapes, not their values.
        path: path of a `.safetensors` or `.lora.h5` file.
        name: name of the adapter in the model, if the file holds only one. Default: None, the name
            in the file.

    Returns:
        A `TuningReport`, to print.

    Raises:
        TypeError: `model` is not a Keras model.
        InputError: the file does not exist, is damaged or of another kind, or belongs to another
            model.
        ValueError: the model is not built; it has an adapter of this name with other weights or
            settings; or something in the file has to be attached before.

    Examples:
        >>> _ = ke.lora(model, rank=2), ke.save_adapters(model, "reviews.safetensors")
        >>> print(ke.load_adapters(model, "reviews.safetensors"))  # doctest: +ELLIPSIS
        lora: ...

    Reference:
        `PeftModel.from_pretrained` of PEFT; `keras_hub.models.Backbone.load_lora_weights`.
    """
    check_model(model, "ke.load_adapters")
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"A file of adapters must exist. Received: {str(path)!r}. Look for a '.safetensors' or "
            "'.lora.h5' file."
        )
    if path.suffix == ".h5":
        return load_kerashub_lora(model, path, name or "lora")
    return _Loader(model, path, name).load()


class _Loader:
    """Load one file: validate all of it first, then change the model."""

    def __init__(self, model, path, name):
        self.model, self.path, self.state = model, path, AdapterState.of(model)
        self.name = name
        #: Names in the model of the adapters of the file.
        self.names: set[str] = set()
        #: `(pairs, allocator)` of each adapter to be attached; the allocator is AdaLoRA's or None.
        self.groups: list[tuple[list, RankAllocator | None]] = []
        #: `(variable, value)`, or `((delta, variable name), value)` if the delta is not attached.
        self.values: list[tuple[Any, Any]] = []
        #: Base weights in the file.
        self.weights: list[Weight] = []

    def refuse(self, received, remedy="Save it again with ke.save_adapters.") -> NoReturn:
        raise InputError(
            f"{self.path} must be a file of ke.save_adapters. Received: {received}. {remedy}"
        )

    def load(self):
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="numpy") as file:
                self.file, self.keys = file, set(file.keys())
                self.read(self.parse_metadata(file.metadata()))
        except (SafetensorError, OSError) as error:
            self.refuse(f"one that cannot be read ({error})")
        return self.apply()

    def parse_metadata(self, metadata):
        try:
            facts = json.loads((metadata or {})[KEY])
            version, adapters = facts["version"], facts["adapters"]
            base, others, weights = facts["base"], facts["others"], facts["weights"]
        except (KeyError, TypeError, ValueError, RecursionError):
            self.refuse("one without the metadata of that")
        if version != VERSION:
            self.refuse(f"one of version {version!r}, not {VERSION}", "Update keras_efficient.")
        fits = isinstance(adapters, list) and isinstance(others, dict) and _are_strings(weights)
        if not fits or not _are_strings(list(others)):
            self.refuse("metadata of another form")
        if base != self.state.fingerprint:
            self.refuse(
                f"one for a model of other weights' names or shapes than {self.model.name!r}",
                "Load the base model that the adapters were trained on, with a head of as many "
                "classes.",
            )
        return facts

    def read(self, facts):
        """Validate the whole file and collect `groups`, `values` and `weights`."""
        if self.name is not None:
            check_name(self.name)
            if len(facts["adapters"]) != 1:
                raise ValueError(
                    "`name` renames the one LoRA of a file. Received: "
                    f"{self.name!r} and a file of {len(facts['adapters'])}. Leave it out."
                )
        expected = set()
        for adapter in facts["adapters"]:
            expected |= self.read_adapter(adapter)
        for key, class_name in facts["others"].items():
            expected.add(key)
            if key not in self.state.others:
                known = isinstance(class_name, str) and class_name in _METHODS
                raise ValueError(
                    "Adapters other than LoRA must be attached before their values are loaded. "
                    f"Received: a file with {key!r}, which {self.model.name!r} does not have. "
                    f"Apply {_METHODS[class_name] if known else 'the same method'} with the "
                    "arguments of the saved model first."
                )
            variable = self.state.others[key][1]
            self.values.append((variable, self.tensor(key, variable.shape, variable.dtype)))
        for path in facts["weights"]:
            if path in expected:
                self.refuse(f"one that names {path!r} twice")
            expected.add(path)
            if path not in self.state.weights:
                self.refuse(f"a weight {path!r} that the model does not have")
            weight = self.state.weights[path]
            self.weights.append(weight)
            value = self.tensor(path, weight.shape, weight.variable.dtype)
            self.values.append((weight.variable, value))
        if stray := self.keys - expected:
            self.refuse(f"a tensor {min(stray)!r} that its metadata do not name")

    def read_adapter(self, adapter):
        """Validate one LoRA or AdaLoRA adapter; returns the keys of its tensors."""
        try:
            saved_name, method = adapter["name"], adapter["method"]
            settings, paths = adapter["settings"], adapter["weights"]
            create = {"lora": self.create_lora, "adalora": self.create_adalora}[method]
            if not _are_strings(paths) or len(set(paths)) != len(paths) or not paths:
                raise ValueError("it names no weights")
            if not isinstance(saved_name, str):
                raise ValueError("its name is not a string")
            if unknown := [path for path in paths if path not in self.state.weights]:
                raise ValueError(f"the model has no {unknown[0]!r}")
            weights = [self.state.weights[path] for path in paths]
            if any(len(weight.shape) < 2 for weight in weights):
                raise ValueError("one of its weights is not a matrix")
            if method == "lora":
                name = self.name or saved_name
                check_name(name)
            else:
                name = "adalora"
            new, shapes, allocator = create(settings, weights, name)
        except (KeyError, TypeError, ValueError) as error:
            self.refuse(f"invalid metadata of a LoRA ({error})")
        if self.name is not None and method != "lora":
            raise ValueError(
                f"`name` renames a LoRA. Received: {self.name!r} and a file of AdaLoRA, of which a "
                "model has one. Leave it out."
            )
        if name in self.names:
            self.refuse(f"one that names the LoRA {name!r} twice")
        self.names.add(name)
        present = self.state.deltas.get(name)
        if present is not None:
            same = present.keys() == set(paths) and all(
                type(d) is type(new[0]) and d.settings() == new[0].settings()
                for d in present.values()
            )
            if not same:
                raise ValueError(
                    "A LoRA of the model must be as the file's. Received: "
                    f"{name!r}, on other weights or with other settings than in {self.path}. Load "
                    "the file onto a model without it, or choose another `name`."
                )
            deltas = [present[path] for path in paths]
        else:
            check_weights(weights, "ke.load_adapters", transform=name, trains=True)
            deltas = new
            self.groups.append((list(zip(weights, new, strict=True)), allocator))
        expected = set()
        for index, (path, delta, weight) in enumerate(zip(paths, deltas, weights, strict=True)):
            for variable, shape in shapes(weight).items():
                # The counter of updates is saved with the first weight only.
                if variable == "updates" and index > 0:
                    continue
                key = f"{path}.{saved_name}.{variable}"
                expected.add(key)
                dtype = _DELTA_DTYPES.get(variable, "float32")
                value = self.tensor(key, shape, dtype)
                if variable in _DELTA_DTYPES and not _is_count(value, variable):
                    self.refuse(f"values of {key!r} that AdaLoRA cannot have")
                self.values.append(((delta, variable), value))
        return expected

    def create_lora(self, settings, weights, name):
        rank, alpha = settings["rank"], settings["alpha"]
        by_last_axis = settings["by_last_axis"]
        if not isinstance(by_last_axis, bool):
            raise ValueError("`by_last_axis` is not a bool")
        new = [LoRADelta(rank, alpha, 0, name, by_last_axis) for _ in weights]
        forms = {id(w): delta.matrix_form_of(w) for w, delta in zip(weights, new, strict=True)}
        # The shapes of the tensors bound the rank from above.
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            raise ValueError("`rank` is not a positive int")
        check_alpha(alpha)

        def shapes(weight):
            rows, columns = forms[id(weight)].matrix_shape
            return {"a": (rows, rank), "b": (rank, columns)}

        return new, shapes, None

    def create_adalora(self, settings, weights, name):
        rank, first, alpha = settings["rank"], settings["initial_rank"], settings["alpha"]
        begin, end = settings["begin_step"], settings["end_step"]
        check_rank(rank, weights)
        check_rank(first, weights, "initial_rank")
        if first < rank:
            raise ValueError("`initial_rank` is below `rank`")
        check_alpha(alpha)
        check_settings(begin, end, settings["orthogonality"])
        allocator = RankAllocator(rank, first, begin, end)
        new = [AdaLoRADelta(allocator, alpha, settings["orthogonality"]) for _ in weights]

        def shapes(weight):
            rows, columns = weight.matrix_shape
            found = {"p": (rows, first), "lambda": (first,), "q": (first, columns)}
            return {**found, "mask": (first,), "updates": ()}

        return new, shapes, allocator

    def tensor(self, key, shape, dtype):
        """Return a tensor of the file as `dtype`; it must be of this shape and kind, and finite."""
        if key not in self.keys:
            self.refuse(f"one without the tensor {key!r}")
        found, dtype = self.file.get_slice(key), tf.as_dtype(dtype)
        stored = found.get_dtype()
        fits = stored in _FLOATS if dtype.is_floating else _INTEGERS.get(stored) == dtype.name
        if tuple(found.get_shape()) != tuple(shape) or not fits:
            self.refuse(
                f"a tensor {key!r} of {stored} {found.get_shape()}, not of {list(shape)} and "
                f"{dtype.name}"
            )
        with np.errstate(over="ignore"):
            value = self.file.get_tensor(key).astype(dtype.as_numpy_dtype)
        if dtype.is_floating and not np.isfinite(value).all():
            self.refuse(
                f"a tensor {key!r} with values that are NaN or infinite as {dtype.name}",
                "Train again, and save before the loss becomes NaN.",
            )
        return value

    # --- everything is validated -----------------------------------------------------------------

    def apply(self):
        """Change the model."""
        model = self.model
        if self.groups:
            _attach_groups(model, self.groups, self.weights)
        for target, value in self.values:
            if isinstance(target, tuple):
                delta, name = target
                target = saved_variables(delta)[name]
            target.assign(value)
        after = AdapterState.of(model)
        names = ", ".join(after.deltas) or "adapters"
        paths = [d.weight.path for deltas in after.deltas.values() for d in deltas.values()]
        return TuningReport.of(model, names, paths)


def _attach_groups(
    model: Model,
    groups: Sequence[tuple[list, RankAllocator | None]],
    trained: Sequence[Weight],
) -> None:
    """Freeze a model except `trained`, or except its head if that is empty, and attach deltas."""
    if trained:
        ids = {id(weight.variable) for weight in trained}
        weights = AdapterState.of(model).weights.values()
        freeze(model, [weight for weight in weights if id(weight.variable) not in ids])
    else:
        freeze_base(model)
    for pairs, allocator in groups:
        if allocator is not None:
            attach_adalora(model, pairs, allocator)
        else:
            attach(model, pairs)
            compute_factored(model, [weight for weight, _ in pairs])


def _is_count(value, variable):
    """Whether the values are 0 or 1, or for `updates` a number of steps."""
    return value.size == 0 or (
        value.min() >= 0 and value.max() <= (1 if variable == "mask" else 2**62)
    )


def _are_strings(values):
    return isinstance(values, list) and all(isinstance(value, str) for value in values)
