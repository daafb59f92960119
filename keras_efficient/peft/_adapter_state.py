"""The variables of a model that an adapter file holds, by canonical path."""

from dataclasses import dataclass, field

import numpy as np

from keras_efficient import flavor as flavors
from keras_efficient.architecture._weights import Weight
from keras_efficient.flavor import Flavor, Model, Variable
from keras_efficient.parametrize._parametrized_layer import parametrized_layers, transforms
from keras_efficient.peft._canonical_paths import fingerprint, layers_by_id, weights_by_path
from keras_efficient.peft._low_rank import LowRankDelta


@dataclass
class AdapterState:
    """The adapters of a model and its weights that train.

    Attributes:
        weights: dict of canonical path to `Weight`, of the base model.
        deltas: dict of adapter name to a dict of canonical path to `LowRankDelta`.
        others: dict of a key in the file to `(class name, variable)`, of adapters and prefixes.
        trained: dict of canonical path to `Weight`, of base weights that training changes.
        fingerprint: hash of the paths and shapes of the base model's weights.
    """

    weights: dict[str, Weight]
    deltas: dict[str, dict[str, LowRankDelta]] = field(default_factory=dict)
    others: dict[str, tuple[str, Variable]] = field(default_factory=dict)
    trained: dict[str, Weight] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Hash of the paths and shapes of the base model's weights."""
        return fingerprint(self.weights)

    @classmethod
    def of(cls, model: Model) -> "AdapterState":
        """Collect the state of a model."""
        state, flavor = cls(weights_by_path(model)), flavors.of(model)
        path_of = {id(weight.variable): path for path, weight in state.weights.items()}
        for delta in transforms(model, LowRankDelta):
            path = path_of[id(delta.weight.variable)]
            state.deltas.setdefault(delta.name, {})[path] = delta
        layers = layers_by_id(model)
        owners = [(t, t.parametrized) for t in transforms(model) if not isinstance(t, LowRankDelta)]
        owners += [
            (wrapper, parametrized)
            for parametrized in parametrized_layers(model)
            for wrapper in parametrized.call_wrappers
        ]
        trainable = {id(variable) for variable in model.trainable_variables}
        for owner, parametrized in owners:
            named = {} if parametrized.store is None else parametrized.store.named
            names = {id(variable): name for name, variable in named.items()}
            for variable in vars(owner).get("variables", ()):
                if id(variable) in trainable:
                    key = f"{layers[id(parametrized.layer)]}/{names[id(variable)]}"
                    state.others[key] = type(owner).__name__, variable
        values = {id(flavor.value(variable)) for variable in model.trainable_variables}
        for path, weight in state.weights.items():
            # Moving averages change in training, though they are not trainable.
            if weight.attribute.startswith("moving_") or id(weight.value) in values:
                state.trained[path] = weight
        return state


def saved_variables(delta: LowRankDelta) -> dict[str, Variable]:
    """Return `{name: variable}` of a delta's variables that an adapter file holds."""
    named = delta.parametrized.store.named
    names = {id(variable): name for name, variable in named.items()}
    found = {names[id(v)].rpartition(".")[2]: v for v in vars(delta)["variables"]}
    return {name: v for name, v in found.items() if name in (*delta.saved_variables, "updates")}


def to_array(variable: Variable, flavor: Flavor) -> np.ndarray:
    """Return the value of a variable as a contiguous array."""
    return np.array(flavor.value(variable).numpy(), order="C")
