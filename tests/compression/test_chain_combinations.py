"""Pruned, clustered and quantized at once (TF-MOT's PCQAT), as one chain on every weight."""

import numpy as np
import pytest
from fit_helpers import compiled, fit
from zoo import ZOO, keras_of

import keras_efficient as ke
from keras_efficient.parametrize._attach import transform_chain, transform_of
from keras_efficient.parametrize._parametrized_layer import parametrized_layers
from keras_efficient.parametrize._weights import all_weights

CLUSTERS, SPARSITY = 6, 0.5
NAMES = ("keras-functional", "kerashub-bert", "tf_keras-functional", "hugging-face-bert")
MODELS = [s for s in ZOO if s.name in NAMES]
CHAINS = ("prune cluster", "cluster prune", "cluster quantize", "prune cluster quantize")

VERBS = {
    "prune": lambda model: ke.prune(model, SPARSITY, end_step=2),
    "cluster": lambda model: ke.cluster(model, CLUSTERS, preserve_sparsity=True),
    "quantize": lambda model: ke.quantize_aware(model, 8, None),
}


def applied(model, chain):
    """The paths of the weights that got the whole chain."""
    for caller in chain.split():
        report = VERBS[caller](model)
        if caller == "cluster":
            paths = report.weights
    return paths


def weights(model, paths):
    return [w for w in all_weights(model) if w.path in paths]


def seen(weight):
    chain = transform_chain(weight)
    return (weight.value if chain is None else chain.value()).numpy()


def outputs(model, x):
    out = model(x)
    return np.asarray(getattr(out, "logits", out))


def check(weight, value, chain, mask):
    """What the chain promises of a weight's value."""
    if mask is not None:
        assert np.mean(mask == 0) == pytest.approx(SPARSITY, abs=1 / mask.size)
        assert (value[mask == 0] == 0).all()
    matrix = np.asarray(weight.matrix(value))
    if "quantize" not in chain:
        assert len(np.unique(value)) <= CLUSTERS
        return
    # Scales are the outputs' own: an output has so many values, and all are on its grid.
    for column in matrix.T:
        assert len(np.unique(column)) <= CLUSTERS
        if column.any():
            integers = column / (np.abs(column).max() / 127)
            np.testing.assert_allclose(integers, np.round(integers), atol=1e-3)


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("specimen", MODELS, ids=repr)
def test_every_link_keeps_its_promise(specimen, chain, tmp_path):
    x, y = specimen.batch(12)
    optimizer = keras_of(specimen.library).optimizers.Adam(0.01)
    model = compiled(specimen.library, specimen.make(), optimizer)
    paths = applied(model, chain)
    ke.accumulate(model, 4)
    fit(model, x, y, epochs=3)
    order = ["clusters", "mask", "quantize"]
    masks = {}
    for weight in weights(model, paths):
        names = [t.name for t in transform_chain(weight).transforms]
        assert names == sorted(names, key=order.index) and len(names) == len(chain.split())
        mask = transform_of(weight, "mask")
        masks[weight.path] = None if mask is None else mask.mask.numpy()
        check(weight, seen(weight), chain, masks[weight.path])

    expected, file = outputs(model, x), str(tmp_path / "w.weights.h5")
    model.save_weights(file)
    other = compiled(specimen.library, specimen.make())
    applied(other, chain)
    other.load_weights(file)
    np.testing.assert_allclose(outputs(other, x), expected, atol=1e-5)

    ke.merge(model)
    assert not parametrized_layers(model)
    np.testing.assert_allclose(outputs(model, x), expected, atol=1e-5)
    for weight in weights(model, paths):
        check(weight, weight.value.numpy(), chain, masks[weight.path])


@pytest.mark.parametrize("specimen", MODELS[::2], ids=repr)
def test_one_scale_for_a_whole_weight_keeps_its_number_of_values(specimen):
    x, y = specimen.batch(12)
    model = compiled(specimen.library, specimen.make())
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
