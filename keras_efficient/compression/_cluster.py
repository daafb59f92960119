"""Weight clustering in training."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_efficient.architecture._weights import EMBEDDING, KERNEL
from keras_efficient.compression._centroids import INITIALIZATIONS, initial_centroids
from keras_efficient.compression._codebook import CodebookTransform, CodebookUpdater
from keras_efficient.flavor import Model
from keras_efficient.parametrize._attach import attach
from keras_efficient.parametrize._parametrized_layer import transform_chain, transform_of
from keras_efficient.parametrize._select import select
from keras_efficient.parametrize._transform import QUANTIZE
from keras_efficient.training._transform_updates import update_transforms


@dataclass(frozen=True)
class ClusterReport:
    """The result of `cluster`; prints as one line.

    Attributes:
        weights: tuple of the paths of the clustered weights.
        clusters: number of distinct values of each weight.
        bits: bits of an index into the values.
        preserve_sparsity: whether one of the values is exactly zero.
        errors: dict of a weight's path to the initial root mean squared error of its values,
            relative to the root mean square of the weight.
    """

    weights: tuple[str, ...]
    clusters: int
    bits: int
    preserve_sparsity: bool
    errors: dict[str, float]

    def __str__(self):
        worst = max(self.errors.values())
        zeros = ", zeros stay" if self.preserve_sparsity else ""
        return (
            f"cluster: {len(self.weights)} weights, {self.clusters} values each ({self.bits} bits)"
            f"{zeros}; off by {worst:.1%} of a weight's size at most"
        )


def cluster(
    model: Model,
    clusters: int = 32,
    *,
    initialization: str = "kmeans++",
    preserve_sparsity: bool = False,
    layers: Any = None,
    trainable: bool = True,
) -> ClusterReport:
    """Restrict each selected weight to `clusters` trainable values.

    Every number w of a weight is replaced by its nearest centroid, c[argmin_k |w - c[k]|]. The
    gradients are TF-MOT's: dL/dc[k] is the sum over the numbers of cluster k, and w gets its own
    gradient straight through, so that it can move to another cluster. Takes effect at the next
    `fit`, whether called before or after `compile`, and needs no callback. `ke.merge(model)` leaves
    plain weights with these values, which a file compressor can store in few bits.

    Args:
        model: a built Keras 3 or tf_keras model of any kind.
        clusters: number of distinct values of each weight, at least 2 (3 with `preserve_sparsity`)
            and at most as many as the weight has. Default: 32.
        initialization: how the centroids are initialized: "kmeans++", TF-MOT's seeds followed by
            Lloyd's iterations; "linear", evenly from the smallest to the largest number; or
            "density", evenly in the quantiles of the distribution. Default: "kmeans++".
        preserve_sparsity: whether one value is exactly 0 and present zeros stay zero. Use it after
            `ke.prune`, merged or not. Default: False.
        layers: selects the weights, kernels and embeddings; see `parametrize.select`. Default:
            None, all kernels except those of the heads and of the projection of an image's patches.
        trainable: whether centroids train. Default: True.

    Returns:
        A `ClusterReport`.

    Raises:
        ValueError: an argument is out of range, a weight has fewer distinct values than `clusters`,
            a weight has a pruning mask and `preserve_sparsity` is False, no weight is selected, or
            a weight is clustered already.
        ImportError: TF-MOT is not installed.

    Examples:
        >>> print(ke.cluster(model, 4))  # doctest: +ELLIPSIS
        cluster: ...

    Reference:
        Han, Mao & Dally 2016, "Deep Compression"; Arthur & Vassilvitskii 2007 for k-means++. The
        algorithm is that of tensorflow-model-optimization's weight clustering.
    """
    _check(clusters, initialization, preserve_sparsity)
    kinds = (KERNEL,) if layers is None else (KERNEL, EMBEDDING)
    weights = select(
        model,
        layers,
        kinds,
        caller="ke.cluster",
        head=False,
        transform=CodebookTransform.name,
        trains=trainable,
    )
    updater, pairs, errors = CodebookUpdater(), [], {}
    for weight in weights:
        value, masked = _unquantized(weight), transform_of(weight, "mask") is not None
        _check_weight(weight, value, masked, clusters, preserve_sparsity)
        centroids = initial_centroids(value, clusters, initialization, preserve_sparsity)
        # With a pruning mask the zeros are the mask's, and may grow back.
        zeros = value == 0 if preserve_sparsity and not masked else None
        pairs.append(
            (weight, CodebookTransform(updater, centroids, zeros, preserve_sparsity, trainable))
        )
    attach(model, pairs)
    update_transforms(model)
    for weight, transform in pairs:
        before = _unquantized(weight, without=transform)
        error = np.mean((_unquantized(weight) - before) ** 2) / np.mean(before**2)
        errors[weight.path] = float(np.sqrt(error))
    paths = tuple(weight.path for weight in weights)
    return ClusterReport(paths, clusters, pairs[0][1].bits, preserve_sparsity, errors)


def _unquantized(weight, without=None):
    """Return a weight's value after its transforms except quantization and `without`."""
    chain = transform_chain(weight)
    if chain is None:
        return weight.value.numpy()
    transforms = [t for t in chain.transforms if t.place < QUANTIZE and t is not without]
    return chain.value(transforms).numpy()


def _check(clusters, initialization, preserve_sparsity):
    least = 3 if preserve_sparsity else 2
    if not isinstance(clusters, int) or isinstance(clusters, bool) or clusters < least:
        raise ValueError(
            f"`clusters` must be an int of at least {least}"
            f"{' (one is the zero)' if preserve_sparsity else ''}. Received: {clusters!r}."
        )
    if initialization not in INITIALIZATIONS:
        raise ValueError(
            f"`initialization` must be one of {sorted(INITIALIZATIONS)}. Received: "
            f"{initialization!r}."
        )


def _check_weight(weight, value, masked, clusters, preserve_sparsity):
    if masked and not preserve_sparsity:
        raise ValueError(
            "The zeros of a pruned weight would be one value more than `clusters`. Received: "
            f"preserve_sparsity=False for {weight.path!r}, which has a pruning mask. Give "
            "preserve_sparsity=True."
        )
    distinct = set(np.unique(value))
    if preserve_sparsity:
        distinct.add(np.float32(0))
    if len(distinct) < clusters:
        raise ValueError(
            "A weight must have at least as many distinct values as it is to have clusters. "
            f"Received: clusters={clusters} for {weight.path!r}, which has {len(distinct)} of "
            f"them among {weight.size} numbers. Lower `clusters`, or leave it out with `layers=`."
        )
