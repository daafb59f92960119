"""Paths of weights that do not depend on what else a process has created."""

import hashlib
import json
import re
import zlib
from collections.abc import Sequence

from keras_efficient import flavor as flavors
from keras_efficient.architecture._weights import Weight, all_weights
from keras_efficient.flavor import Model


def layers_by_id(model: Model) -> dict[int, str]:
    """Return `{id(layer): canonical path}` of a model and the layers inside.

    Keras numbers layers without a name by what the process has created before ("dense_7"). Here
    siblings are numbered among themselves, and a single one has no number.
    """
    found, taken, store = {id(model): ""}, set(), flavors.of(model).store

    def visit(parent):
        inside = parent._flatten_layers(recursive=False, include_self=False)
        layers = [x for x in inside if id(x) not in found and not isinstance(x, store)]
        numbers = {}
        for layer in layers:
            stem, number = _split(layer.name)
            numbers.setdefault(stem, set()).add(number)
        for layer in layers:
            stem, number = _split(layer.name)
            if len(numbers[stem]) > 1:
                stem += f"_{sorted(numbers[stem]).index(number)}"
            path = f"{found[id(parent)]}/{stem}".removeprefix("/")
            while path in taken:
                path += "'"
            taken.add(path)
            found[id(layer)] = path
            visit(layer)

    visit(model)
    return found


def weights_by_path(model: Model) -> dict[str, Weight]:
    """Return `{canonical path: Weight}` of all weights of a model."""
    layers = layers_by_id(model)
    return {
        f"{layers[id(weight.layer)]}/{weight.attribute}".removeprefix("/"): weight
        for weight in all_weights(model)
    }


def seeds_of(model: Model, weights: Sequence[Weight], seed: int) -> list[tuple[int, int]]:
    """Return a seed for each weight that is the same in every process and on every worker."""
    paths = {id(weight.variable): path for path, weight in weights_by_path(model).items()}
    return [(seed, zlib.crc32(paths[id(weight.variable)].encode())) for weight in weights]


def fingerprint(weights: dict[str, Weight]) -> str:
    """Return a hash of the canonical paths and the shapes of a model's weights."""
    facts = sorted((path, list(weight.shape)) for path, weight in weights.items())
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _split(name: str) -> tuple[str, int]:
    """Split a name into its stem and its number, -1 if it has none."""
    stem, separator, number = name.rpartition("_")
    if separator and re.fullmatch(r"\d+", number):
        return stem, int(number)
    return name, -1
