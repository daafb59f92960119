"""Prune so that the outputs of layers change least: the "optimal brain surgeon", by layer."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient.compress.observing import batches_of, products
from keras_efficient.compress.quantizing import for_a_while
from keras_efficient.parametrize.attaching import chain_of
from keras_efficient.parametrize.weights import KERNEL

#: Inputs whose masks are chosen together; corrections reach inputs beyond them block by block.
BLOCK = 128


@dataclass(frozen=True)
class Reconstruction:
    """Prune at once, and correct the weights that stay for those that go.

    Of each kernel W with inputs X on some data, the masks M and new weights Ŵ are chosen such that
    ‖XW - X(M ⊙ Ŵ)‖² is small: inputs are taken in turn, a number is pruned where
    w² / [H⁻¹]ᵢᵢ is least (H = XᵀX), and what its output loses is made up for by the inputs that
    come after. Magnitudes know neither how large inputs are nor which of them replace each other,
    so this leaves far less to be trained back. Kernels of convolutions and embeddings go by
    magnitude.

    Args:
        data: typical inputs: one batch as `fit` yields it (targets are passed over), or a finite
            iterable of batches. A few hundred examples do. Each layer's XᵀX is kept in memory:
            4 · inputs² bytes.
        damping: float > 0: so many times its mean diagonal is added to H's. Default 0.01.

    Raises:
        ValueError: `damping` is not above 0.

    Example:
        >>> print(ke.prune(model, 0.5, criterion=ke.compress.Reconstruction(batch)))
        prune: ..., at once

    Reference:
        Frantar & Alistarh 2023, "SparseGPT: Massive Language Models Can Be Accurately Pruned in
        One-Shot"; Hassibi & Stork 1993, "Second Order Derivatives for Network Pruning".
    """

    data: Any = field(repr=False)
    damping: float = 0.01

    def __post_init__(self):
        if not self.damping > 0:
            raise ValueError(f"`damping` must be above 0. Received: {self.damping!r}.")

    def check(self, weights, pattern, scope, begin_step, end_step, schedule):
        """Refuse what cannot be pruned at once by single numbers, before anything is changed."""
        odds = {
            f"pattern={pattern.text!r}": pattern.block != (1, 1),
            f"scope={scope!r}": scope == "global",
            f"begin_step={begin_step!r} and end_step={end_step!r}": begin_step or end_step,
            f"schedule={schedule!r}": not isinstance(schedule, str),
        }
        at_odds = [what for what, holds in odds.items() if holds]
        if at_odds:
            raise ValueError(
                "A Reconstruction prunes each weight at once, by single numbers. Received: it with "
                f"{' and '.join(at_odds)}. Leave that out; for growing sparsity prune, train, "
                "ke.merge and prune again."
            )
        for weight in weights:
            if chain_of(weight) is not None:
                raise ValueError(
                    "A Reconstruction changes the numbers of a weight. Received: "
                    f"{weight.path!r}, which is seen through transforms. Prune first, or fold them "
                    "with ke.merge(model)."
                )

    def apply(self, model, weights, targets, pattern):
        """Let the weights have their targets' zeros; nothing is changed if anything fails."""
        batches = batches_of(self.data, "ke.prune")
        kernels = [weight for weight in weights if weight.kind == KERNEL]
        with for_a_while(model, kernels) as parts:
            found = products(model, parts, kernels, batches)
        new = []
        for weight in weights:
            if weight.path not in found:
                # (By magnitude, when the mask is attached.)
                continue
            matrix = weight.matrix(weight.value).numpy()
            gram = found.pop(weight.path)
            if not np.all(np.isfinite(gram)):
                raise ValueError(
                    "Inputs of layers must be finite to prune by them. Received: those of "
                    f"{weight.path!r} on `data`, which are not. Look at the batches."
                )
            pruned = reconstructed(matrix, gram, targets[weight.path], pattern, self.damping)
            new.append((weight, pruned))
        with model.distribute_strategy.scope():
            for weight, pruned in new:
                value = tf.constant(pruned, weight.value.dtype)
                weight.value.assign(weight.unmatrix(value))


def reconstructed(matrix, gram, sparsity, pattern, damping=0.01) -> np.ndarray:
    """A matrix with the numbers pruned that its product with some inputs misses least.

    Args:
        matrix: float array [inputs, outputs], W.
        gram: float array [inputs, inputs], XᵀX.
        sparsity: float in [0, 1), of an unstructured pattern: `round(size · (1 - sparsity))`
            numbers are kept.
        pattern: `Pattern`: unstructured or N:M.
        damping: float > 0.

    Returns:
        float32 array [inputs, outputs].
    """
    w, upper = _factored(matrix, gram, damping)
    inputs, outputs = w.shape
    zeros = inputs * outputs - round(inputs * outputs * (1 - sparsity))
    step = pattern.group or 1
    size = max(BLOCK // step, 1) * step
    done = 0
    for start in range(0, inputs, size):
        end = min(start + size, inputs)
        here = upper[start:end, start:end]
        block = w[start:end]
        kept = np.ones(block.shape, bool)
        if pattern.group is None:
            # (Shares of the blocks add up to the whole's.)
            count = round(zeros * end / inputs) - done
            least = np.argsort(_cost(block, here), axis=None, kind="stable")[:count]
            kept.reshape(-1)[least] = False
            done += count
        errors = np.empty_like(block)
        for i in range(end - start):
            if pattern.group is not None and i % step == 0:
                group = slice(i, i + step)
                order = np.argsort(_cost(block[group], here[group, group]), axis=0, kind="stable")
                np.put_along_axis(kept[group], order[: step - pattern.kept], False, axis=0)
            errors[i] = np.where(kept[i], 0, block[i]) / here[i, i]
            block[i:] -= here[i, i:, None] * errors[i]
        # What is pruned is zero to the last bit.
        block *= kept
        w[end:] -= upper[start:end, end:].T @ errors
    return w.astype(np.float32)


def _cost(block, upper):
    """What the product misses if a number goes and those after it make up for it."""
    return (block / np.diag(upper)[:, None]) ** 2


def _factored(matrix, gram, damping):
    """The matrix in float64 without unused inputs, and U of (XᵀX + λ)⁻¹ = UᵀU."""
    w, h = np.array(matrix, np.float64), np.array(gram, np.float64)
    unused = np.diag(h) == 0
    w[unused] = 0
    h[unused, unused] = 1
    h[np.diag_indices_from(h)] += damping * np.mean(np.diag(h))
    return w, np.linalg.cholesky(np.linalg.inv(h)).T
