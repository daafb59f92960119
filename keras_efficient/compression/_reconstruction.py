"""Prune or round so that the outputs of layers change least: "optimal brain surgery", by layer."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient.compression import _range_estimation as range_estimation
from keras_efficient.compression._integers import largest, to_integers
from keras_efficient.compression._observers import batches_of, products
from keras_efficient.compression._quantize_aware import for_a_while
from keras_efficient.parametrize._parametrized_layer import transform_chain
from keras_efficient.parametrize._weights import KERNEL

#: Inputs whose masks are chosen together; corrections reach inputs beyond them block by block.
BLOCK = 128


@dataclass(frozen=True)
class Reconstruction:
    """Prune at once, and correct the weights that stay for those that go.

    Of each kernel W with inputs X on some data, the masks M and new weights Ŵ are chosen such that
    ‖XW - X(M ⊙ Ŵ)‖² is small: inputs are taken in turn, a number is pruned where
    w² / [H⁻¹]ᵢᵢ is least (H = XᵀX), and what its output loses is made up for by the inputs that
    come after. Magnitudes know neither how large inputs are nor which of them replace each other,
    so this leaves far less to be trained back. Kernels of convolutions, embeddings and what the
    data does not reach go by magnitude; the report names them.

    Args:
        data: typical inputs: one batch as `fit` yields it (targets are passed over), or a finite
            iterable of batches. A few hundred examples do. Memory: XᵀX of every kernel (8 · inputs²
            bytes) and a copy of the kernels.
        damping: float > 0: so many times its mean diagonal is added to H's. Default 0.01.

    Raises:
        ValueError: `damping` is no finite number above 0.

    Example:
        >>> criterion = ke.compression.Reconstruction(dataset)
        >>> print(ke.prune(model, 0.5, criterion=criterion))  # doctest: +ELLIPSIS
        prune: ...

    Reference:
        Frantar & Alistarh 2023, "SparseGPT: Massive Language Models Can Be Accurately Pruned in
        One-Shot"; Hassibi & Stork 1993, "Second Order Derivatives for Network Pruning".
    """

    data: Any = field(repr=False)
    damping: float = 0.01

    def __post_init__(self):
        number = isinstance(self.damping, int | float) and not isinstance(self.damping, bool)
        if not number or not 0 < self.damping < math.inf:
            raise ValueError(f"`damping` must be above 0 and finite. Received: {self.damping!r}.")

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
        check_plain(weights, "A Reconstruction")

    def apply(self, model, weights, targets, pattern):
        """Let the weights have their targets' zeros; nothing is changed if anything fails.

        Returns:
            List of the weights that are left to be pruned by magnitude.
        """
        batches = batches_of(self.data, "ke.prune")
        kernels = [weight for weight in weights if weight.kind == KERNEL]
        with for_a_while(model, kernels) as parts:
            found = products(model, parts, kernels, batches)
        new = []
        for weight, gram in found.items():
            target, matrix = targets[weight.path], matrix_of(weight)
            try:
                pruned = prune_reconstructed(matrix, gram, target, pattern, self.damping)
            except np.linalg.LinAlgError as error:
                raise ValueError(
                    "XᵀX with its damping must be invertible. Received: the inputs of "
                    f"{weight.path!r} with damping={self.damping!r}. Raise it, or give more data."
                ) from error
            new.append((weight, pruned))
        assign(model, new)
        return [weight for weight in weights if weight not in found]


def check_plain(weights, what):
    """Refuse weights whose own numbers are not what is seen."""
    for weight in weights:
        if transform_chain(weight) is not None:
            raise ValueError(
                f"{what} changes the numbers of a weight. Received: {weight.path!r}, which is seen "
                "through transforms. Do this first, or fold them with ke.merge(model)."
            )


def matrix_of(weight):
    """A weight as it is seen, as a float32 array [inputs, outputs]."""
    chain = transform_chain(weight)
    value = weight.value if chain is None else chain.value()
    return weight.matrix(tf.cast(value, tf.float32)).numpy()


def assign(model, pairs):
    """Give weights new numbers: pairs of a `Weight` and a matrix."""
    with model.distribute_strategy.scope():
        for weight, matrix in pairs:
            weight.value.assign(weight.unmatrix(tf.constant(matrix, weight.value.dtype)))


def prune_reconstructed(matrix, gram, sparsity, pattern, damping=0.01) -> np.ndarray:
    """A matrix with the numbers pruned that its product with some inputs misses least.

    Args:
        matrix: float array [inputs, outputs], W.
        gram: float array [inputs, inputs], XᵀX.
        sparsity: float in [0, 1), of an unstructured pattern: `round(size · (1 - sparsity))`
            numbers are kept. What is zero stays so, as far as it goes with the pattern.
        pattern: `Pattern`: unstructured or N:M.
        damping: float > 0.

    Returns:
        float32 array [inputs, outputs].
    """
    inputs, outputs = np.shape(matrix)
    zeros = inputs * outputs - round(inputs * outputs * (1 - sparsity))
    step = pattern.group or 1
    size = max(BLOCK // step, 1) * step
    done = 0

    def begin(start, end, block, upper):
        nonlocal done
        kept = np.ones(block.shape, bool)
        if pattern.group is None:
            # (Shares of the blocks add up to the whole's.)
            count = round(zeros * end / inputs) - done
            least = np.argsort(_cost(block, upper), axis=None, kind="stable")[:count]
            kept.reshape(-1)[least] = False
            done += count

        def changed(i, row):
            if pattern.group is not None and i % step == 0:
                group = slice(i, i + step)
                order = np.argsort(_cost(block[group], upper[group, group]), axis=0, kind="stable")
                np.put_along_axis(kept[group], order[: step - pattern.kept], False, axis=0)
            return np.where(kept[i], row, 0)

        return changed

    return _swept(matrix, gram, size, damping, begin, np.asarray(matrix) == 0).astype(np.float32)


def quantize_gptq(matrix, gram, bits, group_size=None, damping=0.01) -> tuple:
    """Integers and scales of a matrix such that its product with some inputs misses little.

    Inputs are rounded in turn, and what their outputs lose is made up for by those that come after.
    Zeros stay zeros. Scales are those with the least square error of each channel, or of each group
    as it is when its turn comes.

    Args:
        matrix: float array [inputs, outputs], W.
        gram: float array [inputs, inputs], XᵀX.
        bits: 8 or 4.
        group_size: int that divides inputs, or None: one group of all.
        damping: float > 0.

    Returns:
        (int8 array [inputs, outputs], float32 scales [groups, outputs]).

    Reference:
        Frantar et al. 2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
        Transformers".
    """
    inputs, outputs = np.shape(matrix)
    size = group_size or inputs
    integers, scales = np.zeros((inputs, outputs), np.int8), []
    most = largest(bits)
    if group_size is None:
        scales.append(_scales(np.asarray(matrix, np.float32), bits))

    def begin(start, end, block, upper):
        def changed(i, row):
            if group_size is not None and i % size == 0:
                scales.append(_scales(block[i : i + size].astype(np.float32), bits))
            integers[start + i] = np.clip(np.rint(row / scales[-1]), -most, most)
            return integers[start + i] * scales[-1]

        return changed

    block = BLOCK if group_size is None else max(BLOCK // size, 1) * size
    _swept(matrix, gram, block, damping, begin, np.asarray(matrix) == 0)
    return integers, np.stack(scales)


def _scales(matrix, bits):
    clip = range_estimation.of_weight(matrix, bits, None)
    return to_integers(matrix, bits, clip=clip)[1][0]


def _swept(matrix, gram, size, damping, begin, zeros=None):
    """The matrix after its inputs were changed in turn, the rest making up for each.

    Args:
        size: int, the inputs of a block; what is lost reaches those beyond it at its end.
        begin: function of a block's first and last input, the block as it is (a view) and its part
            of U, which returns a function of an input's place in the block and its numbers that
            returns the changed ones.
        zeros: None or bool array like the matrix, where it stays zero until its turn.
    """
    if zeros is not None and not zeros.any():
        zeros = None
    w, upper = _factored(matrix, gram, damping)
    for start in range(0, len(w), size):
        end = min(start + size, len(w))
        here, block = upper[start:end, start:end], w[start:end]
        changed = begin(start, end, block, here)
        errors = np.empty_like(block)
        for i, row in enumerate(block):
            new = changed(i, row)
            errors[i] = (row - new) / here[i, i]
            block[i + 1 :] -= here[i, i + 1 :, None] * errors[i]
            block[i] = new
            if zeros is not None:
                block[i + 1 :][zeros[start + i + 1 : end]] = 0
        w[end:] -= upper[start:end, end:].T @ errors
        if zeros is not None:
            w[end:][zeros[end:]] = 0
    return w


def _cost(block, upper):
    """What the product misses if a number goes and those after it make up for it."""
    return (block / np.diag(upper)[:, None]) ** 2


def _factored(matrix, gram, damping):
    """The matrix in float64, and U of (XᵀX + λ)⁻¹ = UᵀU."""
    w, h = np.array(matrix, np.float64), np.array(gram, np.float64)
    # (Inputs that are always zero on the data are the cheapest, and are corrected by nothing.)
    h[np.diag_indices_from(h)] += damping * (np.mean(np.diag(h)) or 1.0)
    return w, np.linalg.cholesky(np.linalg.inv(h)).T
