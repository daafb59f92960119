"""Put adapters from a file onto a model."""

import json
from pathlib import Path

from keras_efficient._errors import InputError
from keras_efficient.parametrize._attach import attach, freeze
from keras_efficient.parametrize._checks import check_model, check_weights
from keras_efficient.peft._adalora import (
    AdaLoRADelta,
    RankAllocator,
    attach_budgeted,
    check_settings,
)
from keras_efficient.peft._adapter_state import Parts, variables_of
from keras_efficient.peft._kerashub_lora import load_kerashub
from keras_efficient.peft._lora import LoRADelta, check_name
from keras_efficient.peft._low_rank import check_alpha, check_rank, compute_factored
from keras_efficient.peft._report import TuningReport, freeze_base
from keras_efficient.peft._save_adapters import KEY, VERSION

#: Who attaches what a file cannot.
_VERBS = {"Bottleneck": "ke.adapters", "Vectors": "ke.prefix_tuning", "Mask": "ke.prune"}
_DTYPES = {"F32": "float32", "F16": "float16", "F64": "float64", "U8": "uint8", "I64": "int64"}


def load_adapters(model, path, name=None) -> TuningReport:
    """Put what `ke.save_adapters` wrote onto a base model of the same kind.

    LoRA and AdaLoRA are attached as the file says, if the model has none of that name: the base is
    frozen then but for the weights in the file, or the head if there are none. Other ways of
    tuning are to be applied first, with the arguments of the saved model; so the values find their
    places. Nothing of the model changes unless all of the file fits.

    A `.lora.h5` of a KerasHub backbone (`backbone.save_lora_weights`) is read too: its deltas,
    which are of every head's matrix, become a LoRA of this package that computes the same.

    AdaLoRA goes on with the ranks and the count of updates of the file; its moving averages start
    anew. (To go on to the last bit is what `callbacks.Resume` is for.)

    Args:
        model: a built model, with the base weights that the adapters were trained on: the file
            knows their names and shapes, not their values.
        path: str or path of a `.safetensors` or `.lora.h5` file.
        name: str, what to call the LoRA here, if the file has only one. Default: as in the file.

    Returns:
        A `Tuned`, to print.

    Raises:
        InputError: no such file, one that is damaged or not of this kind, or one for another model.
        ValueError: a LoRA of this name is on other weights or has another rank; or what the file
            holds has to be attached first.

    Example:
        >>> _ = ke.lora(model, rank=2), ke.save_adapters(model, "reviews.safetensors")
        >>> print(ke.load_adapters(model, "reviews.safetensors"))  # doctest: +ELLIPSIS
        lora: ...
    """
    check_model(model, "ke.load_adapters")
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"A file of adapters must exist. Received: {str(path)!r}. Look for a '.safetensors' or "
            "'.lora.h5' file."
        )
    if path.suffix == ".h5":
        return load_kerashub(model, path, name or "lora")
    return _Loading(model, path, name).load()


