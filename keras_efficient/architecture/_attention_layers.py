"""The attention layers of a model, and their key and value projections."""

from dataclasses import dataclass
from typing import Any

from keras_efficient import flavor as flavors
from keras_efficient.architecture._blocks import described_blocks
from keras_efficient.architecture._layer_class import is_attention, original_class
from keras_efficient.architecture._layer_paths import is_below, layer_paths
from keras_efficient.flavor import Layer, Model

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
    projections = key_value_projections(model)
    for index, (path, layer) in enumerate(layer_paths(model)):
        if not _holds_attention(layer, flavor):
            continue
        additive = _is_mask_added(layer, flavor)
        if additive is not None and path in projections:
            known.append(Attention(path, index, layer, *projections[path], additive))
        elif any(len(v.shape) > 1 for v in layer.weights):
            others[path] = original_class(layer).__name__
    # A layer around an attention layer is not one itself, nor are the parts of one.
    paths = [attention.path for attention in known]
    others = {
        path: name
        for path, name in others.items()
        if not any(is_below(other, path) for other in (*paths, *others))
        and not any(is_below(path, other) for other in paths)
    }
    return known, others


def key_value_projections(model: Model) -> dict[str, tuple[Layer, Layer]]:
    """Return the key and the value projection of each attention layer, by the layer's path."""
    flavor, inside = flavors.of(model), dict(layer_paths(model))
    paths = {id(layer): path for path, layer in inside.items()}
    attention = [block.attention for block in described_blocks(model)[0]]
    described = {
        paths[id(part.key)].rpartition("/")[0]: (part.key, part.value)
        for part in attention
        if id(part.key) in paths and part.key is not part.value
    }
    found = {}
    for path, layer in inside.items():
        pair = described.get(path)
        if pair is None and _holds_attention(layer, flavor):
            pairs = (tuple(getattr(layer, name, None) for name in names) for names in _KEY_VALUE)
            pair = next((p for p in pairs if all(hasattr(part, "kernel") for part in p)), None)
        if pair is not None:
            found[path] = pair
    return found


def _holds_attention(layer, flavor):
    return is_attention(layer) or isinstance(layer, flavor.keras.layers.MultiHeadAttention)


def _is_mask_added(layer, flavor):
    """Whether a layer's `attention_mask` is added to the scores, or None if it is not known."""
    cls, library = original_class(layer), flavor.keras.layers.MultiHeadAttention
    if isinstance(layer, library):
        unchanged = all(getattr(cls, name) is getattr(library, name) for name in _COMPUTES)
        # Attention over one axis, that of the sequence.
        one_axis = getattr(layer._key_dense, "equation", None) == "abc,cde->abde"
        return False if unchanged and one_axis else None
    like_bert = cls.__name__ in _LIKE_BERT and not getattr(layer, "is_decoder", False)
    return True if like_bert else None
