"""`ke.merge` and `ke.summary`."""

import numpy as np
import pytest
import tensorflow as tf
from contract import apply, outputs, trained
from covering import sampled
from fit_helpers import mirrored
from zoo import ZOO

import keras_efficient as ke
from keras_efficient.parametrize import Summary, WeightSummary

models = pytest.mark.parametrize("specimen", ZOO, ids=str)
FUNCTIONAL = [s for s in ZOO if s.name.endswith("-functional")]
functional = pytest.mark.parametrize("specimen", FUNCTIONAL, ids=str)


@sampled()
@functional
def test_what_was_folded_is_listed(specimen):
    model = specimen.make()
    apply(model, "prune", "lora")
    report = ke.merge(model)
    assert len(report.folded) == 5
    assert "lora r=2, mask unstructured 50%" in str(report)
    assert str(report).startswith("merged: 5 weights are plain again")
    with pytest.raises(ValueError, match=r"folds transforms into weights.*has none"):
        ke.merge(model)


@sampled()
@functional
def test_a_merged_model_trains_on(specimen):
    model, _ = trained(specimen, "lora")
    ke.merge(model)
    before = model.get_weights()
    x, y = specimen.batch(12)
    model.fit(x, y, batch_size=4, verbose=0)
    changed = [not np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True)]
    assert sum(changed) >= len(changed) - 1


@functional
def test_adapters_are_not_folded(specimen, tmp_path):
    model = specimen.make()
    apply(model, "adapters")
    with pytest.raises(ValueError, match=r"ke.merge folds functions of a weight.*adapter"):
        ke.merge(model)
    with pytest.raises(NotImplementedError, match="A model file holds plain layers"):
        model.save(tmp_path / "a.keras")


@sampled()
@functional
def test_under_another_strategy(specimen):
    model = specimen.make()
    for act in (
        lambda: ke.prune(model, 0.5),
        lambda: ke.lora(model, rank=2),
        lambda: ke.merge(model),
    ):
        with mirrored().scope(), pytest.raises(ValueError, match="must run under the strategy"):
            act()
        act()


@sampled()
@functional
def test_under_its_own_strategy(specimen):
    with mirrored().scope():
        model = specimen.make()
    ke.lora(model, rank=2)
    with mirrored().scope():
        assert len(ke.merge(model).folded) == 5


@sampled()
@functional
def test_inside_the_scope_of_its_own_strategy_of_one_device(specimen):
    """Its variables are plain, which was taken for "a model of no strategy"."""
    with tf.distribute.OneDeviceStrategy("/cpu:0").scope():
        model = specimen.make()
        ke.prune(model, 0.5)
        ke.lora(model, rank=2)
        assert len(ke.merge(model).folded) == 5
        plain = ke.flavor.of(model).keras.models.clone_model(model)
    with (
        tf.distribute.OneDeviceStrategy("/cpu:0").scope(),
        pytest.raises(ValueError, match="a model of OneDeviceStrategy inside the scope of another"),
    ):
        ke.prune(plain, 0.5)


@sampled(2)
@models
def test_summary_of_a_plain_model(specimen):
    model = specimen.make()
    found = ke.summary(model)
    trainable = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    assert found.trainable == trainable == sum(w.trainable for w in found.weights)
    assert found.bytes == 4 * found.parameters
    assert not any(w.transforms for w in found.weights)
    assert f"{found.trainable:,} of {found.parameters:,} parameters train" in str(found)


@sampled()
@models
def test_summary_of_a_chain(specimen):
    model = specimen.make()
    ke.prune(model, 0.5)
    ke.quantize_aware(model)
    ke.lora(model, rank=2)
    found = ke.summary(model)
    rows = [w for w in found.weights if any("mask" in t for t in w.transforms)]
    for row in rows:
        size = int(np.prod(row.shape))
        assert row.sparsity >= 0.5 - 0.5 / size
        assert row.bits == 8
        # A bit for each number, 8 for every second one, and a scale for each output.
        assert 5 / 8 * size < row.bytes < 5 / 8 * size + 4 * size
        assert [t.split()[0] for t in row.transforms] == ["lora", "mask", "int8"]
    trains = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    assert found.trainable == trains
    line = next(line for line in str(found).splitlines() if line.startswith(rows[0].path))
    assert "lora r=2 → mask unstructured 50% → int8" in line


def test_summary_has_a_short_form():
    """A summary of a small BERT had 140 lines, and its repr every weight."""
    kind = {"trainable": 0, "sparsity": 0.5, "bits": 8, "bytes": 100}
    plain = {"trainable": 10, "sparsity": 0.0, "bits": 32, "bytes": 40}
    weights = [
        *(
            WeightSummary(f"layer/{i}/kernel", (10, 10), ("mask 50%", "int8"), **kind)
            for i in range(100)
        ),
        *(WeightSummary(f"layer/{i}/bias", (10,), (), **plain) for i in range(100)),
    ]
    found = Summary(tuple(weights), 1000, 11_000, {f"layer/{i}": "adapter" for i in range(50)})
    lines = found.short().splitlines()
    assert repr(found) == found.short() and len(lines) == 7
    assert lines[2].split() == ["100", "mask", "50%", "→", "int8", "–", "50.0%", "8", "10,000"]
    assert lines[3].split() == ["100", "–", "1,000", "–", "32", "4,000"]
    assert lines[4].split() == ["200", "all", "1,000", "45.5%", "14,000"]
    assert "1,000 of 11,000 parameters" in lines[5] and lines[6] == "50 × adapter"
    assert len(str(found).splitlines()) > 200


def test_summary_needs_a_built_model():
    import keras

    with pytest.raises(ValueError, match=r"ke.summary needs a built model"):
        ke.summary(keras.Sequential([keras.layers.Dense(2)]))


@sampled()
@functional
def test_no_graph_keeps_the_old_weights(specimen):
    model, x = specimen.make(), specimen.batch(4)[0]
    model.compile("sgd", "mse")
    before = model.predict(x, verbose=0)
    ke.prune(model, 0.9)
    after = model.predict(x, verbose=0)
    assert np.abs(before - after).max() > 1e-4
    np.testing.assert_allclose(after, outputs(model, x), atol=1e-6)
    ke.merge(model)
    np.testing.assert_allclose(model.predict(x, verbose=0), after, atol=1e-6)
    assert tf.reduce_all(tf.math.is_finite(after))
