"""What of a model a file of adapters holds, by names that another model of the kind has too."""

from dataclasses import dataclass, field

import numpy as np

from keras_efficient import flavor as flavors
from keras_efficient.parametrize._parametrized_layer import parametrized_layers, transforms
from keras_efficient.peft._canonical_paths import fingerprint, layers_by_id, weights_by_path
from keras_efficient.peft._low_rank import LowRankDelta


@dataclass
class Parts:
    """The parts of one model.

    Attributes:
        weights: dict of a canonical path to a `Weight` of the base.
        adapters: dict of a name to a dict of a canonical path to a `Delta`.
        others: dict of a key in a file to `(class name, variable)`: adapters, prefixes.
        trained: dict of a canonical path to the `Weight`s of the base that training changes.
    """

    weights: dict
    adapters: dict = field(default_factory=dict)
    others: dict = field(default_factory=dict)
    trained: dict = field(default_factory=dict)

    @property
    def fingerprint(self):
        return fingerprint(self.weights)

    @classmethod
    def of(cls, model):
        parts, flavor = cls(weights_by_path(model)), flavors.of(model)
        path_of = {id(weight.variable): path for path, weight in parts.weights.items()}
        for delta in transforms(model, LowRankDelta):
            path = path_of[id(delta.weight.variable)]
            parts.adapters.setdefault(delta.name, {})[path] = delta
        layers = layers_by_id(model)
        rest = [(t, t.parametrized) for t in transforms(model) if not isinstance(t, LowRankDelta)]
        rest += [(part, view) for view in parametrized_layers(model) for part in view.call_wrappers]
        trains = {id(variable) for variable in model.trainable_variables}
        for part, view in rest:
            names = {} if view.store is None else view.store.named.items()
            names = {id(variable): name for name, variable in names}
            for variable in vars(part).get("variables", ()):
                if id(variable) in trains:
                    key = f"{layers[id(view.layer)]}/{names[id(variable)]}"
                    parts.others[key] = type(part).__name__, variable
        values = {id(flavor.value(variable)) for variable in model.trainable_variables}
        for path, weight in parts.weights.items():
            # (Averages that layers keep move, though they do not train.)
            moving = weight.attribute.startswith("moving_")
            if moving or id(weight.value) in values:
                parts.trained[path] = weight
        return parts


def variables_of(delta) -> dict:
    """`{name: variable}` of what a file holds of a delta."""
    names = {id(variable): name for name, variable in delta.parametrized.store.named.items()}
    found = {names[id(v)].rpartition(".")[2]: v for v in delta.variables}
    return {name: v for name, v in found.items() if name in (*delta.kept, "updates")}


def array(variable, flavor):
    return np.array(flavor.value(variable).numpy(), order="C")
