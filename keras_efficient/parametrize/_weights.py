"""Which weights of a model a transform is for, and how each is a matrix."""

import math
import re
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.parametrize._layer_paths import layer_paths

KERNEL, EMBEDDING, OTHER = "kernel", "embedding", "other"


@dataclass(eq=False)
class Weight:
    """One weight of a model, wherever the library keeps it.

    Attributes:
        path: str, such as "encoder/layer_0/attention/query/kernel".
        variable: the library's variable.
        owners: list of `(layer, attribute)` that read it: several where it is shared.
        kind: "kernel" (multiplies activations), "embedding" (rows are looked up) or "other".
        ancestors: tuple of the model and the layers that the first owner is in, itself included.
        inputs: tuple of the axes that a product with activations sums over; an embedding's are
            those of its vectors, so that a row of the table is an output.
    """

    path: str
    variable: Any
    owners: list
    kind: str
    inputs: tuple = ()
    flavor: Any = field(repr=False, default=None)
    ancestors: tuple = field(repr=False, default=())

    @property
    def layer(self):
        return self.owners[0][0]

    @property
    def layer_path(self) -> str:
        return self.path.rpartition("/")[0]

    @property
    def attribute(self):
        return self.owners[0][1]

    @property
    def value(self) -> tf.Variable:
        return self.flavor.value(self.variable)

    @property
    def shape(self) -> tuple:
        return tuple(self.variable.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def outputs(self) -> tuple:
        """The other axes."""
        return tuple(axis for axis in range(len(self.shape)) if axis not in self.inputs)

    @property
    def matrix_shape(self) -> tuple:
        """`(inputs, outputs)` of `matrix`."""
        return tuple(
            math.prod(self.shape[axis] for axis in axes) for axes in (self.inputs, self.outputs)
        )

    def matrix(self, tensor):
        """A tensor of the weight's shape as a matrix [inputs, outputs]."""
        order = (*self.inputs, *self.outputs)
        if order != tuple(range(len(order))):
            tensor = tf.transpose(tensor, order)
        return tensor if len(order) == 2 else tf.reshape(tensor, self.matrix_shape)

    def unmatrix(self, matrix):
        """The inverse of `matrix`."""
        order = (*self.inputs, *self.outputs)
        if len(order) != 2:
            matrix = tf.reshape(matrix, [self.shape[axis] for axis in order])
        if order != tuple(range(len(order))):
            matrix = tf.transpose(matrix, [order.index(axis) for axis in range(len(order))])
        return matrix


def all_weights(model) -> list:
    """Every weight inside a built model as a `Weight`, once, in the order of its layers."""
    flavor, found = flavors.of(model), {}
    inside = dict(layer_paths(model))
    for path, layer in (("", model), *inside.items()):
        if isinstance(layer, flavor.store):
            continue
        for attribute, variable in flavor.attributes(layer).items():
            weight = found.get(id(variable))
            if weight is None:
                where = f"{path}/{attribute}".removeprefix("/")
                parts = path.split("/")
                prefixes = ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]
                ancestors = (model, *(inside[p] for p in prefixes if p in inside))
                role = _role(layer, attribute, variable)
                weight = Weight(where, variable, [], *role, flavor, ancestors)
                found[id(variable)] = weight
            if (layer, attribute) not in weight.owners:
                weight.owners.append((layer, attribute))
    return list(found.values())


def select(model, layers=None, kinds=(KERNEL,), *, caller) -> list:
    """The weights of a model that a caller is to act on.

    Args:
        model: a built Keras 3 or tf_keras model.
        layers: None: all of these kinds. Else which of them: a regular expression searched in the
            weights' paths; a layer class or a tuple of them, a function `layer -> bool`, or a list
            of layers, which stand for all weights in them, of layers inside too.
        kinds: the kinds of weights that come into question.
        caller: str, such as "ke.prune", for messages.

    Returns:
        List of `Weight`s, at least one.

    Raises:
        TypeError: `model` is no Keras model, or `layers` none of the above.
        ValueError: the model is not built, there is no such weight, or a layer is not inside.
    """
    check_built(model, caller)
    matches = matcher(model, layers)
    weights = [w for w in all_weights(model) if w.kind in kinds]
    chosen = [w for w in weights if matches(w)]
    if not chosen:
        paths = [w.path for w in weights]
        shown = ", ".join(paths[:8]) + (", ..." if len(paths) > 8 else "")
        raise ValueError(
            f"{caller} needs at least one weight ({' or '.join(kinds)}). Received: "
            f"layers={layers!r}, which fits none in {model.name!r}. Choose by a regular expression "
            f"from: {shown or 'none of this kind'}."
        )
    check_untouched(chosen, caller)
    return chosen


