"""The depth of each variable of a Transformer, read from its path."""

import re
from collections.abc import Iterable

#: Numbered layers: "transformer_layer_3" (KerasHub), "layer_3" (Model Garden), "layer_._3",
#: "h_._3", "block_._3" and "layers.3" (Hugging Face).
_NUMBERED = re.compile(r"^((?:.*_)?(?:layers?|blocks?|h))(?:_\._|[._])(\d+)$")
_EMBEDDING = re.compile(r"embed|(^|/)w[tp]e(/|$)")
#: KerasHub's output projection where it is not tied to the embedding.
_HEAD = re.compile(r"reverse_embeddings$")


def layer_depths(paths: Iterable[str]) -> tuple[list[int], int]:
    """Return the depth of each variable: 0 for embeddings, i + 1 for layer i, then the head.

    Layers are recognised by a numbered part of the path, as KerasHub ("transformer_layer_3"),
    Hugging Face ("layer_._3", "layers.3", "h_._3", "block_._3") and Model Garden ("layer_3") name
    them, and embeddings by "embed", "wte" or "wpe". Everything else belongs to the head: pooler,
    classifier, last normalisation. Depths follow the numbers, so frozen layers, whose variables are
    missing, keep their place. Where a model numbers its layers from 1, as KerasHub's ViT does,
    depth 1 is empty.

    Args:
        paths: paths of the model's variables: `keras.Variable.path`, or the variable's name in
            tf_keras.

    Returns:
        `(depths, head)`: a list of one int per path, and the depth of the head, L + 1 for L layers.

    Raises:
        ValueError: no path has a numbered layer, or the layers form several stacks, such as an
            encoder and a decoder, which have no common depth.

    Examples:
        >>> paths = ["token_embedding/embeddings", "transformer_layer_1/query/kernel", "head/bias"]
        >>> ke.optimizers.layer_depths(paths)
        ([0, 2, 3], 3)

    Reference:
        Clark et al. 2020, "ELECTRA", appendix A (layer-wise learning-rate decay).
    """
    paths = list(paths)
    numbers, stacks = [_layer(path) for path in paths], {}
    for path, number in zip(paths, numbers, strict=True):
        if number is not None:
            stacks.setdefault(number[0], path)
    if len(stacks) != 1:
        raise ValueError(
            "`layerwise_decay` needs a model with one stack of numbered layers, with paths such as "
            "'transformer_layer_3/…', 'encoder/layer_._3/…' or 'transformer/layer_3/…'. Received "
            f"{len(stacks)} stacks: {list(stacks.values()) or paths[:5]}. Use `groups=` with your "
            "own patterns for other models."
        )
    head = 2 + max(number[1] for number in numbers if number is not None)
    depths = []
    for path, number in zip(paths, numbers, strict=True):
        if number is not None:
            depths.append(number[1] + 1)
        else:
            depths.append(0 if _EMBEDDING.search(path) and not _HEAD.search(path) else head)
    return depths, head


def _layer(path):
    """Return `(stack, number)` of the outermost numbered layer on a path, or None."""
    parts = path.split("/")
    for position, part in enumerate(parts):
        if match := _NUMBERED.match(part):
            return "/".join([*parts[:position], match[1]]), int(match[2])
    return None
