"""Remove parts of a Transformer: whole blocks, neurons, heads, hidden units, tokens.

Each function makes a new model of the same class and leaves the one it is given as it is. One size
changes at a time, so the shapes of the new weights tell which axes it belongs to.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_efficient.architecture import Architecture, Block
from keras_efficient.architecture._layer_class import original_class
from keras_efficient.architecture._layer_paths import layer_paths
from keras_efficient.architecture._weights import KERNEL, Weight
from keras_efficient.compression.structured.carry import carry
from keras_efficient.compression.structured.recipes import LayersRecipe, OptionsRecipe, recipe_of
from keras_efficient.flavor import Layer, Model


def widths(block: Block) -> dict[str, int]:
    """Return the sizes of a block: "heads", "head_size", "feed_forward" and "hidden"."""
    attention = block.attention
    kernel = _kernel_shape(attention.output)
    units, hidden = int(np.prod(kernel[:-1])), kernel[-1]
    return {
        "heads": attention.heads,
        "head_size": units // attention.heads,
        "feed_forward": _kernel_shape(block.feed_forward.output)[0],
        "hidden": hidden,
    }


def _kernel_shape(layer):
    return tuple(layer.kernel.shape if hasattr(layer, "kernel") else layer.weight.shape)


def check_layers(model: Model, architecture: Architecture) -> None:
    """Raise a ValueError if the number of blocks is no option of the model's class."""
    recipe = recipe_of(model)
    if isinstance(recipe, OptionsRecipe):
        _check_option(model, recipe, "layers", len(architecture.blocks))


def check_feed_forward(model: Model, architecture: Architecture) -> None:
    """Raise a ValueError if the number of neurons cannot be changed."""
    recipe = recipe_of(model)
    if isinstance(recipe, LayersRecipe):
        _neuron_options(model, architecture, [1] * len(architecture.blocks))
    else:
        _check_option(model, recipe, "feed_forward", widths(architecture.blocks[0])["feed_forward"])


def check_heads(model: Model, architecture: Architecture) -> None:
    """Raise a ValueError if the number of heads cannot be changed alone."""
    if not isinstance(recipe_of(model), LayersRecipe):
        raise ValueError(
            "The number of heads can be changed alone if each attention layer has options of its "
            f"own. Received: `heads` for {original_class(model).__name__} {model.name!r}, whose "
            "heads have hidden width / number of heads units. Give `hidden`, which removes heads "
            "and hidden units together."
        )
    _head_options(model, architecture, [1] * len(architecture.blocks))


def check_hidden(model: Model, architecture: Architecture) -> None:
    """Raise a ValueError if the hidden width cannot be changed."""
    recipe, blocks = recipe_of(model), architecture.blocks
    if isinstance(recipe, LayersRecipe):
        raise ValueError(
            "The hidden width can be changed if it is an option of the model's class. Received: "
            f"`hidden` for the {original_class(model).__name__} model {model.name!r} of single "
            "layers. Give `heads`, `feed_forward`, `layers` or `vocabulary`."
        )
    _check_option(
        model, recipe, "hidden", widths(blocks[0])["head_size"] * blocks[0].attention.heads
    )
    if any(block.attention.joint for block in blocks):
        raise ValueError(
            "The hidden width can be changed if queries, keys and values have layers of their "
            f"own. Received: `hidden` for {model.name!r}, where one layer computes all three. "
            "Give `feed_forward`, `layers` or `vocabulary`."
        )


def cut_layers(model: Model, architecture: Architecture, kept: Sequence[int]) -> Model:
    """Keep some blocks, by their numbers in the order of the model."""
    recipe, blocks = recipe_of(model), architecture.blocks
    removed = tuple(block for n, block in enumerate(blocks) if n not in set(kept))
    if isinstance(recipe, LayersRecipe):
        new = recipe.build({}, removed)
        # What else belongs to a block of plain layers has no weights.
        without = [p for block in removed for p in _paths(model, block)]
    else:
        check_layers(model, architecture)
        new = recipe.build(layers=len(kept))
        without = [block.path for block in removed]
    carry(model, new, lambda weight, axis: None, without=without)
    return new


