"""Which neurons, heads and hidden units of a model matter least."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient.architecture import Architecture, Block
from keras_efficient.architecture._weights import KERNEL, Weight, all_weights
from keras_efficient.compression._observers import input_grams
from keras_efficient.compression._reconstruction import damped
from keras_efficient.compression.structured.cuts import widths
from keras_efficient.flavor import Layer, Model
from keras_efficient.training._batch_loss import batch_loss

#: Times the mean diagonal of XᵀX is added to its diagonal, as in `Reconstruction`.
DAMPING = 0.01


class Importance:
    """Scores of the parts of a model.

    Args:
        model: the model.
        architecture: its `Architecture`.
        method: "magnitude", "taylor" or "reconstruction".
        batches: list of `(x, y, sample_weight)`; None without data.
    """

    def __init__(self, model: Model, architecture: Architecture, method: str, batches: Any = None):
        self.model, self.blocks, self.method = model, architecture.blocks, method
        self.tables = architecture.embeddings
        self.weights: dict[int, list[Weight]] = {}
        for weight in all_weights(model):
            self.weights.setdefault(id(weight.layer), []).append(weight)
        self.batches = batches

    def neurons(self) -> list[np.ndarray]:
        """Return a score for each neuron of the feed-forward part of each block."""
        parts = []
        for block in self.blocks:
            forward, count = block.feed_forward, widths(block)["feed_forward"]
            inner = [forward.intermediate, *([] if forward.gate is None else [forward.gate])]
            parts.append(self._parts(inner, forward.output, count))
        return self._scores(parts)

    def heads(self) -> list[np.ndarray]:
        """Return a score for each head of each block."""
        parts = []
        for block in self.blocks:
            attention = block.attention
            value = attention.value
            parts.append(self._parts([value], attention.output, attention.heads, attention.joint))
        return self._scores(parts)

    def hidden(self) -> np.ndarray:
        """Return a score for each hidden unit, by all weights that read or write it."""
        width = widths(self.blocks[0])["hidden"]
        parts = []
        for block in self.blocks:
            a, f = block.attention, block.feed_forward
            readers = [a.query, a.key, a.value, f.intermediate, f.gate]
            parts += [(w, (width, -1)) for layer in readers for w in self._kernels(layer)]
            for layer in (a.output, f.output):
                parts += [(w, (-1, width)) for w in self._kernels(layer)]
        tables = (*self.tables.token, *self.tables.position, *self.tables.segment)
        parts += [(w, (-1, width)) for w in tables if w.shape[-1] == width]
        return self._sums(parts, width)

    # --- the same for all parts --------------------------------------------------------------

    def _kernels(self, layer: Layer | None) -> list[Weight]:
        found = [] if layer is None else self.weights.get(id(layer), [])
        return [weight for weight in found if weight.kind == KERNEL]

    def _parts(self, inner, output, count, joint=False):
        """What writes units of the inside of a block, and the kernel that reads them.

        Returns:
            Tuple of their number, a list of weights that write them, and the reading kernel.
        """
        writing = [] if joint else [w for layer in inner for w in self.weights[id(layer)]]
        (reading,) = self._kernels(output)
        return count, writing, reading

    def _scores(self, parts) -> list[np.ndarray]:
        if self.method == "taylor":
            return self._taylor(parts)
        return [_products(*part) for part in parts]

    def _taylor(self, parts) -> list[np.ndarray]:
        """Sum over batches of (Σ w · ∂L/∂w)², over the kernel that reads the units."""
        totals = [np.zeros(count) for count, _, _ in parts]
        kernels = [reading for _, _, reading in parts]
        for found in self._gradients(kernels):
            for total, kernel, gradient in zip(totals, kernels, found, strict=True):
                product = (kernel.value.numpy() * gradient).reshape(len(total), -1)
                total += product.sum(1) ** 2
        return totals

    def _sums(self, parts, width) -> np.ndarray:
        def by_unit(array, shape):
            matrix = array.reshape(shape)
            return matrix.sum(0 if shape[1] == width else 1)

        total = np.zeros(width)
        if self.method == "taylor":
            for found in self._gradients([weight for weight, _ in parts]):
                pairs = zip(parts, found, strict=True)
                total += sum(by_unit(w.value.numpy() * g, shape) for (w, shape), g in pairs) ** 2
            return total
        for weight, shape in parts:
            squares = by_unit(weight.value.numpy().astype(np.float64) ** 2, shape)
            total += squares / (squares.sum() or 1.0)
        return total

    def _gradients(self, weights: list[Weight]) -> Iterator[list[np.ndarray]]:
        variables = [weight.value for weight in weights]
        for batch in self.batches:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(variables)
                loss = batch_loss(self.model, batch)
            found = tape.gradient(loss, variables)
            yield [
                np.zeros(w.shape, np.float32) if g is None else tf.convert_to_tensor(g).numpy()
                for w, g in zip(weights, found, strict=True)
            ]


def _products(count, writing, reading) -> np.ndarray:
    """Norm of the weights that write each unit times the norm of those that read it.

    A unit that either of them leaves at zero does nothing.
    """
    kernel = reading.value.numpy().astype(np.float64)
    outgoing = np.sqrt((kernel.reshape(count, -1) ** 2).sum(1))
    incoming = np.zeros(count)
    for weight in writing:
        value = weight.value.numpy().astype(np.float64)
        # A bias may have two axes too, of heads and their units.
        value = value.reshape(value.shape[0] if weight.kind == KERNEL else 1, count, -1)
        incoming += (value**2).sum((0, 2))
    return outgoing * np.sqrt(incoming) if writing else outgoing


def most(scores: np.ndarray, number: int) -> np.ndarray:
    """Return the increasing indices of the `number` largest scores; of equal ones the first."""
    return np.sort(np.argsort(-np.asarray(scores), kind="stable")[:number])


# --- structured OBS ------------------------------------------------------------------------------


def reconstructed(
    model: Model, layers: Iterable[Layer], counts: list[tuple[int, int]], features: list
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Choose inputs of output projections to remove, and correct the weights of the others.

    Args:
        model: the model.
        layers: the layers whose kernels are output projections.
        counts: for each the number of units (neurons or heads), and how many to keep.
        features: list of inputs of the model.

    Returns:
        For each layer the increasing numbers of the units that are kept, and the new kernel as a
        matrix [inputs, outputs].
    """
    kernels = {id(w.layer): w for w in all_weights(model) if w.kind == KERNEL}
    weights = [kernels[id(layer)] for layer in layers]
    grams = input_grams(model, weights, features)
    return [
        remove_columns(w.matrix(w.value).numpy(), grams[w], w.matrix_shape[0] // count, keep)
        for w, (count, keep) in zip(weights, counts, strict=True)
    ]


def remove_columns(
    matrix: np.ndarray, gram: np.ndarray, size: int, keep: int, damping: float = DAMPING
) -> tuple[np.ndarray, np.ndarray]:
    """Remove groups of inputs of a matrix such that its product with some inputs changes least.

    Args:
        matrix: float array [inputs, outputs], W.
        gram: float array [inputs, inputs], XᵀX.
        size: number of inputs in a group: 1 for neurons, the head size for heads.
        keep: number of groups to keep.
        damping: number above 0. Default: 0.01.

    Returns:
        The increasing numbers of the groups that are kept, and Ŵ [keep · size, outputs].
    """
    removed = removal_sequence(matrix, gram, size, keep, damping)
    kept = np.setdiff1d(np.arange(len(matrix) // size), removed)
    return kept, best_weights(matrix, gram, size, kept, damping)


def removal_sequence(
    matrix: np.ndarray, gram: np.ndarray, size: int, keep: int, damping: float = DAMPING
) -> list[int]:
    """Return the groups of inputs of `remove_columns` in the order of their removal.

    One after the other is removed, the one whose removal adds the least to ‖XW - XŴ‖² when the
    remaining weights are the best: with H = XᵀX and the group S, tr(W_Sᵀ (H⁻¹_SS)⁻¹ W_S).

    Reference:
        Kurtic, Frantar & Alistarh 2023, "ZipLM: Inference-Aware Structured Pruning of Language
        Models".
    """
    w, inverse = np.array(matrix, np.float64), np.linalg.inv(damped(gram, damping))
    count, order = len(w) // size, []
    for _ in range(count - keep):
        cost = _costs(w, inverse, size)
        cost[order] = np.inf
        chosen = int(np.argmin(cost))
        order.append(chosen)
        rows = slice(chosen * size, (chosen + 1) * size)
        columns = inverse[:, rows] @ np.linalg.inv(inverse[rows, rows])
        w -= columns @ w[rows]
        inverse -= columns @ inverse[rows]
        # Rounding must not leave anything of what is gone; ones keep its blocks invertible.
        w[rows] = 0
        inverse[rows], inverse[:, rows] = 0, 0
        inverse[rows, rows] = np.eye(size)
    return order


def best_weights(
    matrix: np.ndarray, gram: np.ndarray, size: int, kept: np.ndarray, damping: float = DAMPING
) -> np.ndarray:
    """Return the weights of the groups that are kept with the least ‖XW - XŴ‖², in float32."""
    if len(kept) * size == len(matrix):
        return np.asarray(matrix, np.float32)
    h = damped(gram, damping)
    index = (np.asarray(kept)[:, None] * size + np.arange(size)).reshape(-1)
    best = np.linalg.solve(h[np.ix_(index, index)], h[index] @ np.asarray(matrix, np.float64))
    return best.astype(np.float32)


def _costs(w, inverse, size):
    if size == 1:
        return (w**2).sum(1) / np.diag(inverse)
    count = len(w) // size
    blocks = inverse.reshape(count, size, count, size)[np.arange(count), :, np.arange(count)]
    rows = w.reshape(count, size, -1)
    return np.einsum("gio,gio->g", rows, np.linalg.solve(blocks, rows))


def output_layers(blocks: Iterable[Block], part: str) -> list[Layer]:
    """Return the output projections of a part of all blocks, "heads" or "feed_forward"."""
    return [b.attention.output if part == "heads" else b.feed_forward.output for b in blocks]
