"""A model's weights: paths, kinds, and each as a matrix of inputs and outputs."""

import math
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.architecture._layer_paths import layer_paths
from keras_efficient.flavor import Model, Tensor

#: The kinds of weights.
KERNEL, EMBEDDING, OTHER = "kernel", "embedding", "other"


@dataclass(eq=False)
class Weight:
    """One weight of a model.

    Attributes:
        path: path of the weight, such as "encoder/layer_0/attention/query/kernel".
        variable: the library's variable.
        owners: list of `(layer, attribute)` that read it, more than one if layers share it.
        kind: "kernel" (multiplies activations), "embedding" (rows are looked up) or "other".
        inputs: axes that a product with activations sums over. An embedding's are those of its
            vectors, so that a row of the table is an output.
        flavor: the library of the model.
        ancestors: the model and the layers that contain the first owner, and the owner itself.
        layer: the first layer that reads it.
        layer_path: path of that layer.
        attribute: the layer's attribute that holds it.
        value: the `tf.Variable` of any shape and dtype.
        shape: its shape.
        size: number of elements.
        outputs: the axes that are not `inputs`.
        matrix_shape: `(inputs, outputs)` of `matrix`.
    """

    path: str
    variable: Any
    owners: list[tuple[Any, str]]
    kind: str
    inputs: tuple[int, ...] = ()
    flavor: Any = field(repr=False, default=None)
    ancestors: tuple[Any, ...] = field(repr=False, default=())

    @property
    def layer(self) -> Any:
        """The first layer that reads the weight."""
        return self.owners[0][0]

    @property
    def layer_path(self) -> str:
        """Path of that layer."""
        return self.path.rpartition("/")[0]

    @property
    def attribute(self) -> str:
        """The layer's attribute that holds the weight."""
        return self.owners[0][1]

    @property
    def value(self) -> tf.Variable:
        """The weight's `tf.Variable`, before any transform."""
        return self.flavor.value(self.variable)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return tuple(self.variable.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def outputs(self) -> tuple[int, ...]:
        """Axes that are not `inputs`."""
        return tuple(axis for axis in range(len(self.shape)) if axis not in self.inputs)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """`(inputs, outputs)` of `matrix`."""
        inputs, outputs = (
            math.prod(self.shape[axis] for axis in axes) for axes in (self.inputs, self.outputs)
        )
        return inputs, outputs

    def matrix(self, tensor: Tensor) -> tf.Tensor:
        """Return a tensor of the weight's shape as a matrix [inputs, outputs]."""
        order = (*self.inputs, *self.outputs)
        if order != tuple(range(len(order))):
            tensor = tf.transpose(tensor, order)
        return tensor if len(order) == 2 else tf.reshape(tensor, self.matrix_shape)

    def unmatrix(self, matrix: Tensor) -> tf.Tensor:
        """Return a matrix [inputs, outputs] in the weight's shape: the inverse of `matrix`."""
        order = (*self.inputs, *self.outputs)
        if len(order) != 2:
            matrix = tf.reshape(matrix, [self.shape[axis] for axis in order])
        if order != tuple(range(len(order))):
            matrix = tf.transpose(matrix, [order.index(axis) for axis in range(len(order))])
        return matrix


def all_weights(model: Model) -> list[Weight]:
    """Return every weight of a built model once, in the order of its layers."""
    flavor, found = flavors.of(model), {}
    inside = dict(layer_paths(model))
    for path, layer in (("", model), *inside.items()):
        if isinstance(layer, flavor.store):
            continue
        for attribute, variable in flavor.variable_attributes(layer).items():
            weight = found.get(id(variable))
            if weight is None:
                full_path = f"{path}/{attribute}".removeprefix("/")
                parts = path.split("/")
                prefixes = ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]
                ancestors = (model, *(inside[p] for p in prefixes if p in inside))
                role = _role(layer, attribute, variable)
                weight = Weight(full_path, variable, [], *role, flavor, ancestors)
                found[id(variable)] = weight
            if (layer, attribute) not in weight.owners:
                weight.owners.append((layer, attribute))
    return list(found.values())


def _role(layer, attribute, variable):
    """Return `(kind, input axes)` of a layer's weight."""
    rank = len(variable.shape)
    names = " ".join(cls.__name__ for cls in type(layer).__mro__ if cls.__name__ != "object")
    if rank < 2:
        return OTHER, ()
    if "embedding" in attribute or ("Embedding" in names and attribute == "weight"):
        # A tied output layer computes one logit per row of the table.
        return EMBEDDING, (rank - 1,)
    if attribute == "kernel" and isinstance(getattr(layer, "equation", None), str):
        return _einsum_role(layer.equation, rank)
    # Hugging Face's Conv1D names its kernel `weight`.
    dense = attribute == "kernel" and "Dense" in names
    if rank == 2 and (dense or (attribute == "weight" and "Conv1D" in names)):
        return KERNEL, (0,)
    if "Conv" in names:
        return _convolution_role(attribute, names, rank)
    return OTHER, ()


def _convolution_role(attribute, names, rank):
    # Keras 3's DepthwiseConv2D calls `kernel` what tf_keras' calls `depthwise_kernel`.
    depthwise = attribute == "kernel" and "DepthwiseConv" in names
    if depthwise or attribute == "depthwise_kernel":
        # An output channel has one input channel: it sums over positions alone.
        return KERNEL, tuple(range(rank - 2))
    if attribute == "kernel" and "Transpose" in names:
        return KERNEL, (*range(rank - 2), rank - 1)
    if attribute in ("kernel", "pointwise_kernel"):
        return KERNEL, tuple(range(rank - 1))
    return OTHER, ()


def _einsum_role(equation, rank):
    sides = equation.replace(" ", "").split("->")
    operands = sides[0].split(",")
    if len(sides) != 2 or len(operands) != 2 or len(operands[1]) != rank:
        return OTHER, ()
    kernel, output = operands[1], sides[1]
    inputs = tuple(axis for axis, letter in enumerate(kernel) if letter not in output)
    # An axis that occurs in inputs, kernel and outputs makes the kernel a batch of matrices.
    batched = [letter for letter in kernel if letter in output and letter in operands[0]]
    return (OTHER, ()) if batched or not 0 < len(inputs) < rank else (KERNEL, inputs)
