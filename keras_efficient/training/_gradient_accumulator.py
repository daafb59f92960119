"""Sums of gradients over microbatches, held in variables."""

import tensorflow as tf

from keras_efficient.training import _replicas as replicas


class GradientAccumulator:
    """One buffer per trainable variable, added to in place, and zero between updates.

    Variables rather than loop variables of the `tf.while_loop`: TensorFlow adds to a loop variable
    out of place (twice the memory; three times, and a copy of the whole table per microbatch, for
    an embedding's rows), to a variable in place. Every replica has its own.

    An embedding's gradients stay sparse: `read` gives `IndexedSlices` of the touched rows, each
    once. (Keras 3's Adam squares the gradients of a repeated row one by one, where it should square
    their sum; with each row once it does the right thing.)

    Args:
        variables: the model's trainable `tf.Variable`s.
        static: XLA has no tensors of as many rows as were touched: make every gradient dense.
    """

    def __init__(self, variables, *, static=False):
        self.variables, self.static = list(variables), static
        with tf.init_scope():
            self.sums = [_zeros(v.shape, v.dtype) for v in self.variables]
            #: Per variable, 1.0 for every row that has been touched by a sparse gradient.
            self.touched = [
                _zeros(v.shape[:1], tf.float32) if v.shape.rank and not static else None
                for v in self.variables
            ]
            # Not a constant: TensorFlow would keep a zero tensor of every shape in the graph.
            self.zero = _zeros([], tf.float32)
            self.dirty = replicas.variable(0)
        #: Indices of the variables that get sparse gradients, known once `add` is traced.
        self.sparse = set()

    def fits(self, variables, static):
        """Whether these sums will do (a layer may have been frozen since, or XLA asked for)."""
        return static == self.static and list(map(id, variables)) == list(map(id, self.variables))

    def open(self, first=True):
        """Begin a batch; `first`, whether it is the first of its update.

        Only after a step that failed half-way is there anything to clear.
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
        # What comes next waits for this: it must be known that sums were begun if it fails.
        return dirty.read_value()

    def add(self, gradients):
        """Add one gradient per variable: a tensor, `IndexedSlices` or None."""
        for index, gradient in enumerate(gradients):
            total = replicas.local(self.sums[index])
            if isinstance(gradient, tf.IndexedSlices):
                values = tf.cast(gradient.values, total.dtype)
                total.scatter_add(tf.IndexedSlices(values, gradient.indices))
                if not self.static:
                    self.sparse.add(index)
                    ones = tf.ones_like(gradient.indices, tf.float32)
                    replicas.local(self.touched[index]).scatter_update(
                        tf.IndexedSlices(ones, gradient.indices)
                    )
            elif gradient is not None:
                total.assign_add(tf.cast(gradient, total.dtype), read_value=False)

    def read(self):
        """The sums of this replica."""
        return [
            self._rows(index) if index in self.sparse else replicas.local(total).read_value()
            for index, total in enumerate(self.sums)
        ]

    def close(self):
        """End an update: everything is zero again."""
        done = self._fill(index for index in range(len(self.sums)) if index not in self.sparse)
        for index in self.sparse:
            zeros = self._rows(index, zero=True)
            total, touched = (replicas.local(v[index]) for v in (self.sums, self.touched))
            done.append(total.scatter_update(zeros))
            done.append(touched.assign(tf.zeros_like(touched)))
        # Only then: a step that fails in between leaves something to clear.
        with tf.control_dependencies([operation for operation in done if operation is not None]):
            replicas.local(self.dirty).assign(0)

    def _rows(self, index, zero=False):
        """The touched rows of a sum, or zeros in their place."""
        total = replicas.local(self.sums[index])
        rows = tf.where(replicas.local(self.touched[index]) > 0)[:, 0]
        if zero:
            shape = tf.concat([tf.shape(rows), total.shape[1:]], 0)
            values = tf.fill(shape, tf.zeros([], total.dtype))
        else:
            values = tf.gather(total, rows)
        return tf.IndexedSlices(values, rows, tf.shape(total, tf.int64))

    def _fill(self, indices):
        """Zeros for the dense sums of these indices; returns the operations."""
        done = []
        for index in indices:
            total = replicas.local(self.sums[index])
            # Wait for the variable's update, or TensorFlow makes all the zeros long before it.
            with tf.control_dependencies([self.variables[index].read_value()]):
                zero = tf.cast(replicas.local(self.zero).read_value(), total.dtype)
            done.append(total.assign(tf.fill(total.shape, zero), read_value=False))
        return done


class SingleBatchGradients:
    """The gradients of a batch that is its own microbatch, in the place of `GradientSums`.

    Nothing is summed, so nothing is copied.
    """

    def __init__(self, variables, *, static=False):
        self.variables, self.static = list(variables), static
        self.gradients = None

    fits = GradientAccumulator.fits

    def open(self, first=True):
        return tf.no_op()

    def add(self, gradients):
        self.gradients = gradients

    def read(self):
        gradients = self.gradients
        if self.static:
            return [g if g is None else tf.convert_to_tensor(g) for g in gradients]
        return list(map(unique_rows, gradients))

    def close(self):
        self.gradients = None


def unique_rows(gradient):
    """`IndexedSlices` with every row once, summed; anything else as it is."""
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    rows, places = tf.unique(gradient.indices)
    values = tf.math.unsorted_segment_sum(gradient.values, places, tf.shape(rows)[0])
    return tf.IndexedSlices(values, rows, gradient.dense_shape)


def _zeros(shape, dtype):
    return replicas.variable(tf.zeros(shape, dtype))
