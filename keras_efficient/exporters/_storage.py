"""The forms in which the weights of an export are stored, and their bytes."""

import collections
import math
from typing import Any

from keras_efficient.exporters.inference_ops.loaded_tensor import encodings_of


def storage_of(module: Any, function: Any) -> dict[str, int]:
    """Return the bytes of the weights by form, such as "float32" or "4-bit codebook of int8".

    Args:
        module: the module that is saved, with its variables `weights` and its `LoadedTensor`s
            `loaded`.
        function: the concrete function that reads them. Its large constants, such as biases, are
            counted as "constants".
    """
    found, encoded = collections.Counter(), set()
    for encoding in encodings_of(module.loaded):
        found[encoding.describe()] += encoding.bytes
        encoded |= set(map(id, encoding.variables))
    for variable in module.weights:
        if id(variable) not in encoded:
            found[variable.dtype.name] += variable.dtype.size * math.prod(variable.shape)
    found["constants"] += _constant_bytes(function)
    return {form: size for form, size in found.most_common() if size}


def _constant_bytes(function):
    """Return the bytes of the arrays in a graph, such as scales and biases, but not of shapes."""
    graph = function.graph.as_graph_def()
    nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
    sizes = [len(n.attr["value"].tensor.tensor_content) for n in nodes if n.op == "Const"]
    return sum(size for size in sizes if size >= 256)
