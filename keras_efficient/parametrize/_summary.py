"""What each weight of a model is seen through, and what it costs to store."""

import math
from dataclasses import dataclass

import numpy as np

from keras_efficient import flavor as flavors
from keras_efficient.parametrize._attach import transform_chain
from keras_efficient.parametrize._parametrized_layer import parametrized_layers
from keras_efficient.parametrize._weights import OTHER, all_weights, check_built


@dataclass(frozen=True)
class WeightSummary:
    """One weight, as seen.

    Attributes:
        path: str.
        shape: tuple of ints.
        transforms: tuple of str.
        trainable: int, parameters that train: the weight's own and its transforms'.
        sparsity: float, share of exact zeros among the values seen.
        bits: int, bits per number as stored by an export that packs it.
        bytes: int, `bits` times the size, and what comes with it (scales, centroids), dense.
    """

    path: str
    shape: tuple
    transforms: tuple
    trainable: int
    sparsity: float
    bits: int
    bytes: int


@dataclass(frozen=True)
class Summary:
    """What `summary` found; prints as a table.

    Attributes:
        weights: tuple of `WeightSummary`, in the model's order.
        trainable: int, parameters that a training step moves.
        parameters: int, of the model without its transforms.
        others: dict of the layer's path to what else it computes (adapters, ranges).
    """

    weights: tuple
    trainable: int
    parameters: int
    others: dict

    @property
    def bytes(self) -> int:
        return sum(weight.bytes for weight in self.weights)

    @property
    def sparsity(self) -> float:
        """Zeros among all weights."""
        sizes = [math.prod(w.shape) for w in self.weights]
        zeros = sum(w.sparsity * size for w, size in zip(self.weights, sizes, strict=True))
        return zeros / max(1, sum(sizes))

    def __str__(self):
        head = ("weight", "shape", "seen through", "trainable", "sparsity", "bits", "bytes")
        rows = [
            (
                w.path,
                "×".join(map(str, w.shape)) or "scalar",
                " → ".join(w.transforms) or "–",
                f"{w.trainable:,}" if w.trainable else "–",
                f"{w.sparsity:.1%}" if w.sparsity else "–",
                str(w.bits),
                f"{w.bytes:,}",
            )
            for w in self.weights
        ]
        share = self.trainable / max(1, self.parameters)
        rows.append(
            ("all", "", "", f"{self.trainable:,}", f"{self.sparsity:.1%}", "", f"{self.bytes:,}")
        )
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

        def line(row):
            cells = [
                c.ljust(w) if i < 3 else c.rjust(w)
                for i, (c, w) in enumerate(zip(row, widths, strict=True))
            ]
            return "  ".join(cells).rstrip()

        lines = [line(head), "  ".join("-" * w for w in widths), *map(line, rows)]
        lines.append(
            f"{self.trainable:,} of {self.parameters:,} parameters train ({share:.2%}, those of "
            "transforms counted among the first)"
        )
        lines += [f"{path}: {what}" for path, what in self.others.items()]
        return "\n".join(lines)


def summary(model) -> Summary:
    """Say for every weight what it is seen through, what trains, its sparsity, bits and bytes.

    Args:
        model: a built Keras 3 or tf_keras model, with transforms or without.

    Returns:
        A `Summary`: `print(ke.summary(model))` shows a table; `.weights` holds its rows.

    Raises:
        ValueError: the model is not built.

    Example:
        >>> print(ke.summary(model))  # doctest: +ELLIPSIS
        weight ...
    """
    check_built(model, "ke.summary")
    flavor = flavors.of(model)
    training = {id(flavor.value(v)) for v in model.trainable_variables}
    rows, parameters = [], 0
    for weight in all_weights(model):
        chain = transform_chain(weight)
        transforms = chain.transforms if chain is not None else []
        value = weight.value if chain is None else chain.value()
        own = [weight.value]
        own += [flavor.value(v) for t in transforms for v in vars(t).get("variables", ())]
        bits = min([t.bits for t in transforms if t.bits] or [8 * weight.value.dtype.size])
        # (Biases start as zeros, which says nothing.)
        told = weight.kind != OTHER or transforms
        zeros = 0.0 if not told else 1 - np.count_nonzero(value.numpy()) / max(1, weight.size)
        parameters += weight.size
        rows.append(
            WeightSummary(
                weight.path,
                weight.shape,
                tuple(t.describe() for t in transforms),
                sum(math.prod(v.shape) for v in own if id(v) in training),
                float(zeros),
                bits,
                math.ceil(weight.size * bits / 8) + sum(t.extra_bytes for t in transforms),
            )
        )
    others = {
        view.path: ", ".join(part.describe() for part in view.calls if not part.exact)
        for view in parametrized_layers(model)
        if not all(part.exact for part in view.calls)
    }
    trainable = sum(math.prod(v.shape) for v in model.trainable_variables)
    return Summary(tuple(rows), trainable, parameters, others)
