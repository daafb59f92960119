"""Several LoRAs on one model: which are added, and which train."""

import numpy as np
import pytest
from covering import sampled
from fit_helpers import compiled, fit
from tuned import SPECIMENS
from zoo import ZOO, full_except

import keras_efficient as ke
from keras_efficient.parametrize._parametrized_layer import parametrized_layers, transforms

FUNCTIONAL = [s for s in ZOO if s.name.endswith("functional")]
specimens = pytest.mark.parametrize(
    "specimen", full_except(*FUNCTIONAL, among=[*FUNCTIONAL, SPECIMENS["hugging-face-bert"]])
)


def outputs(model, x):
    found = model(x)
    return np.asarray(getattr(found, "logits", found))


def states(model, name):
    deltas = [delta for delta in transforms(model) if delta.name == name]
    assert deltas
    return [factor.numpy() for delta in deltas for factor in (delta.a, delta.b)]


def same(before, after):
    return [bool(np.array_equal(a, b)) for a, b in zip(before, after, strict=True)]


def two(specimen):
    """A model with two adapters that both add something, and a head that stays."""
    model = specimen.make()
    ke.lora(model, 2, name="french", train=False)
    ke.lora(model, 3, name="german", train=False, seed=1)
    rng = np.random.default_rng(0)
    for delta in transforms(model):
        delta.b.assign(rng.normal(0, 0.3, delta.b.shape).astype("float32"))
    return model


@sampled()
@specimens
def test_each_is_what_it_would_be_alone_and_together_they_add_up(specimen):
    model, (x, _) = two(specimen), specimen.batch(3)
    plain = outputs(specimen.make(), x)
    for name in ("french", "german"):
        ke.switch_adapters(model, name)
        alone = specimen.make()
        ke.lora(alone, 2 if name == "french" else 3, name=name)
        deltas = [delta for delta in transforms(model) if delta.name == name]
        for delta, its in zip(transforms(alone), deltas, strict=True):
            delta.a.assign(its.a)
            delta.b.assign(its.b)
        np.testing.assert_allclose(outputs(model, x), outputs(alone, x), rtol=0, atol=1e-6)
        assert np.abs(outputs(model, x) - plain).max() > 1e-3
    ke.switch_adapters(model, None)
    np.testing.assert_array_equal(outputs(model, x), plain)
    ke.switch_adapters(model, ["french", "german"])
    both = outputs(model, x)
    # Merged, their sum is the weight.
    ke.merge(model)
    np.testing.assert_allclose(outputs(model, x), both, rtol=0, atol=1e-6)


@pytest.mark.full
@specimens
def test_only_those_that_are_on_train_in_a_plain_fit_and_in_ours(specimen):
    model, (x, y) = two(specimen), specimen.batch(8)
    assert len(model.trainable_variables) == len(transforms(model)) * 2
    compiled(specimen.library, model)
    fit(model, x, y, batch_size=4)
    for on, off in (("french", "german"), ("german", "french")):
        report = ke.switch_adapters(model, on)
        assert (report.on, report.off) == ((on,), (off,))
        assert len(model.trainable_variables) == len(transforms(model))
        before = states(model, on), states(model, off)
        fit(model, x, y, batch_size=4)
        assert all(same(before[1], states(model, off)))
        assert not any(same(before[0], states(model, on)))
        # By the package's own step from here on.
        ke.accumulate(model, microbatches=2)
    ke.switch_adapters(model, ["french", "german"])
    before = states(model, "french") + states(model, "german")
    fit(model, x, y, batch_size=4)
    assert not any(same(before, states(model, "french") + states(model, "german")))


@sampled()
@specimens
def test_merge_keeps_those_that_are_on_and_leaves_nothing_behind(specimen):
    model, (x, _) = two(specimen), specimen.batch(3)
    ke.switch_adapters(model, "german")
    changed = outputs(model, x)
    ke.merge(model)
    np.testing.assert_allclose(outputs(model, x), changed, rtol=0, atol=1e-6)
    fresh = specimen.make()
    assert parametrized_layers(model) == []
    assert len(model.trainable_variables) == len(fresh.trainable_variables)
    assert len(model.weights) == len(fresh.weights)


@sampled()
@specimens
def test_weights_files_hold_both_whichever_is_on(specimen, tmp_path):
    model, (x, _) = two(specimen), specimen.batch(3)
    ke.switch_adapters(model, "german")
    model.save_weights(str(tmp_path / "w.weights.h5"))
    other = specimen.make()
    ke.lora(other, 2, name="french", train=False)
    ke.lora(other, 3, name="german", train=False)
    ke.switch_adapters(other, "french")
    other.load_weights(str(tmp_path / "w.weights.h5"))
    for name in ("german", "french"):
        ke.switch_adapters(model, name)
        ke.switch_adapters(other, name)
        np.testing.assert_array_equal(outputs(model, x), outputs(other, x))


def test_the_report():
    model = two(FUNCTIONAL[0])
    assert str(ke.switch_adapters(model, "german")) == "adapters on: german; off: french"
    assert str(ke.switch_adapters(model, None)) == "adapters on: none; off: french, german"
    assert str(ke.switch_adapters(model, ["german", "french"])) == "adapters on: french, german"
    ke.switch_adapters(model, "german")
    assert "french r=2 (off) → german r=3" in str(ke.summary(model))


def test_adalora_can_be_off_and_its_budget_waits():
    specimen = FUNCTIONAL[0]
    model, (x, y) = specimen.make(), specimen.batch(8)
    report = ke.adalora(model, 2, end_step=4)
    ke.lora(model, 2)
    compiled(specimen.library, model)
    ke.switch_adapters(model, "lora")
    loss = fit(model, x, y, batch_size=4)["loss"]
    assert int(report.allocator.updates.numpy()) == 0
    ke.switch_adapters(model, "adalora")
    assert np.isfinite(loss).all()
    fit(model, x, y, batch_size=4)
    assert int(report.allocator.updates.numpy()) == 2


def test_names_that_are_not_there():
    model = FUNCTIONAL[0].make()
    with pytest.raises(ValueError, match=r"chooses among the adapters.*has none"):
        ke.switch_adapters(model, None)
    ke.lora(model, 2, name="french")
    with pytest.raises(ValueError, match=r"Received: 'german'; .* has french"):
        ke.switch_adapters(model, ["french", "german"])
    assert all(delta.active for delta in transforms(model))