def check_trains(weights, name):
    """Refuse weights in layers that may not train, for what has to train there."""
    for weight in weights:
        for layer in weight.ancestors:
            if not layer.trainable:
                raise ValueError(
                    f"What {name!r} adds trains inside of layers that may train. Received: "
                    f"{weight.path!r} in {layer.name!r} with trainable=False. Set it to True "
                    "first; the ke.peft verbs freeze the base themselves."
                )


def check_untouched(weights, caller):
    """Refuse layers that Keras 3 itself has changed: a view would not see what it did."""
    for weight in weights:
        if getattr(weight.layer, "lora_enabled", False):
            received = (
                "`enable_lora` called. Leave that out, or save the model and load it into one"
            )
        elif getattr(weight.layer, "quantization_mode", None) is not None:
            received = "`quantize` called. Do that last, or load the model again"
        else:
            continue
        raise ValueError(
            f"{caller} needs layers without Keras' own LoRA or quantization. Received: "
            f"{weight.path!r}, whose layer had {received} without."
        )


def head(model) -> list:
    """The weights of the model's last layer with a kernel, which gives its outputs."""
    weights = all_weights(model)
    kernels = [w for w in weights if w.kind == KERNEL]
    return [w for w in weights if kernels and w.layer is kernels[-1].layer]


def without_head(weights) -> list:
    """Chosen weights but those of the last layer among them."""
    others = [w for w in weights if w.layer is not weights[-1].layer]
    return others or weights


def check_built(model, caller):
    flavors.of(model)
    if not getattr(model, "built", False) or not model.weights:
        raise ValueError(
            f"{caller} needs a built model: before that there are no weights. Received: "
            f"{type(model).__name__} {getattr(model, 'name', '')!r}, not built. Call it on a batch "
            "first."
        )


def matcher(model, layers):
    """A function of a `Weight`, by what `layers` says."""
    if layers is None:
        return lambda weight: True
    if isinstance(layers, str):
        return lambda weight: re.search(layers, weight.path) is not None
    inside = dict(layer_paths(model))
    if isinstance(layers, type) or _is_types(layers):
        wanted = {path for path, layer in inside.items() if isinstance(layer, layers)}
    elif isinstance(layers, list | tuple):
        wanted = {path for path, layer in inside.items() if any(layer is x for x in layers)}
        foreign = [x for x in layers if all(x is not layer for layer in inside.values())]
        if foreign:
            raise ValueError(
                "`layers` must be layers inside the model. Received: "
                f"{getattr(foreign[0], 'name', foreign[0])!r}, which is not inside {model.name!r}. "
                "Take them from `model.layers` or from a layer's attributes."
            )
    elif callable(layers) and not hasattr(layers, "_flatten_layers"):
        wanted = {path for path, layer in inside.items() if layers(layer)}
    else:
        raise TypeError(
            "`layers` must be None, a regular expression, a layer class or several, a function of "
            f"a layer or a list of layers. Received: {layers!r}. Put a single layer in a list."
        )
    return lambda weight: any(weight.path.startswith(f"{path}/") for path in wanted)


def _is_types(layers):
    return isinstance(layers, tuple) and layers and all(isinstance(x, type) for x in layers)


def _role(layer, attribute, variable):
    """`(kind, input axes)` of a layer's weight."""
    rank = len(variable.shape)
    names = " ".join(cls.__name__ for cls in type(layer).__mro__ if cls.__name__ != "object")
    if rank < 2:
        return OTHER, ()
    if "embedding" in attribute or ("Embedding" in names and attribute == "weight"):
        # A row is what a tied output layer makes a logit of.
        return EMBEDDING, (rank - 1,)
    if attribute == "kernel" and isinstance(getattr(layer, "equation", None), str):
        return _einsum_role(layer.equation, rank)
    # (Hugging Face's Conv1D calls it `weight`.)
    dense = attribute == "kernel" and "Dense" in names
    if rank == 2 and (dense or (attribute == "weight" and "Conv1D" in names)):
        return KERNEL, (0,)
    if attribute == "kernel" and "Conv" in names:
        return KERNEL, tuple(range(rank - 1))
    return OTHER, ()


def _einsum_role(equation, rank):
    sides = equation.replace(" ", "").split("->")
    operands = sides[0].split(",")
    if len(sides) != 2 or len(operands) != 2 or len(operands[1]) != rank:
        return OTHER, ()
    kernel, output = operands[1], sides[1]
    inputs = tuple(axis for axis, letter in enumerate(kernel) if letter not in output)
    # An axis of all three is a batch of matrices, which is no single one.
    batched = [letter for letter in kernel if letter in output and letter in operands[0]]
    return (OTHER, ()) if batched or not 0 < len(inputs) < rank else (KERNEL, inputs)
