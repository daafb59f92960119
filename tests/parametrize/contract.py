"""Methods and a short training for the contract tests of transforms."""

import numpy as np
from fit_helpers import compiled, fit

import keras_efficient as ke

#: Methods whose transforms can be merged, by name.
METHODS = {
    "lora": lambda m: ke.lora(m, rank=2),
    "adalora": lambda m: ke.adalora(m, rank=2, begin_step=1, end_step=3),
    "cluster": lambda m: ke.cluster(m, clusters=4),
    "quantize": lambda m: ke.quantize_aware(m, weight_bits=8),
    "quantize to 4 bits": lambda m: ke.quantize_aware(m, weight_bits=4, activation_bits=None),
    "prune": lambda m: ke.prune(m, 0.5, begin_step=0, end_step=2),
    "prune 2:4": lambda m: ke.prune(m, pattern="2:4"),
    "bitfit": lambda m: ke.bitfit(m),
}
#: Methods that wrap the calls of layers, which cannot be merged.
CALL_WRAPPERS = {
    "adapters": lambda m: ke.adapters(m, size=4),
    "prefix": lambda m: ke.prefix_tuning(m, length=3),
}
#: Pairs that are documented to compose.
PAIRS = (
    ("prune", "lora"),
    ("prune", "quantize"),
    ("cluster", "quantize"),
    ("lora", "quantize"),
)


def apply(model, *names):
    """Apply methods to a model one after the other; returns their reports."""
    return [(METHODS | CALL_WRAPPERS)[name](model) for name in names]


def trained(specimen, *names, epochs=1):
    """A model of the zoo with methods applied, after three updates of two microbatches each."""
    model = specimen.make()
    reports = apply(model, *names)
    compiled(specimen.library, model, metrics=[], weighted_metrics=[])
    ke.accumulate(model, 2)
    x, y = specimen.batch(12)
    history = fit(model, x, y, batch_size=4, epochs=epochs)
    assert np.isfinite(history["loss"]).all()
    return model, reports


def outputs(model, x):
    """The logits of a model in inference."""
    result = ke.flavor.of(model).call(model, x, training=False)
    return np.asarray(getattr(result, "logits", result))


def classes(model):
    """The classes of all layers in a model."""
    return [type(layer) for layer in model._flatten_layers()]
