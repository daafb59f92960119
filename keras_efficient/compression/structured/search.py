"""The sizes that reach a target with the least loss: number of blocks × feed-forward width."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.architecture import Architecture
from keras_efficient.architecture._weights import KERNEL, all_weights
from keras_efficient.compression._observers import input_grams
from keras_efficient.compression.structured.cuts import cut_feed_forward, cut_layers, widths
from keras_efficient.compression.structured.importance import (
    Importance,
    best_weights,
    most,
    output_layers,
    removal_sequence,
)
from keras_efficient.compression.structured.layer_losses import evaluated, removal_order
from keras_efficient.flavor import Model

#: Feed-forward widths whose loss is measured, as parts of the present one.
FRACTIONS = (0.125, 0.25, 0.5, 0.75, 1.0)
#: Fast matrix products have multiples of this many neurons.
STEP = 32


class Losses:
    """The loss of a model by its number of blocks and its feed-forward width, as measured.

    The increases of both are added up.

    Attributes:
        order: numbers of the blocks in the order in which they are removed.
    """

    def __init__(
        self, model: Model, architecture: Architecture, importance: str, batches: list, data: Any
    ):
        self.order, losses = removal_order(model, architecture, data)
        blocks = architecture.blocks
        self.count, self.width = len(blocks), widths(blocks[0])["feed_forward"]
        # Noise may make less look better.
        self.by_removed = np.maximum.accumulate(np.array(losses) - losses[0])
        self.widths = sorted({max(1, round(self.width * part)) for part in FRACTIONS})
        found = _width_losses(model, architecture, importance, batches, data, self.widths)
        increases = np.array([loss - losses[0] for loss in found])
        self.by_width = np.maximum.accumulate(np.append(increases[:-1], 0.0)[::-1])[::-1]

    def of(self, layers: int, feed_forward: int) -> float:
        """Return the predicted increase of the loss."""
        by_width = float(np.interp(feed_forward, self.widths, self.by_width))
        return float(self.by_removed[self.count - layers]) + by_width

    def kept(self, layers: int) -> list[int]:
        """Return the numbers of the blocks to keep."""
        return sorted(set(range(self.count)) - set(self.order[: self.count - layers]))


def _width_losses(model, architecture, importance, batches, data, tried):
    """The loss with each number of neurons in all blocks, measured by zeros in their outputs."""
    kernels = {id(w.layer): w for w in all_weights(model) if w.kind == KERNEL}
    weights = [kernels[id(layer)] for layer in output_layers(architecture.blocks, "feed_forward")]
    matrices = [w.matrix(w.value).numpy() for w in weights]
    if importance == "reconstruction":
        grams = input_grams(model, weights, [x for x, _, _ in batches])
        orders = [
            removal_sequence(m, grams[w], 1, tried[0])
            for w, m in zip(weights, matrices, strict=True)
        ]
    else:
        scores = Importance(model, architecture, importance, batches).neurons()

    def with_neurons(number, at, matrix):
        new = np.zeros_like(matrix)
        if importance == "reconstruction":
            kept = np.setdiff1d(np.arange(len(matrix)), orders[at][: len(matrix) - number])
            new[kept] = best_weights(matrix, grams[weights[at]], 1, kept)
        else:
            kept = most(scores[at], number)
            new[kept] = matrix[kept]
        return new

    def assign(found):
        for weight, matrix in zip(weights, found, strict=True):
            weight.value.assign(weight.unmatrix(tf.constant(matrix, weight.value.dtype)))

    losses = []
    try:
        for number in tried:
            assign([with_neurons(number, at, m) for at, m in enumerate(matrices)])
            losses.append(evaluated(model, data))
    finally:
        assign(matrices)
    return losses


class Parameters:
    """Number of parameters by the number of blocks and the feed-forward width."""

    unit, digits = "parameters", 0

    def __init__(self, model: Model, architecture: Architecture):
        blocks = architecture.blocks
        inside = [
            {id(layer) for part in (b.chain or (b.layer,)) for layer in part._flatten_layers()}
            for b in blocks
        ]
        weights = all_weights(model)
        self.total = sum(w.size for w in weights)
        # Functional models may have blocks of different sizes: then this is their mean.
        self.block = sum(w.size for w in weights if any(id(w.layer) in i for i in inside))
        self.block /= len(blocks)
        self.count, self.width = len(blocks), widths(blocks[0])["feed_forward"]
        forward = blocks[0].feed_forward
        ends = {id(x) for x in (forward.intermediate, forward.gate, forward.output)}
        sized = [w for w in weights if id(w.layer) in ends and self.width in w.shape]
        self.neuron = sum(w.size for w in sized) // self.width

    def of(self, layers: int, feed_forward: int) -> float:
        """Return the number of parameters."""
        fewer = (self.count - layers) * self.block
        return self.total - fewer - layers * (self.width - feed_forward) * self.neuron


class Latency:
    """Milliseconds by the number of blocks and the feed-forward width.

    They are c + layers · (a + b · width), with three numbers that are measured on three models.

    Args:
        model: the model.
        architecture: its `Architecture`.
        measure: function of a list of models that returns their milliseconds.
    """

    unit, digits = "ms", 2

    def __init__(self, model: Model, architecture: Architecture, measure: Callable):
        blocks = architecture.blocks
        self.count, self.width = len(blocks), widths(blocks[0])["feed_forward"]
        narrow = max(1, self.width // 8)
        numbers = np.arange(narrow)
        models = [model, cut_feed_forward(model, architecture, [numbers] * self.count)]
        if self.count > 1:
            models.append(cut_layers(model, architecture, [0]))
        times = measure(models)
        self.whole = times[0]
        # One block costs as much as another. Of a model with a single one all belongs to it.
        block = (times[0] - times[2]) / (self.count - 1) if self.count > 1 else times[0]
        self.rest = max(times[0] - self.count * block, 0.0)
        self.neuron = max(times[0] - times[1], 0.0) / self.count / max(self.width - narrow, 1)
        self.block = block

    def of(self, layers: int, feed_forward: int) -> float:
        """Return the predicted milliseconds."""
        return self.rest + layers * (self.block - (self.width - feed_forward) * self.neuron)


def best_sizes(cost: Parameters | Latency, losses: Losses, most_cost: float) -> tuple[int, int]:
    """Return the number of blocks and the feed-forward width with the least predicted loss.

    Of sizes with the same loss those that cost the most are chosen.

    Args:
        cost: the cost by both sizes.
        losses: the loss by both sizes.
        most_cost: the largest cost.

    Raises:
        ValueError: no sizes cost so little.
    """
    step = STEP if losses.width >= 4 * STEP else 1
    widths = [*range(step, losses.width, step), losses.width]
    sizes = [(layers, width) for layers in range(1, losses.count + 1) for width in widths]
    fitting = [size for size in sizes if cost.of(*size) <= most_cost]
    if not fitting:
        now, least = cost.of(losses.count, losses.width), cost.of(1, step)
        raise ValueError(
            "A target must be one that fewer layers and narrower feed-forward parts reach. "
            f"Received: at most {most_cost:,.{cost.digits}f} {cost.unit}, of "
            f"{now:,.{cost.digits}f} now. One layer with {step} neurons has "
            f"{least:,.{cost.digits}f}. Also reduce `hidden` or `vocabulary`, or set a larger "
            "target."
        )
    return min(fitting, key=lambda size: (losses.of(*size), -cost.of(*size)))


def timer(features: Any, runs: int = 7) -> Callable[[list[Model]], list[float]]:
    """Return a function that measures models on a batch as TensorFlow graphs, in turns.

    Args:
        features: a batch as the models accept it.
        runs: how often each is run after a warm-up. Default: 7.

    Returns:
        Function of a list of models, which returns the least milliseconds of each.
    """

    def measure(models):
        calls = [_graph(model) for model in models]
        for call in calls:
            call(features)
        best = [np.inf] * len(models)
        for _ in range(runs):
            for number, call in enumerate(calls):
                begin = time.perf_counter()
                tf.nest.map_structure(lambda t: t.numpy(), _tensors(call(features)))
                best[number] = min(best[number], (time.perf_counter() - begin) * 1e3)
        return best

    return measure


def _graph(model) -> Callable:
    flavor = flavors.of(model)
    return tf.function(lambda x: flavor.call(model, x, training=False), autograph=False)


def _tensors(outputs):
    return [t for t in tf.nest.flatten(getattr(outputs, "logits", outputs)) if tf.is_tensor(t)]
