"""Sensitivity of the loss to pruning each weight, and sparsity targets by it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.architecture._weights import EMBEDDING, KERNEL
from keras_efficient.flavor import Model
from keras_efficient.parametrize._parametrized_layer import transform_chain
from keras_efficient.parametrize._plain_model import folded_weights
from keras_efficient.parametrize._select import select


@dataclass(frozen=True)
class Sensitivity:
    """The result of `sensitivity`; prints as a table.

    Attributes:
        final_sparsity: sparsity of all weights together, in (0, 1).
        loss: loss of the model without pruning.
        levels: tuple of the sparsities that were tried.
        increases: dict of a weight's path to the increases of the loss at `levels`.
        sizes: dict of a weight's path to its number of elements.
        targets: dict of a weight's path to its sparsity, for `ke.prune`.
        predicted: predicted increase of the loss, the sum of the increases at the targets.
    """

    final_sparsity: float
    loss: float
    levels: tuple[float, ...]
    increases: dict[str, tuple[float, ...]] = field(repr=False)
    sizes: dict[str, int] = field(repr=False)
    targets: dict[str, float] = field(repr=False)
    predicted: float

    def __str__(self):
        width = max(map(len, self.targets))
        head = " ".join(f"{level:>8.0%}" for level in self.levels)
        lines = [f"{'weight':<{width}} {'numbers':>10} {head}  target"]
        for path, target in self.targets.items():
            found = " ".join(f"{increase:>+8.4f}" for increase in self.increases[path])
            lines.append(f"{path:<{width}} {self.sizes[path]:>10,} {found}  {target:>6.1%}")
        lines.append(
            f"loss {self.loss:.4f}, and its increase with one weight pruned; targets for "
            f"{self.final_sparsity:.1%} of all, predicted {self.predicted:+.4f}"
        )
        return "\n".join(lines)


def sensitivity(
    model: Model,
    data: Any,
    final_sparsity: float,
    *,
    layers: Any = None,
    levels: Iterable[float] = (0.3, 0.5, 0.7, 0.8, 0.9),
    minimum: float = 0.0,
    maximum: float | None = None,
) -> Sensitivity:
    """Measure how much the loss grows when each weight alone is pruned, and choose targets by it.

    Let Δᵢ(s) be the increase of the loss if only weight i has sparsity s, interpolated linearly
    between the levels, as its lower convex hull. The targets minimise Σ Δᵢ(sᵢ) subject to
    Σ sizeᵢ · sᵢ = final_sparsity · Σ sizeᵢ. The model is evaluated once per weight and level. It is
    not changed.

    Args:
        model: a built and compiled Keras 3 or tf_keras model.
        data: data for the compiled loss: a batch `(features, labels)`, with or without sample
            weights, as its dataset yields it; or a finite `tf.data.Dataset` of a few batches.
        final_sparsity: sparsity of all selected weights together, in (0, 1).
        layers: selects the weights, kernels and embeddings; see `parametrize.select`. A list of
            paths is possible too. Default: None, all kernels except those of the heads
            and of the projection of an image's patches.
        levels: increasing sparsities in (0, 1) to try. Default: (0.3, 0.5, 0.7, 0.8, 0.9).
        minimum: the least sparsity of a weight. Default: 0.0.
        maximum: the greatest sparsity of a weight, at most the last of `levels`. Default: None, the
            last of `levels`.

    Returns:
        A `Sensitivity`, which `ke.prune` accepts as `final_sparsity`.

    Raises:
        ValueError: numbers are out of range or order, the model is not compiled, the loss is not
            finite, a weight is pruned already, or no weight is selected.

    Examples:
        >>> found = ke.compression.sensitivity(model, next(iter(dataset)), 0.8, levels=(0.5, 0.9))
        >>> print(ke.prune(model, found, end_step=100))  # doctest: +ELLIPSIS
        prune: ...

    Reference:
        Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks".
    """
    levels = tuple(levels)
    maximum = levels[-1] if maximum is None and levels else maximum
    _check_numbers(final_sparsity, levels, minimum, maximum)
    weights = _weights(model, layers)
    _check_unpruned(weights)
    batches = _batches(model, data)
    increases = {}
    with _folded(model, weights):
        dense = _loss(model, batches)
        for weight in weights:
            value = weight.value.numpy()
            order = np.argsort(np.abs(value), axis=None, kind="stable")
            try:
                found = []
                for level in levels:
                    pruned = value.reshape(-1).copy()
                    pruned[order[: round(level * weight.size)]] = 0
                    weight.value.assign(pruned.reshape(value.shape))
                    found.append(_loss(model, batches) - dense)
            finally:
                weight.value.assign(value)
            increases[weight.path] = tuple(found)
    sizes = {weight.path: weight.size for weight in weights}
    targets, predicted = _allocated(increases, sizes, levels, final_sparsity, minimum, maximum)
    return Sensitivity(final_sparsity, dense, levels, increases, sizes, targets, predicted)


def _check_numbers(final_sparsity, levels, minimum, maximum):
    if not levels or list(levels) != sorted(set(levels)) or not 0 < levels[0] < levels[-1] + 1 < 2:
        raise ValueError(
            "`levels` must be increasing sparsities above 0 and below 1. Received: "
            f"{levels!r}, for example (0.5, 0.7, 0.9)."
        )
    number = isinstance(final_sparsity, int | float) and not isinstance(final_sparsity, bool)
    if not number or not 0 < final_sparsity < 1:
        raise ValueError(
            "`final_sparsity` must be above 0 and below 1: the share of zeros at the end. "
            f"Received: {final_sparsity!r}."
        )
    if not 0 <= minimum <= final_sparsity <= maximum <= levels[-1]:
        raise ValueError(
            "Sparsities must satisfy 0 <= `minimum` <= `final_sparsity` <= `maximum` <= the last "
            f"of `levels`. Received: minimum={minimum!r}, final_sparsity={final_sparsity!r}, "
            f"maximum={maximum!r}, levels={levels!r}. Add a higher level to try."
        )


def _weights(model, layers):
    caller, kinds = "ke.compression.sensitivity", (KERNEL, EMBEDDING)
    if layers is None:
        return select(model, caller=caller, head=False)
    if isinstance(layers, list | tuple) and layers and all(isinstance(x, str) for x in layers):
        return [w for w in select(model, None, kinds, caller=caller) if w.path in layers]
    return select(model, layers, kinds, caller=caller)


def _check_unpruned(weights):
    for weight in weights:
        chain = transform_chain(weight)
        if chain is not None and any(t.name == "mask" for t in chain.transforms):
            raise ValueError(
                "The sensitivity is that of dense weights. Received: "
                f"{weight.path!r}, which is pruned. Measure it before ke.prune, or fold the masks "
                "with ke.merge(model)."
            )


def _batches(model, data):
    if not getattr(model, "compiled", getattr(model, "_is_compiled", False)):
        raise ValueError(
            "The sensitivity is that of the compiled loss. Received: "
            f"{model.name!r}, not compiled. Call model.compile(optimizer, loss) first."
        )
    if isinstance(data, tf.data.Dataset):
        return data
    if not isinstance(data, tuple | list) or len(data) not in (2, 3):
        raise ValueError(
            "`data` must be a batch (features, labels), with sample weights or not, or a "
            f"tf.data.Dataset of such. Received: {type(data).__name__}. Give next(iter(dataset))."
        )
    return tf.data.Dataset.from_tensors(tuple(data))


@contextmanager
def _folded(model, weights) -> Iterator[None]:
    """A context in which weights with transforms have the transformed values."""
    if all(transform_chain(weight) is None for weight in weights):
        yield
        return
    with folded_weights(model):
        # Functions that were traced before read the weights through their transforms.
        flavors.of(model).retrace(model)
        yield


def _loss(model, batches):
    loss = float(model.evaluate(batches, verbose=0, return_dict=True)["loss"])
    if not np.isfinite(loss):
        raise ValueError(
            f"The loss of `data` must be finite. Received: {loss}. Check the batch and the weights."
        )
    return loss


def _allocated(increases, sizes, levels, final_sparsity, minimum, maximum):
    """Return the targets with the least sum of increases, and that sum."""
    segments = []
    for path, found in increases.items():
        xs, ys = _hull(minimum, maximum, levels, found)
        for a, b, low, high in zip(xs[:-1], xs[1:], ys[:-1], ys[1:], strict=True):
            zeros = (b - a) * sizes[path]
            # Equal prices are sorted by sparsity, so that no weight is emptied before the others.
            segments.append(((high - low) / zeros, b, path, zeros))
    targets = dict.fromkeys(increases, float(minimum))
    missing = (final_sparsity - minimum) * sum(sizes.values())
    predicted = 0.0
    # Because the hulls are convex, taking the cheapest zeros first is optimal.
    for price, end, path, zeros in sorted(segments):
        taken = min(zeros, missing)
        if taken <= 0:
            break
        # The level itself, without rounding errors.
        targets[path] = float(end) if taken == zeros else targets[path] + taken / sizes[path]
        predicted += price * taken
        missing -= taken
    return targets, float(predicted)


def _hull(minimum, maximum, levels, found):
    """Return the corners of the lower convex hull of a weight's increases, from `minimum` on."""
    # Noise may make a sparser weight look better.
    heights = np.maximum.accumulate([0.0, *found])
    inside = [level for level in (0.0, *levels) if minimum < level < maximum]
    xs = np.array([minimum, *inside, *([maximum] if maximum > minimum else [])])
    ys = np.interp(xs, [0.0, *levels], heights)
    corners = [0]
    while corners[-1] < len(xs) - 1:
        here = corners[-1]
        slopes = (ys[here + 1 :] - ys[here]) / (xs[here + 1 :] - xs[here])
        # Of equal slopes the nearest corner is taken, which keeps all levels.
        corners.append(here + 1 + int(np.argmin(slopes)))
    return xs[corners], ys[corners]
