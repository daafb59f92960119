"""Let the weights of a model take few distinct values each, while it trains."""

from dataclasses import dataclass

import numpy as np

from keras_efficient.compression._centroids import INITIALIZATIONS, initial_centroids
from keras_efficient.compression._codebook import CodebookTransform, CodebookUpdater
from keras_efficient.parametrize._attach import attach
from keras_efficient.parametrize._parametrized_layer import transform_chain, transform_of
from keras_efficient.parametrize._select import select
from keras_efficient.parametrize._transform import QUANTIZE
from keras_efficient.parametrize._weights import EMBEDDING, KERNEL
from keras_efficient.training._transform_updates import update_transforms


@dataclass(frozen=True)
class ClusterReport:
    """What `cluster` set.

    Attributes:
        weights: tuple of the weights' paths.
        clusters: int, distinct values of each.
        bits: int, that a number's index takes.
        preserve_sparsity: bool.
        errors: dict of a weight's path to how far its values are from the weight it was, at first:
            the root of the mean square, as a share of the weight's own.
    """

    weights: tuple
    clusters: int
    bits: int
    preserve_sparsity: bool
    errors: dict

    def __str__(self):
        worst = max(self.errors.values())
        zeros = ", zeros stay" if self.preserve_sparsity else ""
        return (
            f"cluster: {len(self.weights)} weights, {self.clusters} values each ({self.bits} bits)"
            f"{zeros}; off by {worst:.1%} of a weight's size at most"
        )


def cluster(
    model,
    clusters=32,
    *,
    initialization="kmeans++",
    preserve_sparsity=False,
    layers=None,
    trainable=True,
) -> ClusterReport:
    """Let every chosen weight take only so many distinct values, and train which these are.

    A number w of a weight is seen as its nearest centroid, c[argmin_k |w - c[k]|]. Gradients are
    TF-MOT's: dL/dc[k] is the sum over the numbers of cluster k, and w gets its own straight
    through, so that it can move to another cluster. Acts from the next `fit` on, before or after
    `compile`, without a callback. `ke.merge(model)` leaves plain weights of those values; a file
    compressor, or an export that stores indices, then makes them small.

    Args:
        model: a built Keras 3 or tf_keras model of any kind.
        clusters: int >= 2, distinct values of each weight; at most those it has. Default 32.
        initialization: where centroids start: "kmeans++" (default: TF-MOT's seeds, then Lloyd's
            iterations), "linear" (evenly from the smallest to the largest number) or "density"
            (evenly in the distribution's quantiles).
        preserve_sparsity: bool. True: one value is exactly 0 for good, and what is zero now stays
            so: give it after `ke.prune`, merged or not. Default False.
        layers: which weights; see `parametrize.select`: kernels and embeddings. Default: all
            kernels of Dense, EinsumDense and attention layers, without the model's last one.
        trainable: bool, whether centroids train. Default True.

    Returns:
        A `Clustered`, to print.

    Raises:
        ValueError: an argument out of range, more clusters than a weight has distinct values, a
            weight with a pruning mask without `preserve_sparsity`, no such weights, or weights
            that are clustered already.
        ImportError: TF-MOT is not installed.

    Example:
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
        value, masked = _seen(weight), transform_of(weight, "mask") is not None
        _check_weight(weight, value, masked, clusters, preserve_sparsity)
        centroids = initial_centroids(value, clusters, initialization, preserve_sparsity)
        # (A live mask says itself what is zero, and may let it grow back.)
        zeros = value == 0 if preserve_sparsity and not masked else None
        pairs.append(
            (weight, CodebookTransform(updater, centroids, zeros, preserve_sparsity, trainable))
        )
    attach(model, pairs)
    update_transforms(model)
    for weight, look_up in pairs:
        before = _seen(weight, without=look_up)
        off = np.mean((_seen(weight) - before) ** 2) / np.mean(before**2)
        errors[weight.path] = float(np.sqrt(off))
    paths = tuple(weight.path for weight in weights)
    return ClusterReport(paths, clusters, pairs[0][1].bits, preserve_sparsity, errors)


def _seen(weight, without=None):
    """A weight's value before it is rounded, as an array."""
    chain = transform_chain(weight)
    if chain is None:
        return weight.value.numpy()
    parts = [t for t in chain.transforms if t.place < QUANTIZE and t is not without]
    return chain.value(parts).numpy()


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
