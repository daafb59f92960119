"""Every transform, and the pairs, on every model of the zoo: train, save, load, merge, export."""

import numpy as np
import pytest
from contract import BESIDE, PAIRS, VERBS, apply, classes, outputs, trained
from zoo import ZOO

import keras_efficient as ke

models = pytest.mark.parametrize("specimen", ZOO, ids=str)
ALONE = [(name,) for name in VERBS]
chains = pytest.mark.parametrize("names", [*ALONE, *PAIRS], ids=" + ".join)
ATTENDING = [s for s in ZOO if s.name != "keras-sequential"]


def close(a, b, atol=1e-6):
    np.testing.assert_allclose(a, b, rtol=0, atol=atol)


@models
@chains
def test_trains_saves_loads_and_merges(specimen, names, tmp_path):
    plain = specimen.make()
    x, _ = specimen.batch(5, seed=3)
    model, _ = trained(specimen, *names)
    seen = outputs(model, x)
    assert np.abs(seen - outputs(plain, x)).max() > 1e-4

    path = str(tmp_path / "a.weights.h5")
    model.save_weights(path)
    # With the same transforms: the same to the last bit.
    again = specimen.make()
    apply(again, *names)
    again.load_weights(path)
    close(outputs(again, x), seen, 0)
    for a, b in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)

    report = ke.merge(model)
    rounded = report.dropped != ()
    if not rounded:
        close(outputs(model, x), seen)
    assert classes(model) == classes(plain)
    assert [w.shape for w in model.get_weights()] == [w.shape for w in plain.get_weights()]
    assert [v.shape for v in model.trainable_variables] == [
        v.shape for v in plain.trainable_variables
    ]
    # The file holds the weights as seen, for a plain model.
    plain.load_weights(path)
    close(outputs(plain, x), outputs(model, x))


@pytest.mark.parametrize("specimen", ATTENDING, ids=str)
@pytest.mark.parametrize("name", list(BESIDE))
def test_what_is_beside_the_weights_trains_saves_and_loads(specimen, name, tmp_path):
    plain = specimen.make()
    x, _ = specimen.batch(5, seed=3)
    model, _ = trained(specimen, name)
    seen = outputs(model, x)
    assert np.abs(seen - outputs(plain, x)).max() > 1e-4
    path = str(tmp_path / "a.weights.h5")
    model.save_weights(path)
    again = specimen.make()
    apply(again, name)
    again.load_weights(path)
    close(outputs(again, x), seen, 0)


@models
def test_a_chain_of_three_exports_and_agrees(specimen, tmp_path):
    model, _ = trained(specimen, "prune", "quantize", "lora")
    x, _ = specimen.batch(5, seed=3)
    seen = outputs(model, x)
    report = ke.export(model, tmp_path / "a", sample=x, latency=False)
    assert report.max_abs_difference <= 1e-5
    # In memory nothing has changed; and a server is not given what transforms keep.
    close(outputs(model, x), seen, 0)
    # (Ranges of inputs are three numbers a layer.)
    found = ke.summary(model)
    assert report.weight_bytes == 4 * (found.parameters + 3 * len(found.others))


@pytest.mark.parametrize("specimen", [ZOO[0], ZOO[4]], ids=str)
@pytest.mark.parametrize("name", [n for n in VERBS if n not in ("quantize", "lora", "prune")])
def test_every_other_transform_exports_and_agrees(specimen, name, tmp_path):
    model, _ = trained(specimen, name)
    x, _ = specimen.batch(5, seed=3)
    report = ke.export(model, tmp_path / "a", sample=x, latency=False)
    assert report.max_abs_difference <= 1e-5
