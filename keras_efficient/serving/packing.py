"""A model whose rounded weights are read from int8 variables, for as long as it is written."""

from contextlib import contextmanager

import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.compress.fake_quant import FakeQuant
from keras_efficient.errors import InputError
from keras_efficient.parametrize.finding import chains


@contextmanager
def packed(model):
    """A context in which layers read their rounded weights as integers times scales.

    Yields the base variables that nothing reads then. Afterwards everything is as it was.

    Raises:
        InputError: no weight is rounded.
    """
    quantized = [c for c in chains(model) if any(isinstance(t, FakeQuant) for t in c.transforms)]
    if not quantized:
        raise InputError(
            "quantize='int8-weights' writes the integers of weights that are rounded. Received: "
            f"{model.name!r}, none of whose weights are. Call ke.quantize_aware before training, "
            "or ke.calibrate(model, data) after it."
        )
    with flavors.of(model).aside(model):
        try:
            for chain in quantized:
                vars(chain)["value"] = _Integers(chain).value
            yield [chain.weight.value for chain in quantized]
        finally:
            for chain in quantized:
                vars(chain).pop("value", None)


class _Integers:
    """Stands in for a chain's value: integers · scales, as what is read of the model's file."""

    def __init__(self, chain):
        quantize = next(t for t in chain.transforms if isinstance(t, FakeQuant))
        integers, scales, smooth = quantize.integers()
        self.weight = chain.weight
        name = chain.weight.path.replace("/", ".")
        self.integers = tf.Variable(integers, trainable=False, name=f"{name}.integers")
        self.scales = tf.Variable(scales, trainable=False, name=f"{name}.scales")
        self.smooth = None if smooth is None else tf.Variable(smooth, trainable=False)

    def value(self):
        # (A graph of constants would be folded into the floats again, when it is loaded.)
        inputs, outputs = self.weight.matrix_shape
        groups = self.scales.shape[0]
        matrix = tf.reshape(self.integers, [groups, inputs // groups, outputs])
        matrix = tf.cast(matrix, tf.float32) * self.scales[:, None]
        matrix = tf.reshape(matrix, [inputs, outputs])
        if self.smooth is not None:
            matrix = matrix / self.smooth[:, None]
        return tf.cast(self.weight.unmatrix(matrix), self.weight.value.dtype)
