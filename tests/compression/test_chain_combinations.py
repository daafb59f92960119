"""Pruning, clustering and quantization combined (TF-MOT's PCQAT) in one transform chain."""

import numpy as np
import pytest
from compression_helpers import SMALL, outputs, ready, small
from covering import covering, sampled
from fit_helpers import fit
from zoo import ZOO, keras_of

import keras_efficient as ke
from keras_efficient.architecture._weights import all_weights
from keras_efficient.parametrize._parametrized_layer import (
    parametrized_layers,
    transform_chain,
    transform_of,
)

CLUSTERS, SPARSITY = 6, 0.5
NAMES = ("keras-functional", "kerashub-bert", "tf_keras-functional", "hugging-face-bert")
MODELS = [s for s in ZOO if s.name in NAMES]
CHAINS = ("prune cluster", "cluster prune", "cluster quantize", "prune cluster quantize")

METHODS = {
    "prune": lambda model: ke.prune(model, SPARSITY, end_step=2),
    "cluster": lambda model: ke.cluster(model, CLUSTERS, preserve_sparsity=True),
    "quantize": lambda model: ke.quantize_aware(model, 8, None),
}


def applied(model, chain):
    """Apply the methods in this order; return the paths of the weights that all of them changed."""
    for method in chain.split():
        report = METHODS[method](model)
        if method == "cluster":
            paths = report.weights
    return paths


def weights(model, paths):
    return [w for w in all_weights(model) if w.path in paths]


def effective_value(weight):
    chain = transform_chain(weight)
    return (weight.value if chain is None else chain.value()).numpy()


def check(weight, value, chain, mask):
    """Assert that a weight's value has the zeros, the distinct values and the grid of the chain."""
    if mask is not None:
        assert np.mean(mask == 0) == pytest.approx(SPARSITY, abs=1 / mask.size)
        assert (value[mask == 0] == 0).all()
    matrix = np.asarray(weight.matrix(value))
    if "quantize" not in chain:
        assert len(np.unique(value)) <= CLUSTERS
        return
    # Scales are per output: each output has few distinct values, all of them on its grid.
    for column in matrix.T:
        assert len(np.unique(column)) <= CLUSTERS
        if column.any():
            integers = column / (np.abs(column).max() / 127)
            np.testing.assert_allclose(integers, np.round(integers), atol=1e-3)


CASES = [
    *covering(SMALL, CHAINS, strength=1),
    *(pytest.param(s, chain, marks=pytest.mark.full) for s in MODELS for chain in CHAINS),
]


@sampled(2)
@pytest.mark.parametrize("specimen, chain", CASES, ids=str)
def test_every_transform_of_a_chain_holds(specimen, chain, tmp_path):
    x, y = specimen.batch(12)
    optimizer = keras_of(specimen.library).optimizers.SGD(0.1)
    model = ready(specimen, optimizer=optimizer)
    paths = applied(model, chain)
    fit(model, x, y, epochs=2)
    order = ["clusters", "mask", "quantize"]
    masks = {}
    for weight in weights(model, paths):
        names = [t.name for t in transform_chain(weight).transforms]
        assert names == sorted(names, key=order.index) and len(names) == len(chain.split())
        mask = transform_of(weight, "mask")
        masks[weight.path] = None if mask is None else mask.mask.numpy()
        check(weight, effective_value(weight), chain, masks[weight.path])

    expected, file = outputs(model, x), str(tmp_path / "w.weights.h5")
    model.save_weights(file)
    other = specimen.make()
    applied(other, chain)
    other.load_weights(file)
    np.testing.assert_allclose(outputs(other, x), expected, atol=1e-5)

    ke.merge(model)
    assert not parametrized_layers(model)
    np.testing.assert_allclose(outputs(model, x), expected, atol=1e-5)
    for weight in weights(model, paths):
        check(weight, weight.value.numpy(), chain, masks[weight.path])


@sampled()
@small
def test_one_scale_for_a_whole_weight_keeps_its_number_of_values(specimen):
    x, y = specimen.batch(12)
    model = ready(specimen)
    ke.prune(model, SPARSITY)
    paths = ke.cluster(model, CLUSTERS, preserve_sparsity=True).weights
    ke.quantize_aware(model, 8, None, per_channel=False)
    fit(model, x, y, epochs=2)
    ke.merge(model)
    for weight in weights(model, paths):
        value = weight.value.numpy()
        assert len(np.unique(value)) <= CLUSTERS
        assert np.mean(value == 0) >= SPARSITY - 1 / value.size


def test_the_summary_shows_the_chain():
    model = MODELS[0].make()
    path = applied(model, CHAINS[-1])[0]
    row = next(w for w in ke.summary(model).weights if w.path == path)
    assert [text.split()[0] for text in row.transforms[:2]] == ["6", "mask"]
    assert len(row.transforms) == 3
    assert row.bits == 3
    assert row.sparsity >= 0
