"""Helpers shared by the compression tests."""

import numpy as np
import pytest
from fit_helpers import compiled
from zoo import CLASSES, LENGTH, ZOO, Specimen, full_except, keras_of

from keras_efficient.compression._activation_quantization import ActivationQuantizer
from keras_efficient.parametrize._parametrized_layer import parametrized_layers

libraries = pytest.mark.parametrize("library", ["keras", "tf_keras"])


def outputs(model, x):
    """The model's outputs (a Hugging Face model's logits) as an array."""
    out = model(x)
    return np.asarray(getattr(out, "logits", out))


def mostly(library):
    """Parametrize by this library, and for `make test-all` by the other one too.

    For properties of code that does not depend on the library.
    """
    names = ("keras", "tf_keras")
    marks = [() if name == library else pytest.mark.full for name in names]
    params = [pytest.param(name, marks=mark) for name, mark in zip(names, marks, strict=True)]
    return pytest.mark.parametrize("library", params)


def activation_quantizers(model):
    """The `ActivationQuantizer`s of a model, in the order of its layers."""
    wrappers = [w for layer in parametrized_layers(model) for w in layer.call_wrappers]
    return [wrapper for wrapper in wrappers if isinstance(wrapper, ActivationQuantizer)]


def quick(library, model, optimizer=None, **kwargs):
    """Compile `model` without metrics, which cost a second trace, and by default without XLA."""
    defaults = {"metrics": [], "weighted_metrics": [], "jit_compile": False}
    return compiled(library, model, optimizer, **{**defaults, **kwargs})


def ready(specimen, **kwargs):
    """A model of the zoo, compiled by `quick`."""
    return quick(specimen.library, specimen.make(), **kwargs)


def mlp(library):
    """A built Sequential model of Dense layers, the cheapest model to trace and train."""
    keras = keras_of(library)
    keras.utils.set_random_seed(0)
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((LENGTH,)),
            layers.Dense(8, "tanh", name="first"),
            layers.Dense(8, "tanh", name="second"),
            layers.Dense(CLASSES, dtype="float32", name="head"),
        ]
    )


FUNCTIONAL = [specimen for specimen in ZOO if specimen.name.endswith("-functional")]
SMALL = [
    Specimen(f"{n}-mlp", n, lambda n=n: mlp(n), lambda ids: ids.astype("float32") / 25 - 1)
    for n in ("keras", "tf_keras")
]
BOTH = {specimen.library: specimen for specimen in SMALL}
functional = pytest.mark.parametrize("specimen", FUNCTIONAL, ids=repr)
#: The small models, and in `make test-all` those with embeddings and attention too.
small = pytest.mark.parametrize("specimen", full_except(*SMALL, among=[*SMALL, *FUNCTIONAL]))
