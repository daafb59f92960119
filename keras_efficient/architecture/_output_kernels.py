"""Which kernels each output of a model depends on, and in which order they are read."""

import contextlib
from typing import Any

import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.architecture._weights import Weight
from keras_efficient.flavor import Model


def output_kernels(model: Model, kernels: list[Weight]) -> list[list[Weight]]:
    """Return the kernels that each output of a model depends on, in the order they are read.

    The model is traced for the inputs it was built with, and the graph is searched backwards.

    Args:
        model: a built model.
        kernels: the weights to look for.

    Returns:
        List of a list of `Weight`s for each output, the last kernel last; empty if the model
        cannot be called with what is known of its inputs.
    """
    traced = _traced(model)
    if traced is None:
        return []
    graph = traced.graph
    numbers = {operation: number for number, operation in enumerate(graph.get_operations())}
    placeholders = {id(outside): inside for outside, inside in graph.captures}
    read = {
        placeholders[id(part.handle)].op: weight
        for weight in kernels
        for part in getattr(weight.value, "values", (weight.value,))
        if id(part.handle) in placeholders
    }
    outputs = [t for t in tf.nest.flatten(traced.structured_outputs) if tf.is_tensor(t)]
    return [_kernels_before(output.op, read, numbers) for output in outputs]


def _traced(model):
    flavor = flavors.of(model)
    for args, kwargs in flavor.call_specs(model):
        # A model may compute with integers what is only known to have a shape, and a call that
        # needs more than tensors has no outputs to search.
        with contextlib.suppress(Exception):
            call: Any = tf.function(model, autograph=False)
            return call.get_concrete_function(*args, **kwargs)
    return None


def _kernels_before(operation, read, numbers):
    """The kernels read by an operation or those before it, by the number of the last reader."""
    last, seen, waiting = {}, {operation}, [operation]
    while waiting:
        current = waiting.pop()
        for tensor in current.inputs:
            before = tensor.op
            if before in read:
                last[before] = max(last.get(before, 0), numbers[current])
            elif before not in seen:
                seen.add(before)
                waiting.append(before)
    order = {op: number for number, op in enumerate(read)}
    return [read[op] for op in sorted(last, key=lambda op: (last[op], order[op]))]
