"""Where a model's Transformer blocks, attention layers, projections, embeddings and heads are."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from keras_efficient import flavor as flavors
from keras_efficient.flavor import Layer, Model
from keras_efficient.parametrize._layer_paths import layer_paths
from keras_efficient.parametrize._output_kernels import output_kernels
from keras_efficient.parametrize._parametrized_layer import original_class
from keras_efficient.parametrize._weights import EMBEDDING, KERNEL, Weight, all_weights

#: Attributes of attention layers that hold the key and the value projection.
_KEY_VALUE = (
    ("_key_dense", "_value_dense"),
    ("key_dense", "value_dense"),
    ("key", "value"),
    ("key_proj", "value_proj"),
    ("k_proj", "v_proj"),
    ("k_lin", "v_lin"),
    ("k", "v"),
)
#: Methods that compute attention in MultiHeadAttention. A subclass that overrides one is unknown.
_COMPUTES = ("call", "_compute_attention", "_compute_attention_mask")
#: Hugging Face attention layers with the code of BERT's.
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
#: The `call` of Keras' attention layer, and of KerasHub's with a cache.
_KERAS_CALLS = ("MultiHeadAttention.call", "CachedMultiHeadAttention.call")
_KERAS_INNER = ("_compute_attention", "_masked_softmax")
_LIBRARIES = ("keras", "tf_keras", "keras_hub", "official", "transformers")


# --- blocks --------------------------------------------------------------------------------------


def transformer_blocks(model: Model) -> dict[str, Layer]:
    """Return the Transformer blocks of a model by path.

    A block is an innermost layer that holds attention and, outside of the attention, a layer with
    a matrix.
    """
    inside = dict(layer_paths(model))
    attention = [path for path, layer in inside.items() if _is_named_attention(layer)]
    matrices = [path for path, layer in inside.items() if _has_own_matrix(layer)]
    return {path: inside[path] for path in _blocks(inside, attention, matrices)}


def _blocks(paths, attention, kernels):
    """The innermost of `paths` that hold one of `attention` and one of `kernels` outside of it."""
    kernels = [path for path in kernels if not _is_in(path, attention)]
    found = [
        path
        for path in paths
        if not _is_in(path, attention)
        and any(_is_below(other, path) for other in attention)
        and any(_is_below(other, path) for other in kernels)
    ]
    return [path for path in found if not any(_is_below(other, path) for other in found)]


def _has_own_matrix(layer):
    """Whether a layer without layers inside has a weight of two or more axes."""
    inner = layer._flatten_layers(recursive=False, include_self=False)
    return next(iter(inner), None) is None and any(len(v.shape) > 1 for v in layer.weights)


def _is_below(path, other):
    return path.startswith(f"{other}/")


def _is_in(path, others):
    return any(path == other or _is_below(path, other) for other in others)


def output_projections(model: Model, feed_forward_only: bool = False) -> list[Weight]:
    """Return the kernels that end the attention and the feed-forward part of each block.

    In a block these are the last kernel of each attention layer, and the last other kernel with as
    many outputs. In a model that has attention but no blocks, such as a functional one, every other
    kernel with that many outputs is taken except the model's heads.

    Args:
        model: a built model.
        feed_forward_only: whether to leave out those of attention. Default: False.

    Returns:
        List of `Weight`s in the order of the model, empty if the model has no attention.
    """
    inside = dict(layer_paths(model))
    kernels = [w for w in all_weights(model) if w.kind == KERNEL]
    attention = [path for path, layer in inside.items() if _is_named_attention(layer)]
    outermost = [p for p in attention if not any(_is_below(p, other) for other in attention)]
    ends = {path: within[-1] for path in outermost if (within := _inside(kernels, path))}
    others = [w for w in kernels if not any(_is_below(w.path, path) for path in ends)]
    chosen, blocks = [], _blocks(inside, list(ends), [w.path for w in others])
    for block in blocks:
        ending = [end for path, end in ends.items() if _is_below(path, block)]
        widths = {end.matrix_shape[1] for end in ending}
        last = [w for w in _inside(others, block) if w.matrix_shape[1] in widths][-1:]
        chosen += last if feed_forward_only else [*ending, *last]
    if not blocks and ends:
        widths = {end.matrix_shape[1] for end in ends.values()}
        loose = [
            w for w in without_head(model, kernels) if w in others and w.matrix_shape[1] in widths
        ]
        chosen = loose if feed_forward_only else [*ends.values(), *loose]
    ids = {id(weight) for weight in chosen}
    return [weight for weight in kernels if id(weight) in ids]


def _inside(weights, path):
    return [w for w in weights if _is_below(w.path, path)]


# --- attention -----------------------------------------------------------------------------------


@dataclass(eq=False)
class Attention:
    """An attention layer whose keys and values can be extended.

    Attributes:
        path: path of the layer.
        index: its index among the layers of the model.
        layer: the layer.
        key: its key projection, a layer with a kernel.
        value: its value projection, a layer with a kernel.
        additive: whether its `attention_mask` is added to the scores. If not, it is 1 where
            attention goes and 0 elsewhere.
    """

    path: str
    index: int
    layer: Any
    key: Any
    value: Any
    additive: bool


def attention_layers(model: Model) -> tuple[list[Attention], dict[str, str]]:
    """Return the attention layers of a model.

    Returns:
        Tuple of the list of `Attention`s, and a dict of path to class name of attention layers
        whose way of computing is not known.
    """
    flavor, known, others = flavors.of(model), [], {}
    for index, (path, layer) in enumerate(layer_paths(model)):
        if not _is_named_attention(layer) and not _is_multi_head(layer, flavor):
            continue
        found = _attention(path, index, layer, flavor)
        if found is not None:
            known.append(found)
        elif any(len(v.shape) > 1 for v in layer.weights):
            others[path] = original_class(layer).__name__
    # A layer around an attention layer is not one itself, nor are the parts of one.
    paths = [attention.path for attention in known]
    others = {
        path: name
        for path, name in others.items()
        if not any(_is_below(other, path) for other in (*paths, *others))
        and not any(_is_below(path, other) for other in paths)
    }
    return known, others


def _attention(path, index, layer, flavor):
    """The layer as an `Attention`, or None if it is not known."""
    cls = original_class(layer)
    if _is_multi_head(layer, flavor):
        library = flavor.keras.layers.MultiHeadAttention
        unchanged = all(getattr(cls, name) is getattr(library, name) for name in _COMPUTES)
        # Attention over one axis, that of the sequence.
        one_axis = getattr(layer._key_dense, "equation", None) == "abc,cde->abde"
        if not unchanged or not one_axis:
            return None
        return Attention(path, index, layer, layer._key_dense, layer._value_dense, False)
    if cls.__name__ in _LIKE_BERT and not getattr(layer, "is_decoder", False):
        return Attention(path, index, layer, layer.key, layer.value, True)
    return None


def _is_multi_head(layer, flavor):
    return isinstance(layer, flavor.keras.layers.MultiHeadAttention)


def _is_named_attention(layer):
    return "attention" in original_class(layer).__name__.lower()


def key_value_projections(model: Model) -> dict[str, tuple[Layer, Layer]]:
    """Return the key and the value projection of each attention layer, by the layer's path."""
    found = {}
    for path, layer in layer_paths(model):
        if not _is_named_attention(layer):
            continue
        pairs = (tuple(getattr(layer, name, None) for name in names) for names in _KEY_VALUE)
        pair = next((p for p in pairs if all(hasattr(part, "kernel") for part in p)), None)
        if pair is not None:
            found[path] = pair
    return found


