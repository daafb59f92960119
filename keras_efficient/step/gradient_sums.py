"""Sums of gradients over microbatches, held in variables."""

import tensorflow as tf


class GradientSums:
    """One buffer per trainable variable, added to in place, and zero between training steps.

    Variables rather than loop variables of the `tf.while_loop`: TensorFlow adds to a loop variable
    out of place (twice the memory; three times, and a copy of the whole table per microbatch, for
    an embedding's rows), to a variable in place.

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
            # Not a constant: TensorFlow would keep a zero tensor of every shape in the graph.
            self.zero = _zeros([], tf.float32)
            self.dirty = tf.Variable(False, trainable=False)
        #: Index of a variable with sparse gradients -> 1.0 for every row that has been touched.
        self.touched = {}

    def fits(self, variables, static):
        """Whether these sums will do (a layer may have been frozen since, or XLA asked for)."""
        return static == self.static and list(map(id, variables)) == list(map(id, self.variables))

    def open(self):
        """Begin a step. Only after a step that failed half-way is there anything to clear."""

        def clear():
            self._fill(range(len(self.sums)))
            return False

        tf.cond(self.dirty, clear, lambda: False)
        self.dirty.assign(True)

    def add(self, gradients):
        """Add one gradient per variable: a tensor, `IndexedSlices` or None."""
        for index, (total, gradient) in enumerate(zip(self.sums, gradients, strict=True)):
            if isinstance(gradient, tf.IndexedSlices):
                values = tf.cast(gradient.values, total.dtype)
                total.scatter_add(tf.IndexedSlices(values, gradient.indices))
                if not self.static:
                    ones = tf.ones_like(gradient.indices, tf.float32)
                    self._rows(index).scatter_update(tf.IndexedSlices(ones, gradient.indices))
            elif gradient is not None:
                total.assign_add(tf.cast(gradient, total.dtype), read_value=False)

    def read(self, divisor=None):
        """The sums, divided by the scalar `divisor` if there is one."""
        sums = []
        for index, total in enumerate(self.sums):
            by = None if divisor is None else tf.cast(divisor, total.dtype)
            if index in self.touched:
                rows = tf.where(self.touched[index] > 0)[:, 0]
                values = tf.gather(total, rows)
                values = values if by is None else values / by
                sums.append(tf.IndexedSlices(values, rows, tf.shape(total, tf.int64)))
                sums[-1].rows_are_unique = True
            else:
                value = total.read_value()
                sums.append(value if by is None else value / by)
        return sums

    def close(self):
        """End a step: everything is zero again."""
        for index, touched in self.touched.items():
            rows = tf.where(touched > 0)[:, 0]
            width = self.sums[index].shape[1:]
            zeros = tf.fill(tf.concat([tf.shape(rows), width], 0), tf.zeros([], touched.dtype))
            self.sums[index].scatter_update(
                tf.IndexedSlices(tf.cast(zeros, self.sums[index].dtype), rows)
            )
            touched.assign(tf.zeros_like(touched))
        self._fill(index for index in range(len(self.sums)) if index not in self.touched)
        self.dirty.assign(False)

    def _fill(self, indices):
        for index in indices:
            total = self.sums[index]
            # Wait for the variable's update, or TensorFlow makes all the zeros long before it.
            with tf.control_dependencies([self.variables[index].read_value()]):
                zero = tf.cast(self.zero.read_value(), total.dtype)
            total.assign(tf.fill(total.shape, zero), read_value=False)

    def _rows(self, index):
        if index not in self.touched:
            with tf.init_scope():
                self.touched[index] = _zeros(self.sums[index].shape[:1], tf.float32)
        return self.touched[index]


def _zeros(shape, dtype):
    return tf.Variable(tf.zeros(shape, dtype), trainable=False)
