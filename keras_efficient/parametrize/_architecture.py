"""Where a model's attention layers and Transformer blocks are, and their projections."""

from dataclasses import dataclass
from typing import Any

from keras_efficient import flavor as flavors
from keras_efficient.parametrize._layer_paths import layer_paths
from keras_efficient.parametrize._parametrized_layer import parametrized_layer
from keras_efficient.parametrize._weights import KERNEL, all_weights, without_head

#: What a subclass of MultiHeadAttention must not compute in its own way.
_COMPUTES = ("call", "_compute_attention", "_compute_attention_mask")
#: Hugging Face's encoders whose attention is BERT's, line by line.
_LIKE_BERT = {
    f"TF{name}"
    for name in (
        "AlbertAttention",
        "BertSelfAttention",
        "CamembertSelfAttention",
        "ElectraSelfAttention",
        "LayoutLMSelfAttention",
        "RobertaSelfAttention",
        "XLMRobertaSelfAttention",
    )
}


@dataclass(eq=False)
class Attention:
    """An attention layer whose keys and values can be added to.

    Attributes:
        path: str.
        place: int, which of the model's layers it is.
        layer: the layer.
        key, value: its projections, layers with a kernel.
        additive: bool, whether its `attention_mask` is added to the scores; else it multiplies.
    """

    path: str
    place: int
    layer: Any
    key: Any
    value: Any
    additive: bool


def plain_class(layer):
    """The layer's class, whatever it is seen through."""
    view = parametrized_layer(layer)
    return type(layer) if view is None else view.plain_class


def attentions(model):
    """`(known, others)`: the model's `Attention`s, and `{path: class name}` of other kinds."""
    flavor, known, others = flavors.of(model), [], {}
    for place, (path, layer) in enumerate(layer_paths(model)):
        if not _named_attention(layer) and not _heads(layer, flavor):
            continue
        found = _attention(path, place, layer, flavor)
        if found is not None:
            known.append(found)
        elif _kernel_layers(layer):
            others[path] = plain_class(layer).__name__
    # (A layer around an attention layer is none itself.)
    paths = [attention.path for attention in known]
    others = {
        path: name
        for path, name in others.items()
        if not any(other.startswith(f"{path}/") for other in (*paths, *others))
        and not any(path.startswith(f"{other}/") for other in paths)
    }
    return known, others


def _attention(path, place, layer, flavor):
    """The layer as an `Attention`, or None."""
    cls = plain_class(layer)
    if _heads(layer, flavor):
        library = flavor.keras.layers.MultiHeadAttention
        own = all(getattr(cls, name) is getattr(library, name) for name in _COMPUTES)
        # (Over one axis, that of the sequence.)
        if not own or getattr(layer._key_dense, "equation", None) != "abc,cde->abde":
            return None
        return Attention(path, place, layer, layer._key_dense, layer._value_dense, False)
    if cls.__name__ in _LIKE_BERT and not getattr(layer, "is_decoder", False):
        return Attention(path, place, layer, layer.key, layer.value, True)
    return None


def _heads(layer, flavor):
    return isinstance(layer, flavor.keras.layers.MultiHeadAttention)


def _named_attention(layer):
    return "attention" in plain_class(layer).__name__.lower()


def _kernel_layers(layer):
    return [v for v in layer.weights if len(v.shape) > 1]


def output_projections(model, feed_forward_only=False) -> list:
    """The kernels that end an attention layer or a feed-forward of a Transformer block.

    In a block, the innermost layer that holds attention and other kernels: the last kernel of each
    attention layer in it, and the last one besides that gives as many outputs. In a model that has
    attention but no such blocks, every kernel of that many outputs besides is taken, without the
    model's head.

    Returns:
        List of `Weight`s in the model's order, without any if the model has no attention.
    """
    inside = dict(layer_paths(model))
    kernels = [w for w in all_weights(model) if w.kind == KERNEL]
    outer = _outermost([path for path, layer in inside.items() if _named_attention(layer)])
    ends = {path: within[-1] for path in outer if (within := _of(kernels, path))}
    others = [w for w in kernels if not any(w.path.startswith(f"{path}/") for path in ends)]
    groups = {path: _of(others, path) for path in _blocks(inside, ends, others)}
    chosen = []
    for block, feed_forward in groups.items():
        attention = [end for path, end in ends.items() if path.startswith(f"{block}/")]
        widths = {end.matrix_shape[1] for end in attention}
        last = [w for w in feed_forward if w.matrix_shape[1] in widths][-1:]
        chosen += last if feed_forward_only else [*attention, *last]
    if not groups and ends:
        widths = {end.matrix_shape[1] for end in ends.values()}
        loose = [w for w in without_head(kernels) if w in others and w.matrix_shape[1] in widths]
        chosen = loose if feed_forward_only else [*ends.values(), *loose]
    ids = {id(weight) for weight in chosen}
    return [weight for weight in kernels if id(weight) in ids]


def _blocks(inside, ends, others):
    """The paths of the innermost layers with both an attention's kernels and others."""
    found = [
        path
        for path in inside
        if any(end.startswith(f"{path}/") for end in ends)
        and _of(others, path)
        and not any(path == end or path.startswith(f"{end}/") for end in ends)
    ]
    return [p for p in found if not any(other.startswith(f"{p}/") for other in found)]


def _of(weights, path):
    return [w for w in weights if w.path.startswith(f"{path}/")]


def _outermost(paths):
    return [p for p in paths if not any(p.startswith(f"{other}/") for other in paths)]
