"""The embeddings of a model: tables by what they embed, and projections of patches."""

import re
from dataclasses import dataclass

from keras_efficient.architecture._layer_class import is_attention
from keras_efficient.architecture._layer_paths import layer_paths
from keras_efficient.architecture._weights import EMBEDDING, KERNEL, Weight, all_weights
from keras_efficient.flavor import Model

#: Words in the name of a table, its layer or its layer's class. The first that fits decides.
_POSITION = re.compile(r"position|relative|wpe")
_SEGMENT = re.compile(r"segment|(^|_|token)type")


@dataclass(frozen=True, eq=False)
class Embeddings:
    """The embeddings of a model, tables found by the names of their layers.

    Attributes:
        token: tuple of the `Weight`s [vocabulary, dim] of tokens.
        position: those of positions, absolute or relative, whose last axis is that of the vectors.
        segment: those of segments, also called token types, [segments, dim].
        patch: kernels that project patches of images or spectrograms: those of convolutions whose
            strides are their kernel size, in models with attention.
    """

    token: tuple[Weight, ...]
    position: tuple[Weight, ...]
    segment: tuple[Weight, ...]
    patch: tuple[Weight, ...] = ()


def embeddings(model: Model) -> Embeddings:
    """Return the embeddings of a model, each kind in its order."""
    found = {"token": [], "position": [], "segment": []}
    for weight in all_weights(model):
        if weight.kind == EMBEDDING and (role := _role(weight)):
            found[role].append(weight)
    patch = patch_kernels(model)
    return Embeddings(**{role: tuple(weights) for role, weights in found.items()}, patch=patch)


def patch_kernels(model: Model) -> tuple[Weight, ...]:
    """Return the kernels that project patches; see `Embeddings`."""
    if not any(is_attention(layer) for _, layer in layer_paths(model)):
        return ()
    return tuple(w for w in all_weights(model) if w.kind == KERNEL and _reads_patches(w.layer))


def _reads_patches(layer):
    """Whether a layer is a convolution whose windows do not overlap and leave nothing out."""
    size, strides = getattr(layer, "kernel_size", None), getattr(layer, "strides", None)
    return size is not None and size == strides and max(size) > 1


def _role(weight):
    # A layer that adds up several embeddings has several tables, named by their attributes.
    for name in (weight.attribute, weight.layer.name, type(weight.layer).__name__):
        if _POSITION.search(name.lower()):
            return "position"
        if _SEGMENT.search(name.lower()):
            return "segment"
    return "token" if len(weight.shape) == 2 else None
