"""A weight of few distinct values: each number is the nearest of some centroids."""

import math
from contextlib import contextmanager

import numpy as np
import tensorflow as tf

from keras_efficient.flavor._patched import patched
from keras_efficient.parametrize._transform import CLUSTER, Transform

#: From so many numbers on compiling a look-up is worth its while.
_LARGE = 1 << 16


class CodebookTransform(Transform):
    """See every number of a weight as its nearest centroid.

    The arithmetic is TF-MOT's `ClusteringAlgorithm` with gradients summed: the weight beneath gets
    the gradient straight through, a centroid the sum of its numbers' gradients, and each number
    belongs to the centroid that its value is nearest to now.

    Args:
        updater: the `Clusters` it belongs to.
        centroids: array of the values it starts with, one of them 0 if `sparse`.
        zeros: bool array of the weight's shape, what stays zero for good; or None.
        sparse: whether one centroid is exactly zero for good.
        trainable: whether the others train.

    Attributes:
        centroids: `tf.Variable` [clusters], trainable; without the zero if `sparse`.
        kept: uint8 `tf.Variable` of the weight's shape, 0 where it stays zero; or None.
    """

    name, place = "clusters", CLUSTER

    def __init__(self, updater, centroids, zeros=None, sparse=False, trainable=True):
        self.updater, self.sparse, self.trains, self.kept = updater, sparse, trainable, None
        self.number, self._initial, self._zeros = len(centroids), centroids, zeros

    def build(self):
        initial = self._initial[self._initial != 0] if self.sparse else self._initial
        shape, trains = initial.shape, self.trains
        self.centroids = self.variable("centroids", shape, initial, trainable=trains)
        if self._zeros is not None:
            kept = (~self._zeros).astype("uint8")
            self.kept = self.variable("kept", self.weight.shape, kept, dtype="uint8")
        del self._initial, self._zeros

    def values(self, dtype="float32"):
        """All centroids, the zero included."""
        centroids = tf.cast(tf.convert_to_tensor(self.centroids), dtype)
        return tf.concat([tf.zeros([1], dtype), centroids], 0) if self.sparse else centroids

    def __call__(self, value):
        compiled = self.updater.tracing and self.weight.size >= _LARGE
        seen = looked_up(value, self.values(value.dtype), compiled)
        return seen if self.kept is None else seen * tf.cast(self.kept, value.dtype)

    @property
    def bits(self):
        return max(1, math.ceil(math.log2(self.number)))

    @property
    def extra_bytes(self):
        return 4 * int(np.prod(self.centroids.shape))

    def describe(self):
        return f"{self.number} clusters{', zeros kept' if self.sparse else ''}"


class CodebookUpdater:
    """Keeps the look-ups of one `ke.cluster`: XLA compiles large ones where the model trains.

    (A bare SavedModel must run where there is no XLA.) On 11 million weights with 32 centroids,
    two CPU cores: 0.06 s for both passes, and 0.73 s without.
    """

    tracing = False

    def build(self, model):
        """(All variables are those of the look-ups.)"""

    def after_update(self):
        """(Nothing: what a number belongs to is found anew wherever the weight is read.)"""

    @contextmanager
    def training(self):
        with patched(self, tracing=True):
            yield


def nearest(value, centroids):
    """The index of the centroid that each number is nearest to; between two, the smaller's.

    The same as TF-MOT's `get_pulling_indices`, without a distance for each pair: a search among
    the middles between neighbours.

    Args:
        value: float tensor of any shape.
        centroids: float tensor [clusters], in any order.
    """
    order = tf.argsort(centroids, stable=True)
    ordered = tf.gather(centroids, order)
    # (Halves first: a sum could overflow in float16.)
    middles = ordered[:-1] / 2 + ordered[1:] / 2
    place = tf.searchsorted(middles, tf.reshape(value, [-1]))
    return tf.reshape(tf.gather(order, place), tf.shape(value))


@tf.custom_gradient
def _looked_up(value, centroids):
    indices = _nearest_compiled(value, centroids)

    def gradient(upstream):
        return upstream, _sums_compiled(upstream, indices, centroids)

    return _gathered_compiled(centroids, indices), gradient


@tf.custom_gradient
def _looked_up_plainly(value, centroids):
    indices = nearest(value, centroids)

    def gradient(upstream):
        return upstream, _sums(upstream, indices, centroids)

    return tf.gather(centroids, indices), gradient


def looked_up(value, centroids, compiled=False):
    """`value` with each number replaced by its nearest centroid; see `LookUp` for gradients."""
    return (_looked_up if compiled else _looked_up_plainly)(value, centroids)


def _sums(upstream, indices, centroids):
    flat = tf.reshape(upstream, [-1]), tf.reshape(indices, [-1])
    return tf.math.unsorted_segment_sum(*flat, centroids.shape[0])


_nearest_compiled = tf.function(nearest, jit_compile=True, autograph=False)
_gathered_compiled = tf.function(tf.gather, jit_compile=True, autograph=False)
_sums_compiled = tf.function(_sums, jit_compile=True, autograph=False)
