"""Models that tests export, and what is attached to them before."""

import keras_efficient as ke

METHODS = {
    "plain": lambda model, x: None,
    "lora": lambda model, x: ke.lora(model, rank=2),
    "prune": lambda model, x: ke.prune(model, 0.5),
    "quantize_aware": lambda model, x: ke.quantize_aware(model, calibration=x),
    "cluster": lambda model, x: ke.cluster(model, 8),
}


def calling(function):
    """A Keras 3 model of four numbers whose only layer calls a function."""
    import keras

    class Own(keras.layers.Layer):
        def call(self, x):
            return function(x)

    x = keras.Input((4,))
    return keras.Model(x, Own()(x))
