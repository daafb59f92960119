"""The paths of the layers inside a model."""


def layer_paths(parent, prefix="", seen=None):
    """`(path, layer)` of every layer inside a model, once, from outside in.

    A path is made of the layers' names, as in "encoder/layer_0/attention/query".
    """
    seen = set() if seen is None else seen
    for layer in parent._flatten_layers(recursive=False, include_self=False):
        if id(layer) not in seen:
            seen.add(id(layer))
            yield prefix + layer.name, layer
            yield from layer_paths(layer, f"{prefix}{layer.name}/", seen)
