"""A table of a model's weights, their transforms and what they cost to store."""

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from keras_efficient import flavor as flavors
from keras_efficient.architecture._weights import OTHER, all_weights
from keras_efficient.flavor import Model
from keras_efficient.parametrize._checks import check_model
from keras_efficient.parametrize._parametrized_layer import parametrized_layers, transform_chain


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
        bits: bits per element in an export, or per element that is not zero.
        bytes: bytes for all elements at `bits` each, and for scales, centroids and the like. Where
            that is less: one bit for each element, and `bits` for those that are not zero.
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
    """Result of `summary`; prints as a table with a row per weight, `short()` with one per kind.

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

    def short(self) -> str:
        """Return a table with one row for all weights of the same transforms and bits."""
        groups: dict = {}
        for weight in self.weights:
            groups.setdefault((weight.transforms, weight.bits), []).append(weight)
        head = ("weights", "transforms", "trainable", "sparsity", "bits", "bytes")
        rows = []
        for (transforms, bits), weights in groups.items():
            part = Summary(tuple(weights), 0, 0, {})
            trainable = sum(weight.trainable for weight in weights)
            rows.append(
                (
                    f"{len(weights):,}",
                    " → ".join(transforms) or "–",
                    f"{trainable:,}" if trainable else "–",
                    f"{part.sparsity:.1%}" if part.sparsity else "–",
                    str(bits),
                    f"{part.bytes:,}",
                )
            )
        total = (f"{self.trainable:,}", f"{self.sparsity:.1%}", "", f"{self.bytes:,}")
        lines = _table([head, *rows, (f"{len(self.weights):,}", "all", *total)], left=(1,))
        others = Counter(self.others.values())
        return "\n".join([*lines, self._share(), *(f"{n} × {text}" for text, n in others.items())])

    def __repr__(self):
        # That of a dataclass would print every weight.
        return self.short()

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
        rows.append(
            ("all", "", "", f"{self.trainable:,}", f"{self.sparsity:.1%}", "", f"{self.bytes:,}")
        )
        lines = [*_table([head, *rows], left=(0, 1, 2)), self._share()]
        lines += [f"{path}: {text}" for path, text in self.others.items()]
        return "\n".join(lines)

    def _share(self):
        share = self.trainable / max(1, self.parameters)
        return (
            f"{self.trainable:,} of {self.parameters:,} parameters train ({share:.2%}, those of "
            "transforms counted among the first)"
        )


def _table(rows, left):
    """Return the lines of a table; the columns `left` are aligned to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row):
        cells = [
            c.ljust(w) if i in left else c.rjust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return [line(rows[0]), "  ".join("-" * w for w in widths), *map(line, rows[1:])]


def summary(model: Model) -> Summary:
    """Summarize a model's weights: their transforms, sparsity, and size when packed.

    Args:
        model: a built Keras 3 or tf_keras model, with transforms or without.

    Returns:
        A `Summary`, to print as a table; `summary(model).short()` has one row for all weights that
        are treated alike.

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
        kept = int(np.count_nonzero(value.numpy())) if counted else weight.size
        stored = min(weight.size * bits, weight.size + kept * bits)
        parameters += weight.size
        rows.append(
            WeightSummary(
                weight.path,
                weight.shape,
                tuple(t.describe() for t in transforms),
                sum(v.shape.num_elements() or 0 for v in variables if id(v) in training),
                1 - kept / max(1, weight.size),
                bits,
                math.ceil(stored / 8) + sum(t.extra_bytes for t in transforms),
            )
        )
    others = {}
    for parametrized in parametrized_layers(model):
        shown = [w.describe() for w in parametrized.call_wrappers if not w.exact]
        if shown:
            others[parametrized.path] = ", ".join(shown)
    trainable = sum(v.shape.num_elements() or 0 for v in model.trainable_variables)
    return Summary(tuple(rows), trainable, parameters, others)
