"""BitFit, and freezing weights one by one."""

import numpy as np
import pytest
from covering import contract, sampled
from fit_helpers import compiled
from tuned import (
    SPECIMENS,
    TWO,
    assert_compiles,
    assert_exported,
    assert_mixed,
    assert_only_these_move,
    assert_replicas_agree,
    assert_saved,
    head_keys,
    numbered,
    train,
    values,
)
from zoo import FEW, full_except

import keras_efficient as ke
from keras_efficient.parametrize._parametrized_layer import parametrized_layers

names = pytest.mark.parametrize
FUNCTIONAL = [SPECIMENS[f"{library}-functional"] for library in ("keras", "tf_keras")]


def biases(model):
    return {key for key in numbered(model) if key.split()[1] in ("bias", "beta")}


@sampled()
@names("specimen", full_except("keras-functional", "hugging-face-bert", among=FEW))
def test_biases_and_the_head_move_alone(specimen):
    model = specimen.make()
    moves = biases(model) | head_keys(model)
    moved, still = assert_only_these_move(specimen, ke.bitfit, moves)
    assert still == [] and head_keys(model) <= moved
    # The bias of keys shifts all scores of a query alike, so its gradient is zero but for rounding.
    others = moves - moved
    assert all(
        ".key" in numbered(model)[k].path or "/key" in numbered(model)[k].path for k in others
    )


@sampled()
@names("specimen", full_except("keras-functional", "hugging-face-bert", among=FEW))
def test_weights_are_saved(specimen, tmp_path):
    assert_saved(specimen, ke.bitfit, tmp_path)


@contract("export")
@names("specimen", full_except("hugging-face-bert", among=TWO))
def test_export(specimen, tmp_path, monkeypatch):
    assert_exported(specimen, ke.bitfit, tmp_path, monkeypatch)


@contract("replicas")
@names("specimen", full_except("tf_keras-subclassed", among=FEW))
def test_two_replicas_are_one(specimen):
    assert_replicas_agree(specimen, ke.bitfit)


@contract("xla")
@names("specimen", full_except("keras-functional", among=FEW))
def test_xla(specimen):
    assert_compiles(specimen, ke.bitfit)


@contract("mixed_precision")
@names("specimen", full_except("tf_keras-subclassed", among=FEW))
def test_mixed_precision(specimen):
    assert_mixed(specimen, ke.bitfit)


@sampled()
@names("specimen", TWO, ids=repr)
def test_the_report(specimen):
    model = specimen.make()
    report = ke.bitfit(model, train=False)
    assert len(report.weights) == len(biases(model))
    assert report.trainable == sum(values(model)[key].size for key in biases(model))
    assert str(report).startswith(f"bitfit: {len(report.weights)} weights; ")
    with_norms = ke.bitfit(specimen.make(), train=False, norms=True)
    # Three norms of 8: the embeddings', and two of the block.
    assert with_norms.trainable == report.trainable + 3 * 8


def test_train_says_what_else():
    model = SPECIMENS["kerashub-bert"].make()
    report = ke.bitfit(model, train="token_embedding/")
    assert report.trainable == ke.bitfit(model, train=False).trainable + 50 * 8


def test_again():
    model = SPECIMENS["kerashub-bert"].make()
    first = ke.bitfit(model)
    assert ke.bitfit(model) == first


@names("specimen", FEW, ids=repr)
def test_unfreeze_undoes_it(specimen):
    model = specimen.make()
    before = [w.name for w in model.weights], len(model.trainable_weights)
    ke.bitfit(model)
    ke.peft.unfreeze(model)
    assert ([w.name for w in model.weights], len(model.trainable_weights)) == before
    assert not parametrized_layers(model)


@pytest.mark.full
@sampled()
@names("specimen", FUNCTIONAL, ids=repr)
def test_freeze_some(specimen):
    """Only kernels are frozen, also in a model that was trained before."""
    model = train(specimen, lambda model: None)
    x, y = specimen.batch(12)
    before = values(model)
    report = ke.peft.freeze(model, "kernel$")
    assert report.method == "freeze" and all(path.endswith("kernel") for path in report.weights)
    model.fit(x, y, batch_size=6, verbose=0)
    still = {key for key, value in values(model).items() if (value == before[key]).all()}
    assert {key for key in before if key.endswith("kernel")} <= still < set(before)
    assert ke.peft.unfreeze(model, "kernel$").weights == report.weights
    before = values(model)
    model.fit(x, y, batch_size=6, verbose=0)
    moved = {key for key, value in values(model).items() if (value != before[key]).any()}
    assert {key for key in before if key.endswith("kernel")} <= moved


@pytest.mark.full
@sampled()
@names("specimen", FUNCTIONAL, ids=repr)
def test_the_optimizer_keeps_what_it_knows(specimen):
    """Also for a weight that is frozen for a while."""
    from zoo import keras_of

    model = specimen.make()
    keras = keras_of(specimen.library)
    compiled(specimen.library, model, keras.optimizers.Adam(0.01))
    x, y = specimen.batch(12)
    model.fit(x, y, batch_size=6, verbose=0)

    def state():
        own = model.optimizer.variables
        return [np.asarray(v) for v in (own() if callable(own) else own)]

    before = state()
    ke.peft.freeze(model, "kernel$")
    ke.peft.unfreeze(model)
    for a, b in zip(state(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(np.abs(a).max() > 0 for a in before[2:])


# --- what is refused -------------------------------------------------------------------------


def test_no_biases():
    import keras

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, use_bias=False)])
    with pytest.raises(ValueError, match=r"ke\.bitfit trains biases. Received"):
        ke.bitfit(model)


def test_not_built():
    import keras

    with pytest.raises(ValueError, match=r"ke\.bitfit needs a built model"):
        ke.bitfit(keras.Sequential([keras.layers.Dense(2)]))


@names("caller", ["freeze", "unfreeze"])
def test_unknown_weights(caller):
    model = SPECIMENS["keras-functional"].make()
    with pytest.raises(ValueError, match=rf"ke\.peft\.{caller} needs at least one weight"):
        getattr(ke.peft, caller)(model, "nothing")
