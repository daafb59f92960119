"""How the sizes of a model are changed: by the options of its class, or layer by layer."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from keras_efficient import flavor as flavors
from keras_efficient.architecture._layer_class import original_class
from keras_efficient.flavor import Layer, Model

#: The names of each size in the options of KerasHub, Model Garden and Hugging Face. The last ones
#: of "feed_forward" are those of GPT-2, T5 and DistilBERT.
_NAMES = {
    "layers": ("num_layers", "num_hidden_layers"),
    "heads": ("num_heads", "num_attention_heads"),
    "feed_forward": ("intermediate_dim", "inner_dim", "intermediate_size", "mlp_dim"),
    "hidden": ("hidden_dim", "hidden_size"),
    "vocabulary": ("vocabulary_size", "vocab_size"),
}
_HUGGING_FACE_NAMES = {
    **_NAMES,
    "layers": ("num_hidden_layers",),
    "feed_forward": ("intermediate_size", "n_inner", "d_ff", "hidden_dim"),
    "hidden": ("hidden_size",),
}
#: Without these a layer is no encoder.
_NEEDED = ("layers", "heads", "hidden")
#: Attributes and options of the models that hold an encoder.
_HOLDERS = ("backbone", "network")


@dataclass(frozen=True, eq=False)
class Encoder:
    """A layer or model whose class has one option for each size.

    Attributes:
        layer: the encoder.
        names: dict of a size ("layers", "heads", "feed_forward", "hidden", "vocabulary") to the
            name of its option.
        sizes: dict of the same to its present value.
        make: function of a dict of changed options, by their names, that makes a new encoder.
    """

    layer: Layer
    names: dict[str, str]
    sizes: dict[str, Any]
    make: Callable[[dict[str, Any]], Layer]


@dataclass(frozen=True, eq=False)
class OptionsRecipe:
    """A model whose sizes are options of its class, or of the class of the encoder inside.

    Attributes:
        encoder: the `Encoder`.
        around: function of a new encoder that makes the model around it.
    """

    encoder: Encoder
    around: Callable[[Layer], Model]

    def build(self, **sizes: int) -> Model:
        """Make a new model with some other sizes."""
        return self.around(self.encoder.make({self.encoder.names[k]: v for k, v in sizes.items()}))


@dataclass(frozen=True, eq=False)
class LayersRecipe:
    """A functional or sequential model, each of whose layers has its own options.

    Attributes:
        model: the model.
    """

    model: Model

    def build(self, options: dict[int, dict[str, Any]], removed: tuple[Any, ...] = ()) -> Model:
        """Make a new model.

        Args:
            options: dict of the id of a layer to its changed options.
            removed: the `Block`s to leave out. Default: ().
        """
        return rebuilt(self.model, options=options, removed=removed)


def recipe_of(model: Model, caller: str = "ke.shrink") -> OptionsRecipe | LayersRecipe:
    """Return how to make a model of the same class with other sizes.

    Raises:
        ValueError: the model's class does not say how it is made.
    """
    encoder = _encoder(model)
    if encoder is not None:
        return OptionsRecipe(encoder, lambda new: new)
    for holder in _HOLDERS:
        config = _config(model)
        inner = getattr(model, holder, None) if holder == "backbone" else config.get(holder)
        encoder = None if inner is None else _encoder(inner)
        if encoder is not None:
            return OptionsRecipe(encoder, lambda new, name=holder: _held(model, name, new))
    if is_functional(model):
        encoders = [found for layer in model.layers if (found := _encoder(layer)) is not None]
        if len(encoders) == 1:
            old = encoders[0].layer
            return OptionsRecipe(encoders[0], lambda new: rebuilt(model, replaced={id(old): new}))
        return LayersRecipe(model)
    raise ValueError(
        f"{caller} makes a new model of the same class, so the class must say how. Received: "
        f"{original_class(model).__name__} {model.name!r}, a class of your own. It can for models "
        "of KerasHub, Hugging Face and Model Garden, and functional models; return such a model "
        "from a function instead of defining a class."
    )


def is_functional(model: Model) -> bool:
    """Return whether a model is a graph of layers, as functional and sequential models are."""
    return getattr(model, "_nodes_by_depth", None) is not None or hasattr(model, "_functional")


def _encoder(layer: Layer) -> Encoder | None:
    if original_class(layer).__module__.partition(".")[0] == "transformers":
        return _hugging_face(layer)
    config = _config(layer)
    names = _names(_NAMES, config)
    if names is None:
        return None
    sizes = {size: config[name] for size, name in names.items()}
    if "inner_activation" in config and (blocks := getattr(layer, "transformer_layers", None)):
        # Model Garden names the function here, and its default is a lambda.
        config["inner_activation"] = blocks[0]._inner_activation
    if config.get("embedding_layer") is not None:
        raise ValueError(
            "ke.shrink makes all layers anew. Received: "
            f"{original_class(layer).__name__} {layer.name!r} made with an `embedding_layer`, "
            "which it would share with the new one. Make the encoder without."
        )

    def make(changed):
        width = names["hidden"]
        if width in changed and config.get("embedding_width") == config[width]:
            changed = {**changed, "embedding_width": changed[width]}
        cls: Any = original_class(layer)
        return cls.from_config({**config, **changed})

    return Encoder(layer, names, sizes, make)


def _hugging_face(model: Any) -> Encoder | None:
    config = getattr(model, "config", None)
    names = None if config is None else _names(_HUGGING_FACE_NAMES, _Options(config))
    if names is None or not hasattr(model, "dummy_inputs"):
        return None

    def make(changed):
        new_config = copy.deepcopy(config)
        for name, value in changed.items():
            setattr(new_config, name, value)
        cls: Any = original_class(model)
        try:
            new = cls(new_config, name=model.name)
        except TypeError:
            # Some classes, such as DeiT's, take no name.
            new = cls(new_config)
        new(new.dummy_inputs)
        return new

    sizes = {size: getattr(config, name) for size, name in names.items()}
    return Encoder(model, names, sizes, make)


class _Options:
    """The options of a Hugging Face configuration, those under other names included."""

    def __init__(self, config):
        self.config = config

    def __contains__(self, name):
        return getattr(self.config, name, None) is not None


def _names(options, config) -> dict[str, str] | None:
    found = {
        size: name
        for size, names in options.items()
        if (name := next((name for name in names if name in config), None)) is not None
    }
    return found if set(_NEEDED) <= set(found) else None


def _config(layer: Layer) -> dict[str, Any]:
    """The options of a layer; none if its class does not tell them."""
    try:
        return dict(layer.get_config())
    except Exception:
        # A class of the user's own may do anything here.
        return {}


def _held(model: Any, name: str, encoder: Layer) -> Model:
    """A model of the same class that holds another encoder."""
    config = {**model.get_config(), name: encoder}
    if "preprocessor" in config:
        config["preprocessor"] = model.preprocessor
    cls: Any = original_class(model)
    new = cls.from_config(config)
    if hasattr(model, "num_classes") and not hasattr(new, "num_classes"):
        # `ke.models.load` gives it to language models, whose classes are tokens.
        new.num_classes = getattr(encoder, "vocabulary_size", model.num_classes)
    return new


# --- functional and sequential models ------------------------------------------------------------

#: Stands for what a removed part of a block would have returned.
_NOTHING = object()


def rebuilt(
    model: Model,
    *,
    options: dict[int, dict[str, Any]] | None = None,
    replaced: dict[int, Layer] | None = None,
    removed: tuple[Any, ...] = (),
) -> Model:
    """Make a functional or sequential model anew, from new layers with the same options.

    Args:
        model: the model.
        options: dict of the id of a layer to its changed options.
        replaced: dict of the id of a layer to the one to use instead.
        removed: `Block`s to leave out: hidden states bypass them.

    Raises:
        ValueError: a layer does not tell its options.
    """
    flavor, made = flavors.of(model), dict(replaced or {})
    passing = {id(block.layer) for block in removed if not block.chain}
    passing |= {
        id(norm)
        for block in removed
        if block.chain
        for norm in (block.attention_norm, block.feed_forward_norm)
    }
    cut = {id(block.layer) for block in removed if block.chain}
    cut |= {id(block.feed_forward.intermediate) for block in removed if block.chain}

    def new(layer):
        if id(layer) in passing:
            return _first
        if id(layer) in cut:
            return _nothing
        if id(layer) not in made:
            made[id(layer)] = _copied(layer, (options or {}).get(id(layer), {}))
        return made[id(layer)]

    return flavor.rebuild(model, new, _called)


def _copied(layer: Layer, changed: dict[str, Any]):
    if not hasattr(layer, "get_config") or not hasattr(layer, "weights"):
        # An operation of Keras 3, which has no state.
        return layer
    cls: Any = original_class(layer)
    try:
        return cls.from_config({**layer.get_config(), **changed})
    except Exception as error:
        raise ValueError(
            "ke.shrink makes each layer of a functional model anew from its `get_config`. "
            f"Received: the layer {layer.name!r}, a {cls.__name__}, for which that fails "
            f"({type(error).__name__}: {str(error).partition(chr(10))[0]:.200}). Let its "
            "`get_config` return all arguments of its `__init__`."
        ) from error


def _first(*args, **kwargs):
    """What bypasses a layer: its first argument."""
    return args[0] if args else next(iter(kwargs.values()))


def _nothing(*args, **kwargs):
    return _NOTHING


def _called(layer, *args, **kwargs):
    """The outputs of a layer. A sum with nothing is the other summand."""
    if layer is _nothing or layer is _first:
        return layer(*args, **kwargs)
    given = [*_flat(args), *_flat(kwargs)]
    if not any(x is _NOTHING for x in given):
        return layer(*args, **kwargs)
    tensors = [x for x in given if hasattr(x, "shape") and hasattr(x, "dtype")]
    return tensors[0] if len(tensors) == 1 else _NOTHING


def _flat(nest):
    if isinstance(nest, dict):
        nest = nest.values()
    elif not isinstance(nest, list | tuple):
        return [nest]
    return [x for part in nest for x in _flat(part)]