class _Loading:
    """One `load_adapters`: all is looked at before anything is done."""

    def __init__(self, model, path, name):
        self.model, self.path, self.parts = model, path, Parts.of(model)
        self.pairs, self.budgets, self.values = [], [], []
        self.name = name

    def refuse(self, what, mend="Write it anew with ke.save_adapters."):
        raise InputError(
            f"{self.path} must be a file of ke.save_adapters. Received: {what}. {mend}"
        )

    def load(self):
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="numpy") as file:
                self.file, self.keys = file, set(file.keys())
                self.read(self.facts(file.metadata()))
        except (SafetensorError, OSError) as error:
            self.refuse(f"one that cannot be read ({error})")
        return self.apply()

    def facts(self, metadata):
        try:
            facts = json.loads((metadata or {})[KEY])
            version, adapters = facts["version"], facts["adapters"]
            base, others, weights = facts["base"], facts["others"], facts["weights"]
        except (KeyError, TypeError, ValueError, RecursionError):
            self.refuse("one without the metadata of that")
        if version != VERSION:
            self.refuse(f"one of version {version!r}, not {VERSION}", "Update keras_efficient.")
        fits = isinstance(adapters, list) and isinstance(others, dict) and _are_texts(weights)
        if not fits or not _are_texts(list(others)):
            self.refuse("metadata of another form")
        if base != self.parts.fingerprint:
            self.refuse(
                f"one for a model of other weights' names or shapes than {self.model.name!r}",
                "Load the base model that the adapters were trained on, with a head of as many "
                "classes.",
            )
        return facts

    def read(self, facts):
        """Look at all that the file holds."""
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
        for key, kind in facts["others"].items():
            expected.add(key)
            if key not in self.parts.others:
                caller = _VERBS.get(kind if isinstance(kind, str) else None, "the same verb")
                raise ValueError(
                    "What is no LoRA must be attached before its values are loaded. Received: a "
                    f"file with {key!r}, which {self.model.name!r} does not have. Apply {caller} "
                    "with the arguments of the saved model first."
                )
            variable = self.parts.others[key][1]
            self.values.append((variable, self.tensor(key, variable.shape)))
        self.weights = []
        for path in facts["weights"]:
            expected.add(path)
            if path not in self.parts.weights:
                self.refuse(f"a weight {path!r} that the model does not have")
            weight = self.parts.weights[path]
            self.weights.append(weight)
            self.values.append((weight.variable, self.tensor(path, weight.shape)))
        if stray := self.keys - expected:
            self.refuse(f"a tensor {min(stray)!r} that its metadata do not name")

    def read_adapter(self, adapter):
        """Look at one LoRA; returns the keys of its tensors."""
        try:
            saved, method = adapter["name"], adapter["method"]
            settings, paths = adapter["settings"], adapter["weights"]
            make = {"lora": self.lora, "adalora": self.adalora}[method]
            if not _are_texts(paths) or len(set(paths)) != len(paths) or not paths:
                raise ValueError("it names no weights")
            if not isinstance(saved, str):
                raise ValueError("its name is none")
            if unknown := [path for path in paths if path not in self.parts.weights]:
                raise ValueError(f"the model has no {unknown[0]!r}")
            weights = [self.parts.weights[path] for path in paths]
            if any(len(weight.shape) < 2 for weight in weights):
                raise ValueError("it is of weights that are no matrices")
            if method == "lora":
                name = self.name or saved
                check_name(name)
            else:
                name = "adalora"
            new, shapes, budget = make(settings, weights, name)
        except (KeyError, TypeError, ValueError) as error:
            self.refuse(f"metadata of a LoRA that will not do ({error})")
        if self.name is not None and method != "lora":
            raise ValueError(
                f"`name` renames a LoRA. Received: {self.name!r} and a file of AdaLoRA, of which a "
                "model has one. Leave it out."
            )
        have = self.parts.adapters.get(name)
        if have is not None:
            same = have.keys() == set(paths) and all(
                type(d) is type(new[0]) and d.settings() == new[0].settings() for d in have.values()
            )
            if not same:
                raise ValueError(
                    "A LoRA of the model must be as the file's. Received: "
                    f"{name!r}, on other weights or with other settings than in {self.path}. Load "
                    "the file onto a model without it, or choose another `name`."
                )
            deltas = [have[path] for path in paths]
        else:
            check_weights(weights, "ke.load_adapters", transform=name, trains=True)
            pairs, deltas = list(zip(weights, new, strict=True)), new
            self.pairs.append((pairs, budget))
        expected = set()
        for index, (path, delta, weight) in enumerate(zip(paths, deltas, weights, strict=True)):
            for variable, shape in shapes(weight).items():
                if variable == "updates" and index > 0:
                    continue
                key = f"{path}.{saved}.{variable}"
                expected.add(key)
                self.values.append(((delta, variable), self.tensor(key, shape)))
        return expected

    def lora(self, settings, weights, name):
        rank, alpha = settings["rank"], settings["alpha"]
        by_last_axis = settings["by_last_axis"]
        if not isinstance(by_last_axis, bool):
            raise ValueError("`by_last_axis` is no bool")
        new = [LoRADelta(rank, alpha, 0, name, by_last_axis) for _ in weights]
        forms = {id(w): delta.form_of(w) for w, delta in zip(weights, new, strict=True)}
        # (How large it may be, the tensors' shapes say.)
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            raise ValueError("`rank` is no int above 0")
        check_alpha(alpha)

        def shapes(weight):
            rows, columns = forms[id(weight)].matrix_shape
            return {"a": (rows, rank), "b": (rank, columns)}

        return new, shapes, None

    def adalora(self, settings, weights, name):
        rank, first, alpha = settings["rank"], settings["initial_rank"], settings["alpha"]
        begin, end = settings["begin_step"], settings["end_step"]
        check_rank(rank, weights)
        check_rank(first, weights, "initial_rank")
        if first < rank:
            raise ValueError("its ranks grow")
        check_alpha(alpha)
        check_settings(begin, end, settings["orthogonality"])
        budget = RankAllocator(rank, first, begin, end)
        new = [AdaLoRADelta(budget, alpha, settings["orthogonality"]) for _ in weights]

        def shapes(weight):
            rows, columns = weight.matrix_shape
            found = {"p": (rows, first), "lambda": (first,), "q": (first, columns)}
            return {**found, "mask": (first,), "updates": ()}

        return new, shapes, budget

    def tensor(self, key, shape):
        """A tensor of the file, of this shape."""
        if key not in self.keys:
            self.refuse(f"one without the tensor {key!r}")
        found = self.file.get_slice(key)
        if tuple(found.get_shape()) != tuple(shape) or found.get_dtype() not in _DTYPES:
            self.refuse(
                f"a tensor {key!r} of {found.get_dtype()} {found.get_shape()}, not of {list(shape)}"
            )
        return self.file.get_tensor(key)

    # --- from here on nothing can fail ----------------------------------------------------------

    def apply(self):
        model = self.model
        if self.pairs:
            attach_loaded(model, self.pairs, self.weights)
        for target, value in self.values:
            if isinstance(target, tuple):
                delta, name = target
                target = variables_of(delta)[name]
            target.assign(value)
        after = Parts.of(model)
        names = ", ".join(after.adapters) or "adapters"
        paths = [d.weight.path for deltas in after.adapters.values() for d in deltas.values()]
        return TuningReport.of(model, names, paths)


def attach_loaded(model, groups, trained):
    """Freeze a model but for some weights (or its head), and attach deltas.

    Args:
        groups: list of `(pairs, budget)`; the budget of AdaLoRA, or None.
        trained: list of `Weight`s that train; none: the head's do.
    """
    if trained:
        ids = {id(weight.variable) for weight in trained}
        weights = Parts.of(model).weights.values()
        freeze(model, [weight for weight in weights if id(weight.variable) not in ids])
    else:
        freeze_base(model)
    for pairs, budget in groups:
        if budget is not None:
            attach_budgeted(model, pairs, budget)
        else:
            attach(model, pairs)
            compute_factored(model, [weight for weight, _ in pairs])


def _are_texts(values):
    return isinstance(values, list) and all(isinstance(value, str) for value in values)