def self_attention_projections(layer: Layer) -> list[Layer] | None:
    """Return the query, key and value projections of a self-attention layer.

    A layer counts as self-attention if its class has the library's own code: subclasses that
    override it and layers with options that change it do not.

    Returns:
        List of three layers, or None if the layer is not known to compute plain self-attention.
    """
    cls = original_class(layer)
    inner = (getattr(getattr(cls, name, None), "__qualname__", None) for name in _KERAS_INNER)
    if has_library_call(layer, *_KERAS_CALLS) and list(inner) == [
        f"MultiHeadAttention.{name}" for name in _KERAS_INNER
    ]:
        changed = any(getattr(layer, name, None) for name in ("_use_gate", "_sliding_window"))
        # None before the first call.
        axes = layer._attention_axes or ()
        if changed or layer._key_dim != layer._value_dim or len(axes) != 1:
            return None
        names = ("_query_dense", "_key_dense", "_value_dense")
    elif flavors.of(layer).is_bert_self_attention(cls) and not layer.is_decoder:
        names = ("query", "key", "value")
    else:
        return None
    found = [getattr(layer, name, None) for name in names]
    return None if None in found else found


def attention_heads(layer: Layer) -> tuple[int, float]:
    """Return the number of heads of a self-attention layer, and the factor of its queries, 1/√d."""
    heads = getattr(layer, "_num_heads", None) or layer.num_attention_heads
    size = getattr(layer, "_key_dim", None) or layer.attention_head_size
    return heads, 1 / math.sqrt(size)


def has_library_call(layer: Layer, *methods: str) -> bool:
    """Return whether a layer's `call` is a library's own: a subclass may compute anything.

    Args:
        layer: the layer.
        methods: qualified names of the methods to accept, such as "Dense.call".
    """
    call = original_class(layer).call
    return call.__qualname__ in methods and call.__module__.partition(".")[0] in _LIBRARIES


# --- embeddings and head -------------------------------------------------------------------------


def embedding_tables(model: Model) -> list[Weight]:
    """Return the embedding tables [vocabulary, dim] of a model, in its order."""
    return [w for w in all_weights(model) if w.kind == EMBEDDING and len(w.shape) == 2]


def output_layer_kernels(model: Model) -> list[Weight]:
    """Return the kernels [dim, outputs] that could be the transpose of an embedding table."""
    weights = all_weights(model)
    return [w for w in weights if w.kind == KERNEL and w.inputs == (0,) and len(w.shape) == 2]


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
