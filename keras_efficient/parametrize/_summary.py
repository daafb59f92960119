"""A table of a model's weights, their transforms and what they cost to store."""

import math
from dataclasses import dataclass

import numpy as np

from keras_efficient import flavor as flavors
from keras_efficient.flavor import Model
from keras_efficient.parametrize._checks import check_model
from keras_efficient.parametrize._parametrized_layer import parametrized_layers, transform_chain
from keras_efficient.parametrize._weights import OTHER, all_weights


@dataclass(frozen=True)
class WeightSummary:
    """One weight in a `Summary`.

    Attributes:
        path: path of the weight.
        shape: shape of the weight.
        transforms: descriptions of its transforms, in order.
        trainable: number of trainable parameters, of the weight and its transforms.
        sparsity: fraction of the transformed values that are exactly zero; 0.0 for untransformed
            biases and the like.
        bits: bits per element in an export that packs it.
        bytes: bytes for all elements at `bits` each, and for scales, centroids and the like.
    """

    path: str
    shape: tuple[int, ...]
    transforms: tuple[str, ...]
    trainable: int
    sparsity: float
    bits: int
    bytes: int


@dataclass(frozen=True)
class Summary:
    """Result of `summary`; prints as a table.

    Attributes:
        weights: tuple of `WeightSummary`, in the order of the model.
        trainable: number of trainable parameters of the model.
        parameters: number of parameters without those of transforms.
        others: dict of a layer's path to a description of its call wrappers, such as adapters and
            the rounding of inputs.
        bytes: bytes of all weights.
        sparsity: fraction of zeros among the elements of all weights.
    """

    weights: tuple[WeightSummary, ...]
    trainable: int
    parameters: int
    others: dict[str, str]

    @property
    def bytes(self) -> int:
        """Bytes of all weights."""
        return sum(weight.bytes for weight in self.weights)

    @property
    def sparsity(self) -> float:
        """Fraction of zeros among the elements of all weights."""
        sizes = [math.prod(w.shape) for w in self.weights]
        zeros = sum(w.sparsity * size for w, size in zip(self.weights, sizes, strict=True))
        return zeros / max(1, sum(sizes))

    def __str__(self):
        head = ("weight", "shape", "transforms", "trainable", "sparsity", "bits", "bytes")
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
        lines += [f"{path}: {text}" for path, text in self.others.items()]
        return "\n".join(lines)


def summary(model: Model) -> Summary:
    """Summarize a model's weights: their transforms, sparsity, and size when packed.

    Args:
        model: a built Keras 3 or tf_keras model, with transforms or without.

    Returns:
        A `Summary`, to print as a table.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: the model is not built.

    Examples:
        >>> print(ke.summary(model))  # doctest: +ELLIPSIS
        weight ...

    Reference:
        Like `keras.Model.summary`, but one row per weight.
    """
    check_model(model, "ke.summary", changes=False)
    flavor = flavors.of(model)
    training = {id(flavor.value(v)) for v in model.trainable_variables}
    rows, parameters = [], 0
    for weight in all_weights(model):
        chain = transform_chain(weight)
        transforms = chain.transforms if chain is not None else []
        value = weight.value if chain is None else chain.value()
        variables = [weight.value]
        variables += [flavor.value(v) for t in transforms for v in vars(t).get("variables", ())]
        bits = min([t.bits for t in transforms if t.bits] or [8 * weight.value.dtype.size])
        # Untransformed biases start as zeros, which is not sparsity.
        counted = weight.kind != OTHER or transforms
        zeros = 0.0 if not counted else 1 - np.count_nonzero(value.numpy()) / max(1, weight.size)
        parameters += weight.size
        rows.append(
            WeightSummary(
                weight.path,
                weight.shape,
                tuple(t.describe() for t in transforms),
                sum(v.shape.num_elements() or 0 for v in variables if id(v) in training),
                float(zeros),
                bits,
                math.ceil(weight.size * bits / 8) + sum(t.extra_bytes for t in transforms),
            )
        )
    others = {}
    for parametrized in parametrized_layers(model):
        shown = [w.describe() for w in parametrized.call_wrappers if not w.exact]
        if shown:
            others[parametrized.path] = ", ".join(shown)
    trainable = sum(v.shape.num_elements() or 0 for v in model.trainable_variables)
    return Summary(tuple(rows), trainable, parameters, others)
