"""Gradient sums over microbatches, held in variables."""

from typing import Any

import tensorflow as tf

from keras_efficient.optimizers._sparse_gradients import unique_rows
from keras_efficient.training import _replicas as replicas


class GradientAccumulator:
    """One sum per trainable variable, updated in place on each replica, zero between updates.

    The sums are variables and not loop variables of the `tf.while_loop`, because TensorFlow adds
    to a loop variable out of place: that takes twice the memory, and for an embedding three times
    and a copy of the whole table per microbatch.

    Gradients of embeddings stay sparse: `read` returns `IndexedSlices` with each touched row once.
    This also corrects Keras 3's Adam, which squares the gradients of a repeated row one by one
    instead of squaring their sum.

    Args:
        variables: the model's trainable `tf.Variable`s.
        static: make every gradient dense, for XLA, which does not support tensors with a
            data-dependent number of rows. Default: False.
        maxima: indices of variables of whose gradients the maximum is kept, as Keras 3 does for
            those with `overwrite_with_gradient`. Default: none.
    """

    def __init__(self, variables, *, static=False, maxima=()):
        self.variables, self.static, self.maxima = list(variables), static, maxima
        with tf.init_scope():
            self.sums = [_zeros(v.shape, v.dtype) for v in self.variables]
            #: Per variable, 1.0 for each row that a sparse gradient has touched.
            self.touched: list[Any] = [
                _zeros(v.shape[:1], tf.float32) if v.shape.rank and not static else None
                for v in self.variables
            ]
            # A constant would make TensorFlow keep a zero tensor of every shape in the graph.
            self.zero = _zeros([], tf.float32)
            self.dirty = replicas.variable(0)
        #: Indices of the variables with sparse gradients, known once `add` has been traced.
        self.sparse: set[int] = set()

    def fits(self, variables, static):
        """Return whether the sums are for these variables and this setting of XLA."""
        return static == self.static and list(map(id, variables)) == list(map(id, self.variables))

    def open(self, first=True):
        """Begin a batch; `first` is whether it is the first of its update.

        The sums are cleared only if an earlier step failed half-way.
        """
        dirty = replicas.local(self.dirty)

        def clear():
            self._fill(range(len(self.sums)))
            for touched in filter(lambda touched: touched is not None, self.touched):
                here = replicas.local(touched)
                here.assign(tf.zeros_like(here))
            return False

        tf.cond(tf.logical_and(first, dirty > 0), clear, lambda: False)
        dirty.assign(1)
        # What follows waits for this read, so that a failure leaves the sums marked as dirty.
        return dirty.read_value()

    def add(self, gradients):
        """Add one gradient per variable: a tensor, `IndexedSlices` or None."""
        for index, gradient in enumerate(gradients):
            total = replicas.local(self.sums[index])
            if index in self.maxima:
                if gradient is not None:
                    total.assign(tf.maximum(total, tf.cast(gradient, total.dtype)))
            elif isinstance(gradient, tf.IndexedSlices):
                values = tf.cast(gradient.values, total.dtype)
                replicas.add_rows(total, tf.IndexedSlices(values, gradient.indices))
                if not self.static:
                    self.sparse.add(index)
                    ones = tf.ones_like(gradient.indices, tf.float32)
                    replicas.local(self.touched[index]).scatter_update(
                        tf.IndexedSlices(ones, gradient.indices)
                    )
            elif gradient is not None:
                total.assign_add(tf.cast(gradient, total.dtype), read_value=False)

    def read(self):
        """Return the sums of this replica."""
        return [
            self._rows(index) if index in self.sparse else replicas.local(total).read_value()
            for index, total in enumerate(self.sums)
        ]

    def close(self):
        """End an update by setting all sums to zero."""
        done = self._fill(index for index in range(len(self.sums)) if index not in self.sparse)
        for index in self.sparse:
            zeros = self._rows(index, zero=True)
            total, touched = (replicas.local(v[index]) for v in (self.sums, self.touched))
            done.append(total.scatter_update(zeros))
            done.append(touched.assign(tf.zeros_like(touched)))
        # Only afterwards, so that a step that fails in between leaves the sums marked as dirty.
        with tf.control_dependencies([operation for operation in done if operation is not None]):
            replicas.local(self.dirty).assign(0)

    def _rows(self, index, zero=False):
        """Return the touched rows of a sum, or zeros in their place."""
        total = replicas.local(self.sums[index])
        rows = tf.where(replicas.local(self.touched[index]) > 0)[:, 0]
        if zero:
            shape = tf.concat([tf.shape(rows), total.shape[1:]], 0)
            values = tf.fill(shape, tf.zeros([], total.dtype))
        else:
            values = tf.gather(total, rows)
        return tf.IndexedSlices(values, rows, tf.shape(total, tf.int64))

    def _fill(self, indices):
        """Set the dense sums of these indices to zero; return the operations."""
        done = []
        for index in indices:
            total = replicas.local(self.sums[index])
            # Wait for the variable's update; else TensorFlow creates all zeros long before it.
            with tf.control_dependencies([self.variables[index].read_value()]):
                zero = tf.cast(replicas.local(self.zero).read_value(), total.dtype)
            done.append(total.assign(tf.fill(total.shape, zero), read_value=False))
        return done


class SingleBatchGradients:
    """Gradients of a batch that is one microbatch, with the methods of `GradientAccumulator`.

    Nothing is summed, so nothing is copied.
    """

    def __init__(self, variables, *, static=False, maxima=()):
        self.variables, self.static = list(variables), static
        self.gradients: list = []

    fits = GradientAccumulator.fits

    def open(self, first=True):
        return tf.no_op()

    def add(self, gradients):
        self.gradients = gradients

    def read(self):
        gradients = self.gradients
        if self.static:
            return list(map(dense, gradients))
        return list(map(unique_rows, gradients))

    def close(self):
        self.gradients = []


def dense(gradient):
    """Return `IndexedSlices` as a tensor; return anything else unchanged."""
    return tf.convert_to_tensor(gradient) if isinstance(gradient, tf.IndexedSlices) else gradient


def plus(one, other):
    """Return the sum of two gradients of a variable, each a tensor, `IndexedSlices` or None."""
    if one is None or other is None:
        return other if one is None else one
    if isinstance(one, tf.IndexedSlices) and isinstance(other, tf.IndexedSlices):
        parts = (one.values, other.values), (one.indices, other.indices)
        values, indices = (tf.concat(part, 0) for part in parts)
        return unique_rows(tf.IndexedSlices(values, indices, one.dense_shape))
    return tf.convert_to_tensor(one) + tf.convert_to_tensor(other)


def _zeros(shape, dtype):
    return replicas.variable(tf.zeros(shape, dtype))