def cut_feed_forward(model: Model, architecture: Architecture, kept: Sequence[np.ndarray]) -> Model:
    """Keep some neurons of the feed-forward part of each block.

    Args:
        model: the model.
        architecture: its `Architecture`.
        kept: for each block the increasing numbers of the neurons to keep.
    """
    recipe, blocks = recipe_of(model), architecture.blocks
    numbers = [len(numbers) for numbers in kept]
    indices: dict[int, np.ndarray] = {}
    for block, own in zip(blocks, kept, strict=True):
        forward = block.feed_forward
        for layer in (forward.intermediate, forward.gate, forward.output):
            indices[id(layer)] = own
    if isinstance(recipe, LayersRecipe):
        new = recipe.build(_neuron_options(model, architecture, numbers))
    else:
        check_feed_forward(model, architecture)
        _check_equal(model, "feed_forward", numbers)
        new = recipe.build(feed_forward=numbers[0])
    carry(model, new, lambda weight, axis: indices.get(id(weight.layer)))
    return new


def cut_heads(model: Model, architecture: Architecture, kept: Sequence[np.ndarray]) -> Model:
    """Keep some attention heads of each block, which must be layers with options of their own."""
    check_heads(model, architecture)
    recipe, indices = recipe_of(model), {}
    for block, own in zip(architecture.blocks, kept, strict=True):
        attention = block.attention
        for layer in (attention.query, attention.key, attention.value, attention.output):
            indices[id(layer)] = own
    assert isinstance(recipe, LayersRecipe)
    new = recipe.build(_head_options(model, architecture, list(map(len, kept))))
    carry(model, new, lambda weight, axis: indices.get(id(weight.layer)))
    return new


