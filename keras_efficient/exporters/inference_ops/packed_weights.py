"""Storage formats of exported weights: integers with scales, bfloat16, or floats in few bytes."""

import functools
from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient.architecture._weights import EMBEDDING
from keras_efficient.exporters.inference_ops.encoding import Encoding, Plain
from keras_efficient.exporters.inference_ops.loaded_tensor import LoadedTensor
from keras_efficient.exporters.inference_ops.smallest_encoding import smallest_encoding


def written(array, name, part):
    """Store an array in its smallest form, before the graph that reads it.

    Returns:
        A variable or a `LoadedTensor`, which convert to the same tensor.
    """
    encoding = smallest_encoding(array, part)
    encoding.create(name)
    return _readable(encoding)


def _readable(encoding) -> Any:
    if isinstance(encoding, Plain):
        return encoding.variables[0]
    return LoadedTensor(encoding.decode, [encoding])


class PackedWeight:
    """A weight in its storage format. What a graph reads of it is exported.

    Attributes:
        weight: the `Weight`.
        encodings: list of the `Encoding`s of its arrays.
    """

    def __init__(self, weight):
        self.weight, self.encodings = weight, []

    def store(self, encoding: Encoding) -> Encoding:
        """Create the variables of an encoding, and return it."""
        encoding.create(self.weight.path)
        self.encodings.append(encoding)
        return encoding

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
        integers: `tf.Variable` or `LoadedTensor` of `matrix`; for an embedding of its transpose,
            whose rows are those of the embedding.
    """

    def __init__(self, weight, quantize):
        super().__init__(weight)
        self.matrix, scales, self.smooth = quantize.integers()
        self.scales = np.broadcast_to(scales, (len(scales), self.matrix.shape[1]))
        table = weight.kind == EMBEDDING
        array = self.matrix.T if table else self.matrix
        self._integers = self.store(smallest_encoding(array, "integers"))
        self._scales: Any = self.store(Plain(scales, "scales")).variables[0]
        self._smooth: Any = None
        if self.smooth is not None:
            self._smooth = self.store(Plain(self.smooth, "smooth")).variables[0]

    @functools.cached_property
    def integers(self) -> Any:
        with tf.init_scope():
            return _readable(self._integers)

    def value(self):
        (inputs, outputs), groups = self.matrix.shape, len(self.scales)
        scales, integers = self._scales, self._integers.decode()
        if self.weight.kind == EMBEDDING:
            table = tf.cast(tf.reshape(integers, [outputs, groups, -1]), tf.float32)
            table *= tf.expand_dims(tf.transpose(scales), -1)
            return tf.cast(tf.reshape(table, self.weight.shape), self.weight.value.dtype)
        matrix = tf.reshape(integers, [groups, inputs // groups, outputs])
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
        table: `tf.Variable` or `LoadedTensor` of `half`.
    """

    def __init__(self, weight, half):
        super().__init__(weight)
        self.half, self.table = half, _readable(self.store(smallest_encoding(half, "half")))

    def value(self):
        return tf.cast(self.table, self.weight.value.dtype)

    def rows(self, ids):
        return tf.cast(tf.gather(self.table, ids), tf.float32)


class EncodedWeight(PackedWeight):
    """A weight in its own dtype, in a form that takes fewer bytes than its numbers.

    Args:
        weight: the `Weight`.
        encoding: `Encoding` of its value.
    """

    def __init__(self, weight, encoding):
        super().__init__(weight)
        self._loaded = _readable(self.store(encoding))

    def value(self):
        return tf.convert_to_tensor(self._loaded)

    def rows(self, ids):
        return tf.gather(self.value(), ids)
