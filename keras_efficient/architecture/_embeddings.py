"""The embedding tables of a model, by what they embed."""

import re
from dataclasses import dataclass

from keras_efficient.architecture._weights import EMBEDDING, Weight, all_weights
from keras_efficient.flavor import Model

#: Words in the name of a table, its layer or its layer's class. The first that fits decides.
_POSITION = re.compile(r"position|relative|wpe")
_SEGMENT = re.compile(r"segment|(^|_|token)type")


@dataclass(frozen=True, eq=False)
class Embeddings:
    """The embedding tables of a model, found by the names of their layers.

    Attributes:
        token: tuple of the `Weight`s [vocabulary, dim] of tokens.
        position: those of positions, absolute or relative, whose last axis is that of the vectors.
        segment: those of segments, also called token types, [segments, dim].
    """

    token: tuple[Weight, ...]
    position: tuple[Weight, ...]
    segment: tuple[Weight, ...]


def embeddings(model: Model) -> Embeddings:
    """Return the embedding tables of a model, each in its order."""
    found = {"token": [], "position": [], "segment": []}
    for weight in all_weights(model):
        if weight.kind == EMBEDDING and (role := _role(weight)):
            found[role].append(weight)
    return Embeddings(**{role: tuple(weights) for role, weights in found.items()})


def _role(weight):
    # A layer that adds up several embeddings has several tables, named by their attributes.
    for name in (weight.attribute, weight.layer.name, type(weight.layer).__name__):
        if _POSITION.search(name.lower()):
            return "position"
        if _SEGMENT.search(name.lower()):
            return "segment"
    return "token" if len(weight.shape) == 2 else None
