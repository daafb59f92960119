"""Initial centroids of a weight, by TF-MOT's initializers."""

import numpy as np
import tensorflow as tf

from keras_efficient.compression._tf_mot import tf_mot

INITIALIZATIONS = {
    "kmeans++": "KMEANS_PLUS_PLUS",
    "linear": "LINEAR",
    "density": "DENSITY_BASED",
}

#: Number of evenly spread numbers that seed k-means++, which takes time of numbers x clusters.
_SAMPLE = 50_000


def initial_centroids(
    value: np.ndarray, clusters: int, initialization: str, sparse: bool
) -> np.ndarray:
    """Return the initial centroids of a weight in ascending order.

    Args:
        value: float array, the weight.
        clusters: number of centroids; the weight has at least as many distinct values.
        initialization: a key of `INITIALIZATIONS`. The seeds of "kmeans++" are improved by Lloyd's
            iterations, which TF-MOT omits: a centroid becomes the mean of its numbers, until none
            changes.
        sparse: whether one centroid is 0 and the others are for the non-zero numbers.

    Returns:
        float32 array [clusters] of distinct numbers.
    """
    method = tf_mot("clustering.keras.cluster_config").CentroidInitialization
    factory = tf_mot("clustering.keras.clustering_centroids").CentroidsInitializerFactory
    flat = np.asarray(value, "float32").ravel()
    numbers = flat[flat != 0] if sparse else flat
    if initialization == "kmeans++" and len(numbers) > _SAMPLE:
        # The extremes are included, because the largest weights matter most.
        ends = [numbers.min(), numbers.max()]
        numbers = np.concatenate([numbers[:: -(-len(numbers) // _SAMPLE)], ends])
    make = factory.get_centroid_initializer(method[INITIALIZATIONS[initialization]])
    made = make(tf.constant(numbers), clusters, preserve_sparsity=sparse).get_cluster_centroids()
    found = np.unique(np.asarray(made, "float32"))
    if initialization == "kmeans++":
        found = _lloyd(np.sort(flat), _filled(found, numbers, clusters, sparse), sparse)
    return _filled(found, flat, clusters, sparse)


def _filled(centroids, values, clusters, sparse):
    """Return `clusters` distinct centroids; seeds may be equal, or clusters may have merged."""
    centroids = np.unique(np.append(centroids, 0.0) if sparse else centroids).astype("float32")
    if len(centroids) < clusters:
        others = np.setdiff1d(values, centroids)
        spread = np.linspace(0, len(others) - 1, clusters - len(centroids)).round().astype(int)
        centroids = np.union1d(centroids, others[spread])
    if len(centroids) > clusters:
        # TF-MOT may return one too many where all numbers have the same sign.
        dropped = np.flatnonzero(centroids)[np.argsort(np.abs(centroids[centroids != 0]))]
        centroids = np.delete(centroids, dropped[: len(centroids) - clusters])
    return centroids


def _lloyd(ordered, centroids, sparse, rounds=100):
    """Run Lloyd's iterations on sorted numbers; with `sparse`, the zero does not move."""
    sums = np.concatenate([[0.0], np.cumsum(ordered, dtype="float64")])
    centroids = centroids.astype("float64")
    for _ in range(rounds):
        middles = (centroids[1:] + centroids[:-1]) / 2
        ends = np.concatenate([[0], np.searchsorted(ordered, middles), [len(ordered)]])
        numbers = np.diff(ends)
        means = np.where(numbers, np.diff(sums[ends]) / np.maximum(numbers, 1), centroids)
        moved = np.where(sparse & (centroids == 0), 0.0, means)
        if np.array_equal(moved, centroids):
            break
        centroids = np.sort(moved)
    return centroids.astype("float32")
