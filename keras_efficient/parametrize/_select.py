"""Select the weights of a model that a method is applied to, and check them."""

import re
from collections.abc import Callable
from typing import Any

from keras_efficient.architecture._heads import without_ends
from keras_efficient.architecture._layer_paths import layer_paths
from keras_efficient.architecture._weights import KERNEL, Weight, all_weights
from keras_efficient.flavor import Model
from keras_efficient.parametrize._checks import check_model, check_weights
from keras_efficient.parametrize._typing import Layers


def select(
    model: Model,
    layers: Layers = None,
    kinds: tuple[str, ...] = (KERNEL,),
    *,
    caller: str,
    head: bool = True,
    transform: str | None = None,
    trains: bool = False,
) -> list[Weight]:
    """Select the weights of a model to apply a method to, and check that it can be applied.

    Every method that changes weights starts here: all conditions are checked before anything of
    the model changes. `attach` then adds the transforms.

    Args:
        model: a built Keras 3 or tf_keras model.
        layers: which weights. A regular expression is searched in the weights' paths. A layer
            class, a tuple of classes, a function `layer -> bool` or a list of layers selects all
            weights of these layers and of the layers inside them. Default: None, all weights of
            these kinds.
        kinds: kinds of weights to choose from: "kernel", "embedding", "other". Default:
            `("kernel",)`.
        caller: name of the calling function for messages, such as "ke.prune".
        head: whether `layers=None` includes the model's heads, the last layers with a kernel
            before its outputs, and the convolution that projects an image's patches, if it has
            attention. Default: True.
        transform: name of the transform that will be attached to the weights, of which none may
            have one already. Default: None, no transform.
        trains: whether that transform has trainable variables, so that `layers=None` leaves out
            weights in layers with `trainable=False`, unless these are all. Default: False.

    Returns:
        List of `Weight`s in the order of the model, at least one.

    Raises:
        TypeError: `model` is not a Keras model, or `layers` is none of the above.
        ValueError: the model is not built, or another strategy's scope is entered; no weight is
            selected, or a layer is not inside the model; Keras 3 has modified a layer; a weight has
            such a transform already; or it is in a layer with `trainable=False` and `trains` is
            True.

    Examples:
        >>> [w.matrix_shape for w in ke.parametrize.select(model, "kernel", caller="example")]
        [(3, 2)]

    Reference:
        The regular expressions follow `keras.Model.quantize(filters=...)`, but are searched in
        paths of layer names.
    """
    check_model(model, caller)
    matches = matcher(model, layers)
    weights = [w for w in all_weights(model) if w.kind in kinds]
    selected = [w for w in weights if matches(w)]
    if not selected:
        paths = [w.path for w in weights]
        shown = ", ".join(paths[:8]) + (", ..." if len(paths) > 8 else "")
        raise ValueError(
            f"{caller} needs at least one weight ({' or '.join(kinds)}). Received: "
            f"layers={layers!r}, which fits none in {model.name!r}. Choose by a regular expression "
            f"from: {shown or 'none of this kind'}."
        )
    if layers is None and not head:
        selected = without_ends(model, selected)
    if layers is None and trains:
        # Such as a pooler that nothing reads.
        trainable = [w for w in selected if all(layer.trainable for layer in w.ancestors)]
        selected = trainable or selected
    check_weights(selected, caller, transform=transform, trains=trains)
    return selected


def matcher(model: Model, layers: Layers) -> Callable[[Weight], bool]:
    """Return the predicate of a `Weight`, or of any object with a `path`, for `layers`."""
    if layers is None:
        return lambda weight: True
    if isinstance(layers, str):
        return lambda weight: re.search(layers, weight.path) is not None
    inside = dict(layer_paths(model))
    if isinstance(layers, type) or _is_types(layers):
        classes: Any = layers
        selected = {path for path, layer in inside.items() if isinstance(layer, classes)}
    elif isinstance(layers, list | tuple):
        selected = {path for path, layer in inside.items() if any(layer is x for x in layers)}
        foreign = [x for x in layers if all(x is not layer for layer in inside.values())]
        if foreign:
            raise ValueError(
                "`layers` must be layers inside the model. Received: "
                f"{getattr(foreign[0], 'name', foreign[0])!r}, which is not inside {model.name!r}. "
                "Take them from `model.layers` or from a layer's attributes."
            )
    elif callable(layers) and not hasattr(layers, "_flatten_layers"):
        selected = {path for path, layer in inside.items() if layers(layer)}
    else:
        raise TypeError(
            "`layers` must be None, a regular expression, a layer class or several, a function of "
            f"a layer or a list of layers. Received: {layers!r}. Put a single layer in a list."
        )
    return lambda weight: any(weight.path.startswith(f"{path}/") for path in selected)


def _is_types(layers):
    return isinstance(layers, tuple) and layers and all(isinstance(x, type) for x in layers)
