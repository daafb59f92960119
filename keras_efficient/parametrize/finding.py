"""The views and chains of a model."""

from keras_efficient.models.paths import layer_paths
from keras_efficient.parametrize.view import view_of


def views(model) -> list:
    """The `View`s of a model's layers, each once, in the order of the layers."""
    inside = [model, *(layer for _, layer in layer_paths(model))]
    return [view for layer in inside if (view := view_of(layer)) is not None]


def chains(model) -> list:
    """The `Chain`s of a model's weights, each once."""
    found = {id(c): c for view in views(model) for c in view.chains.values()}
    return list(found.values())
