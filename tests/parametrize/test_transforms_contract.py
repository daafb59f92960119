"""Transforms and pairs of them on the models of the zoo: train, save, load, export and merge."""

import functools

import numpy as np
import pytest
from contract import CALL_WRAPPERS, METHODS, PAIRS, apply, classes, outputs, trained
from covering import covering, sampled
from in_process_export import serve_here
from zoo import ZOO, full_except

import keras_efficient as ke

CHAINS = [*((name,) for name in METHODS), *PAIRS]
#: The models of the two libraries in turn, the cheapest first.
MODELS = [
    next(specimen for specimen in ZOO if specimen.name == name)
    for name in (
        *("keras-functional", "tf_keras-functional", "keras-subclassed", "tf_keras-subclassed"),
        *("kerashub-bert", "hugging-face-bert", "keras-sequential", "model-garden-bert"),
    )
]
assert set(MODELS) == set(ZOO)
#: Every chain, each on the next model, so that every model has one or two.
CASES = [
    pytest.param(
        *case.values, marks=case.marks, id=f"{case.values[0]}-{' + '.join(case.values[1])}"
    )
    for case in covering(MODELS, CHAINS, strength=1)
]
#: Transforms that no chain of `test_a_chain_of_three_exports_and_agrees` has.
EXPORTED = [name for name in METHODS if name not in ("prune", "quantize", "lora")]


def close(a, b, atol=1e-6):
    np.testing.assert_allclose(a, b, rtol=0, atol=atol)


@functools.cache
def make(specimen):
    """The model without transforms, for tests that only read it."""
    return specimen.make()


@sampled()
@pytest.mark.parametrize("specimen, names", CASES)
def test_trains_saves_loads_exports_and_merges(specimen, names, tmp_path, monkeypatch):
    serve_here(monkeypatch)
    plain = specimen.make()
    x, _ = specimen.batch(5, seed=3)
    model, _ = trained(specimen, *names)
    transformed = outputs(model, x)
    assert np.abs(transformed - outputs(plain, x)).max() > 1e-4

    path = str(tmp_path / "a.weights.h5")
    model.save_weights(path)
    # With the same transforms, a model that loads the file is bit for bit the same.
    again = specimen.make()
    apply(again, *names)
    again.load_weights(path)
    close(outputs(again, x), transformed, 0)
    for a, b in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)

    if len(names) == 1 and names[0] in EXPORTED:
        report = ke.export(model, tmp_path / "a", sample=x, latency=False)
        assert report.max_abs_difference <= 1e-5

    report = ke.merge(model)
    if not report.dropped:
        close(outputs(model, x), transformed)
    assert classes(model) == classes(plain)
    assert [w.shape for w in model.get_weights()] == [w.shape for w in plain.get_weights()]
    assert [v.shape for v in model.trainable_variables] == [
        v.shape for v in plain.trainable_variables
    ]
    # For a model without transforms, the file holds the transformed weights.
    plain.load_weights(path)
    close(outputs(plain, x), outputs(model, x))


#: Cases that `make test` runs; tests/peft has others.
QUICK = {("keras-subclassed", "adapters"), ("model-garden-bert", "prefix")}


@pytest.mark.parametrize(
    "specimen, name",
    [
        pytest.param(
            specimen,
            name,
            id=f"{specimen}-{name}",
            marks=[] if (specimen.name, name) in QUICK else [pytest.mark.full],
        )
        for specimen in ZOO
        for name in CALL_WRAPPERS
        if specimen.name != "keras-sequential"
    ],
)
def test_call_wrappers_train_save_and_load(specimen, name, tmp_path):
    x, _ = specimen.batch(5, seed=3)
    model, _ = trained(specimen, name)
    wrapped = outputs(model, x)
    assert np.abs(wrapped - outputs(make(specimen), x)).max() > 1e-4
    path = str(tmp_path / "a.weights.h5")
    model.save_weights(path)
    again = specimen.make()
    apply(again, name)
    again.load_weights(path)
    close(outputs(again, x), wrapped, 0)


@sampled()
@pytest.mark.parametrize("specimen", full_except("keras-functional", "tf_keras-functional"))
def test_a_chain_of_three_exports_and_agrees(specimen, tmp_path, monkeypatch):
    serve_here(monkeypatch)
    model, _ = trained(specimen, "prune", "quantize", "lora")
    x, _ = specimen.batch(5, seed=3)
    transformed = outputs(model, x)
    report = ke.export(model, tmp_path / "a", sample=x, latency=False)
    assert report.max_abs_difference <= 1e-5
    # Exporting changes nothing in memory, and leaves the variables of transforms out.
    close(outputs(model, x), transformed, 0)
    # The range of a layer's inputs is three numbers.
    found = ke.summary(model)
    assert report.weight_bytes == 4 * (found.parameters + 3 * len(found.others))
