"""Layer-wise reconstruction: prune or round weights with the least change of outputs."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient.architecture._weights import KERNEL, Weight
from keras_efficient.compression._integers import largest, to_integers
from keras_efficient.compression._observers import batches_of, input_grams
from keras_efficient.compression._range_estimation import weight_clip
from keras_efficient.compression._sparsity_patterns import Pattern
from keras_efficient.flavor import Model
from keras_efficient.parametrize._parametrized_layer import transform_chain

#: Number of inputs whose masks are chosen together, and after which later inputs are corrected.
BLOCK = 128


@dataclass(frozen=True)
class Reconstruction:
    """A criterion of `ke.prune` that prunes at once and corrects the remaining weights.

    For each kernel W with inputs X on some data, the mask M and new weights Ŵ are chosen such that
    ‖XW - X(M ⊙ Ŵ)‖² is small. Inputs are processed in order. With H = XᵀX, the numbers with the
    least w² / [H⁻¹]ᵢᵢ are pruned, and the weights of later inputs compensate for the error in the
    output. Unlike magnitudes, this takes into account how large inputs are and how they correlate,
    so much less accuracy has to be recovered by training. Embeddings, kernels of convolutions and
    kernels that the data does not reach are pruned by magnitude; the report names them.

    Args:
        data: typical inputs: one batch as `fit` yields it (targets are ignored), or a finite
            iterable of batches. A few hundred examples suffice. Memory: XᵀX of every kernel
            (8 · inputs² bytes) and a copy of the kernels.
        damping: number above 0; this times the mean diagonal of H is added to its diagonal.
            Default: 0.01.

    Raises:
        ValueError: `damping` is not a finite number above 0.

    Examples:
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

    def check(
        self,
        weights: list[Weight],
        pattern: Pattern,
        scope: str,
        begin_step: int,
        end_step: int | None,
        schedule: Any,
    ) -> None:
        """Raise a ValueError if the arguments of `prune` do not allow pruning at once."""
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

    def apply(
        self, model: Model, weights: list[Weight], targets: dict[str, float], pattern: Pattern
    ) -> list[Weight]:
        """Prune the weights to their targets; if anything fails, none of them is changed.

        Returns:
            List of the weights that remain to be pruned by magnitude.
        """
        batches = batches_of(self.data, "ke.prune")
        kernels = [weight for weight in weights if weight.kind == KERNEL]
        grams = input_grams(model, kernels, batches)
        new = []
        for weight, gram in grams.items():
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
        return [weight for weight in weights if weight not in grams]


def check_plain(weights: list[Weight], what: str) -> None:
    """Raise a ValueError if a weight has transforms."""
    for weight in weights:
        if transform_chain(weight) is not None:
            raise ValueError(
                f"{what} changes the numbers of a weight. Received: {weight.path!r}, which has "
                "transforms. Do this first, or fold them with ke.merge(model)."
            )


def matrix_of(weight: Weight) -> np.ndarray:
    """Return the weight's value after its transforms as a float32 array [inputs, outputs]."""
    chain = transform_chain(weight)
    value = weight.value if chain is None else chain.value()
    return weight.matrix(tf.cast(value, tf.float32)).numpy()


def assign(model: Model, pairs: list[tuple[Weight, np.ndarray]]) -> None:
    """Assign matrices [inputs, outputs] to weights."""
    with model.distribute_strategy.scope():
        for weight, matrix in pairs:
            weight.value.assign(weight.unmatrix(tf.constant(matrix, weight.value.dtype)))


def prune_reconstructed(
    matrix: np.ndarray,
    gram: np.ndarray,
    sparsity: float,
    pattern: Pattern,
    damping: float = 0.01,
) -> np.ndarray:
    """Prune a matrix such that its product with some inputs changes least (SparseGPT).

    Args:
        matrix: float array [inputs, outputs], W.
        gram: float array [inputs, inputs], XᵀX.
        sparsity: target in [0, 1) of an unstructured pattern: `round(size · (1 - sparsity))`
            numbers are kept. Zeros stay zeros as far as the pattern allows.
        pattern: unstructured or N:M.
        damping: number above 0. Default: 0.01.

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
            # Rounded cumulatively, so that the counts of all blocks add up to `zeros`.
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


def quantize_gptq(
    matrix: np.ndarray,
    gram: np.ndarray,
    bits: int,
    group_size: int | None = None,
    damping: float = 0.01,
) -> tuple[np.ndarray, np.ndarray]:
    """Round a matrix such that its product with some inputs changes little (GPTQ).

    Inputs are rounded in order, and later inputs compensate for the error in the output. Zeros stay
    zeros. The scale of a channel is the one with the least squared error; that of a group is chosen
    when the group is reached.

    Args:
        matrix: float array [inputs, outputs], W.
        gram: float array [inputs, inputs], XᵀX.
        bits: 8, 7 or 4.
        group_size: int that divides inputs. Default: None, one group of all inputs.
        damping: number above 0. Default: 0.01.

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
    return to_integers(matrix, bits, clip=weight_clip(matrix, bits, None))[1][0]


def _swept(matrix, gram, size, damping, begin, zeros=None):
    """Change the rows of a matrix in order, and let later rows compensate for each error.

    Args:
        matrix: float array [inputs, outputs].
        gram: float array [inputs, inputs].
        size: number of rows in a block; rows after the block are corrected at its end.
        damping: number above 0.
        begin: function of a block's first and last row, the block (a view) and its part of U. It
            returns a function of a row's index in the block and the row, which returns the new row.
        zeros: bool array of the matrix's shape, or None: numbers that corrections keep at zero.
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
    """Return the output error from pruning each number, after compensation."""
    return (block / np.diag(upper)[:, None]) ** 2


def _factored(matrix, gram, damping):
    """Return the matrix in float64, and U of (XᵀX + λ)⁻¹ = UᵀU."""
    inverse = np.linalg.inv(damped(gram, damping))
    return np.array(matrix, np.float64), np.linalg.cholesky(inverse).T


def damped(gram: np.ndarray, damping: float) -> np.ndarray:
    """Return XᵀX in float64, with `damping` times its mean diagonal added to its diagonal.

    Inputs that are always zero on the data are then the cheapest to prune, and get no corrections.
    """
    h = np.array(gram, np.float64)
    h[np.diag_indices_from(h)] += damping * (np.mean(np.diag(h)) or 1.0)
    return h
