"""The paths of the layers inside a model."""

from collections.abc import Iterable, Iterator

from keras_efficient.flavor import Layer


def layer_paths(
    parent: Layer, prefix: str = "", seen: set[int] | None = None
) -> Iterator[tuple[str, Layer]]:
    """Yield `(path, layer)` for every layer inside a model, once, outer layers first.

    A path consists of layer names, as in "encoder/layer_0/attention/query".

    Args:
        parent: a model or layer.
        prefix: prefix of the paths. Default: "".
        seen: ids of layers to leave out, to which the others are added. Default: None.
    """
    seen = set() if seen is None else seen
    for layer in parent._flatten_layers(recursive=False, include_self=False):
        if id(layer) not in seen:
            seen.add(id(layer))
            yield prefix + layer.name, layer
            yield from layer_paths(layer, f"{prefix}{layer.name}/", seen)


def is_below(path: str, other: str) -> bool:
    """Return whether a path leads into the layer of another path."""
    return path.startswith(f"{other}/")


def is_in(path: str, others: Iterable[str]) -> bool:
    """Return whether a path is one of some paths, or leads into one of their layers."""
    return any(path == other or is_below(path, other) for other in others)
