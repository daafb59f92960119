"""The heads of a model, the last layers with a kernel before its outputs; weights without them."""

from collections.abc import Iterable

from keras_efficient.architecture._blocks import transformer_blocks
from keras_efficient.architecture._embeddings import patch_kernels
from keras_efficient.architecture._output_kernels import output_kernels
from keras_efficient.architecture._weights import KERNEL, Weight, all_weights
from keras_efficient.flavor import Layer, Model


def head_layers(model: Model) -> list[Layer]:
    """Return the model's heads: for each of its outputs, the last layer with a kernel before it.

    A layer inside of a Transformer block is none if other heads compute with its outputs, as in
    encoders that also return their hidden states or a cache of keys and values.
    """
    kernels = [w for w in all_weights(model) if w.kind == KERNEL]
    if len(getattr(model, "outputs", None) or ()) == 1:
        before: list[list[Weight]] = []
    else:
        before = [found for found in output_kernels(model, kernels) if found]
    last = {id(found[-1].layer): found[-1].layer for found in before}
    if not last:
        # The layers of a model are in the order of its computation.
        return [kernels[-1].layer] if kernels else []
    inside = {
        id(layer)
        for block in transformer_blocks(model).values()
        for layer in block._flatten_layers()
    }
    used = {id(w.layer) for found in before for w in found if w.layer is not found[-1].layer}
    heads = [layer for key, layer in last.items() if key not in inside or key not in used]
    return heads or list(last.values())


def head_weights(model: Model) -> list[Weight]:
    """Return the weights of the model's heads; see `head_layers`."""
    ids = {id(layer) for layer in head_layers(model)}
    return [w for w in all_weights(model) if id(w.layer) in ids]


def without_head(model: Model, weights: Iterable[Weight]) -> list[Weight]:
    """Return weights except those of the model's heads, unless that would be all."""
    weights = list(weights)
    ids = {id(layer) for layer in head_layers(model)}
    return [w for w in weights if id(w.layer) not in ids] or weights


def without_ends(model: Model, weights: Iterable[Weight]) -> list[Weight]:
    """Return weights except heads and projections of patches, unless that would be all."""
    weights = without_head(model, weights)
    patches = {id(w.variable) for w in patch_kernels(model)}
    return [w for w in weights if id(w.variable) not in patches] or weights


def output_layer_kernels(model: Model) -> list[Weight]:
    """Return the kernels [dim, outputs] that could be the transpose of an embedding table."""
    weights = all_weights(model)
    return [w for w in weights if w.kind == KERNEL and w.inputs == (0,) and len(w.shape) == 2]
