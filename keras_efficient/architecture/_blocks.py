"""The Transformer blocks of a model: those a recogniser describes, and others by their layers."""

from collections.abc import Iterable

from keras_efficient.architecture import recognizers
from keras_efficient.architecture._description import Block
from keras_efficient.architecture._layer_class import is_attention, original_class
from keras_efficient.architecture._layer_paths import is_below, is_in, layer_paths
from keras_efficient.flavor import Layer, Model

#: Reason for blocks that nothing describes.
NO_KNOWN_CLASS = "no known class"


def described_blocks(model: Model) -> tuple[tuple[Block, ...], dict[str, str]]:
    """Return the `Block`s of a model, and by path why other Transformer blocks are not described.

    Layers that no recogniser knows count as Transformer blocks by what is in them; see
    `innermost_blocks`.
    """
    inside = dict(layer_paths(model))
    blocks, unknown = {}, {}
    for path, layer in inside.items():
        if is_in(path, blocks):
            continue
        found = next((f for r in recognizers.RECOGNIZERS if (f := r(path, layer))), None)
        if isinstance(found, Block):
            blocks[path] = found
        elif found is not None:
            unknown[path] = f"{original_class(layer).__name__}: {found}"
    attention = [path for path, layer in inside.items() if is_attention(layer)]
    matrices = [path for path, layer in inside.items() if _has_own_matrix(layer)]
    for path in innermost_blocks(inside, attention, matrices):
        known = is_in(path, blocks) or any(is_below(block, path) for block in blocks)
        if not known and path not in unknown:
            unknown[path] = f"{original_class(inside[path]).__name__}: {NO_KNOWN_CLASS}"
    return tuple(blocks.values()), unknown


def transformer_blocks(model: Model) -> dict[str, Layer]:
    """Return all Transformer blocks of a model by path, described or not, in its order."""
    blocks, unknown = described_blocks(model)
    paths = {*unknown, *(block.path for block in blocks)}
    return {path: layer for path, layer in layer_paths(model) if path in paths}


def innermost_blocks(
    paths: Iterable[str], attention: Iterable[str], matrices: Iterable[str]
) -> list[str]:
    """Return the innermost layers with attention and, outside of the attention, a matrix.

    Args:
        paths: paths of the layers to choose from.
        attention: paths of attention layers.
        matrices: paths of layers or weights that multiply by a matrix.
    """
    paths, attention = list(paths), list(attention)
    matrices = [path for path in matrices if not is_in(path, attention)]
    found = [
        path
        for path in paths
        if not is_in(path, attention)
        and any(is_below(other, path) for other in attention)
        and any(is_below(other, path) for other in matrices)
    ]
    return [path for path in found if not any(is_below(other, path) for other in found)]


def _has_own_matrix(layer):
    """Whether a layer without layers inside has a weight of two or more axes."""
    inner = layer._flatten_layers(recursive=False, include_self=False)
    return next(iter(inner), None) is None and any(len(v.shape) > 1 for v in layer.weights)
