"""The loss of a model without some of its Transformer blocks, measured on data."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.architecture import Architecture, Block
from keras_efficient.flavor import Layer, Model


def removal_order(
    model: Model, architecture: Architecture, batches: tf.data.Dataset
) -> tuple[list[int], list[float]]:
    """Remove blocks one after the other, always the one without which the loss is least.

    Args:
        model: the compiled model.
        architecture: its `Architecture`.
        batches: dataset that the model can be evaluated on.

    Returns:
        The numbers of the blocks in the order of their removal, all but the last one; and the loss
        after each removal, that of the whole model first.
    """
    blocks, order = architecture.blocks, []
    with skippable(model, blocks) as skipped:

        def loss(numbers):
            for number, variable in enumerate(skipped):
                variable.assign(number in numbers)
            return evaluated(model, batches)

        losses = [loss(())]
        while len(order) < len(blocks) - 1:
            left = [number for number in range(len(blocks)) if number not in order]
            found = [loss((*order, number)) for number in left]
            order.append(left[int(np.argmin(found))])
            losses.append(min(found))
    return order, losses


def evaluated(model: Model, batches: tf.data.Dataset) -> float:
    """Return the compiled loss of a model on batches."""
    loss = float(model.evaluate(batches, verbose=0, return_dict=True)["loss"])
    if not np.isfinite(loss):
        raise ValueError(
            f"The loss of `data` must be finite. Received: {loss}. Check the batches and the "
            "weights."
        )
    return loss


@contextmanager
def skippable(model: Model, blocks: tuple[Block, ...]) -> Iterator[list[tf.Variable]]:
    """A context in which blocks can be skipped by setting bool variables, without tracing again."""
    flavor = flavors.of(model)
    variables = [tf.Variable(tf.constant(False), trainable=False) for _ in blocks]
    own: list[tuple[Layer, object]] = []

    def replace(layer, bypass, variable):
        plain = vars(layer).get("call")
        own.append((layer, plain))
        run = layer.call if plain is None else plain

        def call(*args, **kwargs):
            result = flavor.converted(layer, run)(*args, **kwargs)
            return tf.nest.map_structure(
                lambda there, without: tf.where(variable, tf.cast(without, there.dtype), there),
                result,
                bypass(args, kwargs, result),
            )

        vars(call)["autograph_info__"] = None
        object.__setattr__(layer, "call", call)

    try:
        for block, variable in zip(blocks, variables, strict=True):
            if not block.chain:
                replace(block.layer, _around(block), variable)
                continue
            # A block without the outputs of its two parts and without their norms.
            for layer in (block.layer, block.feed_forward.output):
                replace(layer, lambda args, kwargs, result: tf.zeros_like(result), variable)
            if not block.norm_first:
                for layer in (block.attention_norm, block.feed_forward_norm):
                    replace(layer, lambda args, kwargs, result: args[0], variable)
        with flavor.untraced(model):
            yield variables
    finally:
        for layer, plain in reversed(own):
            vars(layer).pop("call", None)
            if plain is not None:
                object.__setattr__(layer, "call", plain)


def _around(block: Block):
    def bypass(args, kwargs, result):
        inputs = block.inputs(args, kwargs)
        if inputs is None:
            raise ValueError(
                "A block can be skipped if it computes hidden states alone. Received: "
                f"{block.path!r}, which is asked for something else, such as attention scores. "
                "Switch that off, or give the numbers of the layers to keep."
            )
        return block.outputs(inputs.hidden, inputs)

    return bypass
