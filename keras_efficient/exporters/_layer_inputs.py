"""Replace the quantization of layer inputs while another library quantizes a model."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.compression._activation_quantization import ActivationQuantizer
from keras_efficient.flavor import Model
from keras_efficient.flavor._patched import patched
from keras_efficient.parametrize._parametrized_layer import parametrized_layers


@contextmanager
def unquantized_inputs(model: Model, clips: bool) -> Iterator[None]:
    """Do not round the inputs of layers, for the time of the block.

    Args:
        model: the model.
        clips: whether inputs are clipped to their ranges where those are known, so that the ranges
            that the library measures are not wider. The scaling of "smoothquant" is left out.
    """
    parts = [
        p
        for v in parametrized_layers(model)
        for p in v.call_wrappers
        if isinstance(p, ActivationQuantizer)
    ]
    if not parts:
        yield
        return
    # Read before tracing, where variables have no values.
    low_high = [tuple(map(float, part.range.numpy())) for part in parts]
    with ExitStack() as stack:
        stack.enter_context(flavors.of(model).untraced(model))
        for part, (low, high, sure) in zip(parts, low_high, strict=True):
            known = clips and sure > 0 and high > low and part.smooth is None
            quantize = _clipping(low, high) if known else _identity
            stack.enter_context(patched(part, quantize=quantize))
        yield


def _clipping(low, high):
    return lambda x: tf.cast(tf.clip_by_value(tf.cast(x, tf.float32), low, high), x.dtype)


def _identity(x):
    return x
