"""Methods that `ke.unpad` is combined with, by name."""

import contextlib

import tensorflow as tf
from fit_helpers import mirrored

import keras_efficient as ke

METHODS = {
    "plain": lambda model: None,
    "accumulate": lambda model: ke.accumulate(model, 4),
    "lora": lambda model: ke.lora(model, rank=2),
    "adapters": lambda model: ke.adapters(model, 2),
    "prune": lambda model: ke.prune(model, 0.5),
    "quantize_aware": lambda model: ke.quantize_aware(model, activation_bits=None),
    "remat": ke.remat,
    "two replicas": lambda model: None,
    "one replica": lambda model: None,
    "bfloat16": lambda model: None,
    "jit_compile": lambda model: None,
}
STRATEGIES = {
    "two replicas": mirrored,
    "one replica": lambda: tf.distribute.OneDeviceStrategy("CPU:0"),
}
#: Methods with which the padded model trains as without.
SAME = ("accumulate", "remat", "two replicas", "one replica", "jit_compile")


@contextlib.contextmanager
def surroundings(library, method):
    """The precision and the strategy of a method."""
    policy = "mixed_bfloat16" if method == "bfloat16" else "float32"
    ke.mixed_precision(policy, library=library)
    try:
        with STRATEGIES.get(method, tf.distribute.get_strategy)().scope():
            yield
    finally:
        ke.mixed_precision("float32", library=library)
