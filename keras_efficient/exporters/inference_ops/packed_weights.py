"""Storage formats of exported weights: int8 integers with scales, or bfloat16."""

from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient.architecture._weights import EMBEDDING


def written(array, name):
    """Create a variable of the export, before the graph that reads it."""
    with tf.device("CPU:0"):
        return tf.Variable(array, trainable=False, name=name.replace("/", "."))


class PackedWeight:
    """A weight in its storage format. The variables that a graph reads are exported.

    Attributes:
        weight: the `Weight`.
        variables: list of the `tf.Variable`s of the format.
    """

    def __init__(self, weight):
        self.weight, self.variables = weight, []

    def variable(self, part, array):
        variable = written(array, f"{self.weight.path}.{part}")
        self.variables.append(variable)
        return variable

    def value(self):
        """Return the weight in its original shape and dtype."""
        raise NotImplementedError

    def rows(self, ids):
        """Return rows of an embedding as float32."""
        raise NotImplementedError


class Int8Weight(PackedWeight):
    """A weight as int8 integers times scales, per output, per embedding row or per group.

    Attributes:
        matrix: int8 array [inputs, outputs].
        scales: float32 array [groups, outputs].
        smooth: float32 array [inputs] by which the rows are divided, or None.
        integers: `tf.Variable` of `matrix`; for an embedding of its transpose, whose rows are those
            of the embedding.
    """

    def __init__(self, weight, quantize):
        super().__init__(weight)
        self.matrix, scales, self.smooth = quantize.integers()
        self.scales = np.broadcast_to(scales, (len(scales), self.matrix.shape[1]))
        table = weight.kind == EMBEDDING
        self.integers = self.variable("integers", self.matrix.T if table else self.matrix)
        self._scales = self.variable("scales", scales)
        self._smooth: Any = None if self.smooth is None else self.variable("smooth", self.smooth)

    def value(self):
        (inputs, outputs), groups = self.matrix.shape, len(self.scales)
        scales = self._scales
        if self.weight.kind == EMBEDDING:
            table = tf.cast(tf.reshape(self.integers, [outputs, groups, -1]), tf.float32)
            table *= tf.expand_dims(tf.transpose(scales), -1)
            return tf.cast(tf.reshape(table, self.weight.shape), self.weight.value.dtype)
        matrix = tf.reshape(self.integers, [groups, inputs // groups, outputs])
        matrix = tf.reshape(tf.cast(matrix, tf.float32) * scales[:, None], [inputs, outputs])
        if self.smooth is not None:
            matrix /= self._smooth[:, None]
        return tf.cast(self.weight.unmatrix(matrix), self.weight.value.dtype)

    def rows(self, ids):
        found = tf.cast(tf.gather(self.integers, ids), tf.float32)
        if len(self.scales) == 1:
            return found * tf.expand_dims(self._scales_of(ids), -1)
        shape = tf.shape(found)
        scales = tf.expand_dims(tf.gather(tf.transpose(self._scales), ids), -1)
        grouped = tf.reshape(found, tf.concat([tf.shape(ids), [len(self.scales), -1]], 0))
        rows = tf.reshape(grouped * scales, shape)
        rows.set_shape(found.shape)
        return rows

    @property
    def row_scales(self):
        """Scales of an embedding without groups, float32 tensor [rows]."""
        return tf.broadcast_to(self._scales[0], [self.matrix.shape[1]])

    def _scales_of(self, ids):
        scales: Any = self._scales[0]
        return (
            tf.gather(scales, ids) if scales.shape[0] > 1 else scales[0] + tf.zeros(tf.shape(ids))
        )


class BFloat16Weight(PackedWeight):
    """A weight in bfloat16.

    Attributes:
        half: bfloat16 array of the weight's shape.
        table: `tf.Variable` of `half`.
    """

    def __init__(self, weight, half):
        super().__init__(weight)
        self.half, self.table = half, self.variable("half", half)

    def value(self):
        return tf.cast(self.table, self.weight.value.dtype)

    def rows(self, ids):
        return tf.cast(tf.gather(self.table, ids), tf.float32)
