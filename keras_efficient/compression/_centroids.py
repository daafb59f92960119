"""Where the centroids of a weight start: TF-MOT's initialisers."""

import numpy as np
import tensorflow as tf

from keras_efficient.compression._tf_mot import tf_mot

INITIALIZATIONS = {
    "kmeans++": "KMEANS_PLUS_PLUS",
    "linear": "LINEAR",
    "density": "DENSITY_BASED",
}

#: The seeding of k-means++ looks at so many numbers at most, evenly spread: it takes time of
#: numbers x clusters.
_SAMPLE = 50_000


def initial_centroids(value, clusters, initialization, sparse):
    """The centroids that a weight starts with, ascending.

    Args:
        value: float array, the weight.
        clusters: int, how many; the weight has at least as many distinct values.
        initialization: a key of `INITIALIZATIONS`. After the seeds of "kmeans++" come Lloyd's
            iterations, which TF-MOT leaves out: a centroid becomes the mean of its numbers, until
            none moves.
        sparse: whether one of them is 0, and the others are for the other numbers.

    Returns:
        float32 array [clusters], without equal ones.
    """
    method = tf_mot("clustering.keras.cluster_config").CentroidInitialization
    factory = tf_mot("clustering.keras.clustering_centroids").CentroidsInitializerFactory
    flat = np.asarray(value, "float32").ravel()
    seen = flat[flat != 0] if sparse else flat
    if initialization == "kmeans++" and len(seen) > _SAMPLE:
        # (With its ends: the largest weights matter most.)
        ends = [seen.min(), seen.max()]
        seen = np.concatenate([seen[:: -(-len(seen) // _SAMPLE)], ends])
    make = factory.get_centroid_initializer(method[INITIALIZATIONS[initialization]])
    made = make(tf.constant(seen), clusters, preserve_sparsity=sparse).get_cluster_centroids()
    found = np.unique(np.asarray(made, "float32"))
    if initialization == "kmeans++":
        found = _settled(np.sort(flat), _filled(found, seen, clusters, sparse), sparse)
    return _filled(found, flat, clusters, sparse)


def _filled(centroids, values, clusters, sparse):
    """Distinct centroids, as many as asked for: seeds may be equal, or empty clusters meet."""
    centroids = np.unique(np.append(centroids, 0.0) if sparse else centroids).astype("float32")
    if len(centroids) < clusters:
        others = np.setdiff1d(values, centroids)
        spread = np.linspace(0, len(others) - 1, clusters - len(centroids)).round().astype(int)
        centroids = np.union1d(centroids, others[spread])
    if len(centroids) > clusters:
        # (TF-MOT counts the zero; a value of a side that has none of its own may be one too many.)
        dropped = np.flatnonzero(centroids)[np.argsort(np.abs(centroids[centroids != 0]))]
        centroids = np.delete(centroids, dropped[: len(centroids) - clusters])
    return centroids


def _settled(ordered, centroids, sparse, rounds=100):
    """Lloyd's iterations on sorted numbers; the zero stays where it is."""
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