def cut_hidden(
    model: Model, architecture: Architecture, units: np.ndarray, heads: Sequence[np.ndarray]
) -> Model:
    """Keep some hidden units of the whole model, and in each block as many heads as fit.

    Args:
        model: the model.
        architecture: its `Architecture`.
        units: increasing numbers of the hidden units to keep.
        heads: for each block the increasing numbers of the heads to keep.
    """
    check_hidden(model, architecture)
    recipe, blocks = recipe_of(model), architecture.blocks
    assert isinstance(recipe, OptionsRecipe)
    size = widths(blocks[0])["head_size"]
    attention: dict[int, tuple[Block, np.ndarray, bool]] = {}
    for block, own in zip(blocks, heads, strict=True):
        a = block.attention
        for layer in (a.query, a.key, a.value, a.output):
            attention[id(layer)] = (block, own, layer is a.output)

    def kept(weight: Weight, axis: int) -> np.ndarray:
        if id(weight.layer) not in attention:
            return units
        block, own, is_output = attention[id(weight.layer)]
        rank = len(weight.shape)
        if axis == rank - 1 if is_output else weight.kind == KERNEL and axis == 0:
            return units
        if weight.shape[axis] == block.attention.heads and rank > 1:
            return own
        return (own[:, None] * size + np.arange(size)).reshape(-1)

    new = recipe.build(hidden=len(units), heads=len(units) // size)
    carry(model, new, kept)
    return new


def cut_vocabulary(model: Model, architecture: Architecture, ids: np.ndarray) -> Model:
    """Keep some tokens, by their ids. The new ids are the places in `ids`."""
    recipe = recipe_of(model)
    tables = architecture.embeddings.token
    rows = {weight.shape[0] for weight in tables}
    if len(rows) != 1:
        raise ValueError(
            "A vocabulary can be cut if the model has one table of tokens. Received: "
            f"{model.name!r} with {[w.path for w in tables]}. Leave `vocabulary` out."
        )
    if isinstance(recipe, LayersRecipe):
        options = {id(w.layer): _option(w.layer, ("input_dim",), len(ids)) for w in tables}
        new = recipe.build({key: option or {} for key, option in options.items()})
    else:
        _check_option(model, recipe, "vocabulary", rows.pop())
        config = getattr(recipe.encoder.layer, "config", None)
        new_ids = {} if config is None else _special_ids(model, config, ids)
        new = recipe.build(vocabulary=len(ids))
        for name, value in new_ids.items():
            setattr(new.config, name, value)
    if hasattr(new, "renumber_tokens"):
        new.renumber_tokens(ids)
    carry(model, new, lambda weight, axis: ids)
    return new


def _special_ids(model, config, ids):
    """The new ids of the special tokens in a Hugging Face configuration."""
    found = {}
    for name, value in config.to_dict().items():
        if name.endswith("_token_id") and isinstance(value, int) and value >= 0:
            where = np.flatnonzero(ids == value)
            if not where.size or (name == "pad_token_id" and where[0] != value):
                raise ValueError(
                    "`vocabulary` must contain the special tokens of the model, and leave the "
                    f"padding token its id. Received: ids for {model.name!r} with `{name}` "
                    f"{value}, which {'changes' if where.size else 'is missing'}. Get the ids from "
                    "ke.data.trim_vocabulary."
                )
            found[name] = int(where[0])
    return found


# --- options -------------------------------------------------------------------------------------


def _check_option(model, recipe: OptionsRecipe, size: str, expected: int) -> None:
    """Require that a size is an option of the class, whose value is what the model has."""
    encoder = recipe.encoder
    value = encoder.sizes.get(size)
    if size not in encoder.names or value not in (expected, None):
        options = ", ".join(encoder.names)
        found = f"`{encoder.names[size]}` {value}" if size in encoder.names else "no such option"
        raise ValueError(
            f"`{size}` can be changed if the model's class has one option for it. Received: "
            f"{original_class(encoder.layer).__name__} {model.name!r} with {found}, where "
            f"{expected} were found. It has options for: {options}."
        )


def _check_equal(model, size, numbers):
    if len(set(numbers)) > 1:
        raise ValueError(
            f"All layers of {original_class(model).__name__} have one `{size}`. Received: "
            f"{numbers} for {model.name!r}. Give one number, or choose the same for all layers."
        )


def _neuron_options(model, architecture, numbers):
    """The changed options of the layers that write neurons, by the ids of the layers."""
    return {
        id(layer): _changed(model, block, layer, ("units", "filters"), number)
        for block, number in zip(architecture.blocks, numbers, strict=True)
        for layer in (block.feed_forward.intermediate, block.feed_forward.gate)
        if layer is not None
    }


def _head_options(model, architecture, numbers):
    return {
        id(block.layer): _changed(model, block, block.layer, ("num_heads",), number)
        for block, number in zip(architecture.blocks, numbers, strict=True)
    }


def _changed(model: Model, block: Block, layer: Layer, names: tuple[str, ...], value: int) -> dict:
    """The changed options of a layer in a functional model."""
    options = _option(layer, names, value)
    if options is None or not any(layer is own for own in model.layers):
        raise ValueError(
            "The parts of a block can be made smaller if they are layers of the functional model, "
            f"of a known class. Received: {layer.name!r}, a {original_class(layer).__name__}, in "
            f"the block {block.path!r} of {model.name!r}. Only whole layers of this model can be "
            "removed: give `layers`."
        )
    return options


def _option(layer: Layer, names: tuple[str, ...], value: int) -> dict[str, Any] | None:
    config = layer.get_config()
    name = next((name for name in names if name in config), None)
    return None if name is None else {name: value}


def _paths(model: Model, block: Block) -> list[str]:
    own = {id(layer) for layer in (block.chain or (block.layer,))}
    return [path for path, layer in layer_paths(model) if id(layer) in own]
