"""The kernels that end the attention and the feed-forward part of Transformer blocks."""

from keras_efficient.architecture._blocks import described_blocks, innermost_blocks
from keras_efficient.architecture._heads import without_head
from keras_efficient.architecture._layer_class import is_attention
from keras_efficient.architecture._layer_paths import is_below, is_in, layer_paths
from keras_efficient.architecture._weights import KERNEL, Weight, all_weights
from keras_efficient.flavor import Model


def output_projections(model: Model, feed_forward_only: bool = False) -> list[Weight]:
    """Return the kernels that end the attention and the feed-forward part of each block.

    In a block that is not described these are the last kernel of each attention layer, and the last
    other kernel with as many outputs. In a model that has attention but no blocks, such as a
    functional one, every other kernel with that many outputs is taken except the model's heads.

    Args:
        model: a built model.
        feed_forward_only: whether to leave out those of attention. Default: False.

    Returns:
        List of `Weight`s in the order of the model, empty if the model has no attention.
    """
    kernels = [w for w in all_weights(model) if w.kind == KERNEL]
    blocks, _ = described_blocks(model)
    ends = [block.feed_forward.output for block in blocks]
    if not feed_forward_only:
        ends += [block.attention.output for block in blocks]
    ids, described = {id(layer) for layer in ends}, [block.path for block in blocks]
    chosen = [w for w in kernels if id(w.layer) in ids]
    chosen += _of_other_blocks(model, kernels, described, feed_forward_only)
    ids = {id(weight) for weight in chosen}
    return [weight for weight in kernels if id(weight) in ids]


def _of_other_blocks(model, kernels, described, feed_forward_only):
    """The same for what is not in `described` blocks, by the order and widths of the kernels."""
    inside = {p: layer for p, layer in layer_paths(model) if not is_in(p, described)}
    kernels = [w for w in kernels if not is_in(w.path, described)]
    attention = [path for path, layer in inside.items() if is_attention(layer)]
    outermost = [p for p in attention if not any(is_below(p, other) for other in attention)]
    ends = {path: within[-1] for path in outermost if (within := _inside(kernels, path))}
    others = [w for w in kernels if not any(is_below(w.path, path) for path in ends)]
    chosen, blocks = [], innermost_blocks(inside, ends, [w.path for w in others])
    for block in blocks:
        ending = [end for path, end in ends.items() if is_below(path, block)]
        widths = {end.matrix_shape[1] for end in ending}
        last = [w for w in _inside(others, block) if w.matrix_shape[1] in widths][-1:]
        chosen += last if feed_forward_only else [*ending, *last]
    if not blocks and not described and ends:
        widths = {end.matrix_shape[1] for end in ends.values()}
        loose = [
            w for w in without_head(model, kernels) if w in others and w.matrix_shape[1] in widths
        ]
        chosen = loose if feed_forward_only else [*ends.values(), *loose]
    return chosen


def _inside(weights, path):
    return [w for w in weights if is_below(w.path, path)]
