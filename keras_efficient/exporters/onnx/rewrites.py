"""Write GELU and layer normalization so that ONNX Runtime computes each by one kernel."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np


def write_erfc(graph: Any, node: Any, name: str, _: Any) -> None:
    """Convert TensorFlow's Erfc, which ONNX lacks; a handler for tf2onnx.

    In the exact GELU it is erfc(-x · √½), and becomes 1 + erf(x / √2), which ONNX Runtime knows.
    Elsewhere it becomes 1 - erf(x).
    """
    shape, dtype = graph.get_shape(node.output[0]), graph.get_dtype(node.output[0])
    source, x = _negated(node.inputs[0]), node.input[0]
    graph.remove_node(node.name)
    if source is not None:
        root = graph.make_const(f"{name}/root", np.array(math.sqrt(2), "float32"))
        x = graph.make_node("Div", [source, root.output[0]]).output[0]
    one = graph.make_const(f"{name}/one", np.array(1, "float32"))
    graph.make_node(
        "Sub" if source is None else "Add",
        [one.output[0], graph.make_node("Erf", [x]).output[0]],
        name=name,
        outputs=node.output,
        shapes=[shape],
        dtypes=[dtype],
    )


def _negated(product):
    """Return the name of x if a node computes -x · √½, else None."""
    if product.type != "Mul":
        return None
    constant = [source for source in product.inputs if source.is_const()]
    others = [i for i, source in enumerate(product.inputs) if not source.is_const()]
    if len(constant) != 1:
        return None
    factor, other = constant[0].get_tensor_value(as_list=False), product.inputs[others[0]]
    if np.size(factor) == 1 and np.isclose(factor, -math.sqrt(0.5)):
        return product.input[others[0]]
    if np.size(factor) == 1 and np.isclose(factor, math.sqrt(0.5)) and other.type == "Neg":
        return other.input[0]
    return None


def rewrite(model: Any) -> None:
    """Rewrite the nodes of an `onnx.ModelProto` in place; what is not recognised stays."""
    import onnx

    graph = model.graph
    inferred = onnx.shape_inference.infer_shapes(model).graph
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*inferred.value_info, *inferred.input)
        if value.type.tensor_type.HasField("shape")
    }
    nodes = Nodes(graph)
    for node in list(graph.node):
        with suppress(LookupError):
            if node.op_type == "Erf":
                _order_gelu(nodes, node)
            elif node.op_type == "Reciprocal":
                _make_layer_norm(nodes, node, ranks)
    remove_unread(graph)


class Nodes:
    """The nodes of a graph by the tensors that they make and read."""

    def __init__(self, graph):
        self.graph = graph
        self.outputs = {value.name for value in graph.output}
        self.constants = {constant.name: constant for constant in graph.initializer}
        self.makers = {output: node for node in graph.node for output in node.output}
        self.readers = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                self.readers[name].append(node)

    def maker(self, name, operation):
        """Return the node that makes a tensor; LookupError if it is another operation."""
        node = self.makers[name]
        if node.op_type != operation:
            raise LookupError(name)
        return node

    def reader(self, node, operation):
        """Return the only node that reads an output; LookupError if it is another operation."""
        name = node.output[0]
        (reader, *others) = self.readers[name] or [node]
        if others or reader.op_type != operation or name in self.outputs:
            raise LookupError(name)
        return reader

    def split(self, node):
        """Return the name of the constant among two inputs, and that of the other."""
        constant, other = sorted(node.input, key=lambda name: name not in self.constants)
        if constant not in self.constants or other in self.constants:
            raise LookupError(node.name)
        return constant, other

    def value(self, name):
        from onnx import numpy_helper

        return numpy_helper.to_array(self.constants[name])


def remove_unread(graph: Any) -> None:
    """Remove the nodes and constants that no output of a graph depends on."""
    read = {value.name for value in graph.output}
    for node in reversed(graph.node):
        if read & set(node.output):
            read |= {name for inner in all_nodes([node]) for name in inner.input}
    for values, made in ((graph.node, lambda x: x.output), (graph.initializer, lambda x: [x.name])):
        for value in [value for value in values if not read & set(made(value))]:
            values.remove(value)


def all_nodes(nodes: Iterable[Any]) -> Iterator[Any]:
    """Return nodes and those of the graphs inside of them, such as the branches of an If."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from all_nodes(graph.node)


def _order_gelu(nodes, erf):
    """Write x · (½ · (1 + erf(x/√2))) as (x · (1 + erf(x/√2))) · ½, the order that is known."""
    above = nodes.reader(erf, "Add")
    halved = nodes.reader(above, "Mul")
    half, _ = nodes.split(halved)
    product = nodes.reader(halved, "Mul")
    x = nodes.maker(erf.input[0], "Div").input[0]
    if set(product.input) != {x, halved.output[0]} or nodes.value(half) != 0.5:
        raise LookupError(erf.name)
    halved.input[:] = [x, above.output[0]]
    product.input[:] = [halved.output[0], half]


def _make_layer_norm(nodes, inverse, ranks):
    """Write the norm that a reciprocal of a root belongs to as one node.

    It is (x - mean) · (γ / √(mean((x - mean)²) + ε)) + β.
    """
    from onnx import helper

    shifted = nodes.maker(nodes.maker(inverse.input[0], "Sqrt").input[0], "Add")
    epsilon, variance = nodes.split(shifted)
    spread = nodes.maker(variance, "ReduceMean")
    square = nodes.maker(spread.input[0], "Mul")
    centred = nodes.maker(square.input[0], "Sub")
    x, middle = centred.input[0], nodes.maker(centred.input[1], "ReduceMean")
    scaled = nodes.reader(inverse, "Mul")
    gamma, _ = nodes.split(scaled)
    product = nodes.reader(scaled, "Mul")
    end = nodes.reader(product, "Add")
    beta, _ = nodes.split(end)
    last = ([-1], [ranks[x] - 1])
    axes = [helper.get_node_attr_value(node, "axes") for node in (middle, spread)]
    same = square.input[0] == square.input[1] == centred.output[0] and middle.input[0] == x
    vectors = all(len(nodes.constants[name].dims) == 1 for name in (gamma, beta))
    whole = set(product.input) == {centred.output[0], scaled.output[0]}
    if not (same and whole and vectors and all(found in last for found in axes)):
        raise LookupError(inverse.name)
    norm = helper.make_node(
        "LayerNormalization",
        [x, gamma, beta],
        list(end.output),
        name=f"{end.name}/LayerNormalization",
        axis=-1,
        epsilon=float(nodes.value(epsilon)),
    )
    position = next(i for i, node in enumerate(nodes.graph.node) if node is end)
    nodes.graph.node.remove(end)
    nodes.graph.node.insert(position, norm)
