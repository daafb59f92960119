"""The conditions that a model and its weights must meet before transforms are attached."""

from collections.abc import Iterable

import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.architecture._check_built import check_built
from keras_efficient.architecture._weights import Weight
from keras_efficient.flavor import Layer, Model
from keras_efficient.parametrize._parametrized_layer import parametrized_layer, transform_of

#: Attribute of a model whose variables have other values for the time of a `with` block: the name
#: of the context, for messages.
TEMPORARY = "_keras_efficient_temporary_values"


def check_model(model: Model, caller: str, *, changes: bool = True) -> None:
    """Require a built model of either library that may be changed now.

    Args:
        model: the model.
        caller: such as "ke.prune", for messages.
        changes: whether the caller changes the model. Default: True. False: for functions that
            only read it, which may run in any scope.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: the model is not built; and if the caller changes it, the scope of a strategy
            other than the one it was created under is entered, or it has averaged weights for the
            time of `ema.averaged()`.
    """
    check_built(model, caller)
    if not changes:
        return
    check_permanent(model, caller)
    # `model.distribute_strategy` will not do: inside a scope, a model that was created outside of
    # any strategy reports the strategy of that scope.
    # Variables of a strategy of one device have it under this name only.
    own = getattr(flavors.of(model).value(model.weights[0]), "_distribute_strategy", None)
    current = tf.distribute.get_strategy()
    if tf.distribute.has_strategy() and current is not own:
        kind = "no strategy" if own is None else type(own).__name__
        raise ValueError(
            f"{caller} must run under the strategy that the model was made under. Received: a "
            f"model of {kind} inside the scope of another {type(current).__name__}. Leave the "
            "`with strategy.scope()` block first."
        )


def check_permanent(model: Model, caller: str) -> None:
    """Require a model whose variables have their own values, not those of a context."""
    context = vars(model).get(TEMPORARY)
    if context is not None:
        raise ValueError(
            f"{caller} changes the model's weights, which {context} swaps back at its end. "
            f"Received: a model inside of {context}. Call {caller} outside of the `with` block; to "
            "continue with the averages, save them inside with `model.save_weights` and load them "
            "outside."
        )


def check_weights(
    weights: Iterable[Weight], caller: str, *, transform: str | None = None, trains: bool = False
) -> None:
    """Require weights that a transform can be attached to.

    Args:
        weights: the weights.
        caller: such as "ke.prune", for messages.
        transform: name of the transform to be attached. Default: None, no transform.
        trains: whether it has trainable variables. Default: False.

    Raises:
        ValueError: Keras 3 itself has modified a layer (`enable_lora`, `quantize`), a weight has a
            transform of this name already, or a layer that cannot train would get one that trains.
    """
    for weight in weights:
        _check_unmodified(weight, caller)
    if transform is not None:
        for weight in weights:
            check_transform(weight, transform, trains)


def _check_unmodified(weight, caller):
    # Keras' own LoRA and quantization compute with variables that a transform does not know of.
    if getattr(weight.layer, "lora_enabled", False):
        received = "`enable_lora` called. Leave that out, or save the model and load it into one"
    elif getattr(weight.layer, "quantization_mode", None) is not None:
        received = "`quantize` called. Do that last, or load the model again"
    else:
        return
    raise ValueError(
        f"{caller} needs layers without Keras' own LoRA or quantization. Received: "
        f"{weight.path!r}, whose layer had {received} without."
    )


def check_transform(weight: Weight, name: str, trains: bool) -> None:
    """Require that a weight has no transform of this name, and that one that trains can train."""
    if trains:
        check_trainable([weight], name)
    if transform_of(weight, name) is not None:
        raise ValueError(
            f"A weight can have one transform of each kind. Received: {name!r} for "
            f"{weight.path!r}, which has one. Fold it with ke.merge(model) first, or choose "
            "other weights with `layers=`."
        )


def check_trainable(weights: Iterable[Weight], name: str) -> None:
    """Require layers with `trainable=True`, for an addition called `name` that has to train."""
    for weight in weights:
        for layer in weight.ancestors:
            if not layer.trainable:
                raise ValueError(
                    f"The variables of {name!r} train only in layers with trainable=True. "
                    f"Received: {weight.path!r} in {layer.name!r} with trainable=False. Set it to "
                    "True first; ke.lora, ke.adapters and the like freeze the base themselves."
                )


def check_call_wrapper(layers: Iterable[tuple[str, Layer]], name: str, caller: str) -> None:
    """Require layers, as `(path, layer)`, that have no call wrapper of this name."""
    for path, layer in layers:
        parametrized = parametrized_layer(layer)
        if parametrized is not None and any(
            wrapper.name == name for wrapper in parametrized.call_wrappers
        ):
            raise ValueError(
                f"{caller} adds one thing of a name to a layer. Received: name={name!r} for "
                f"{path!r}, which has one. Take it off with the report's `remove()`, or give "
                "another `name`."
            )
