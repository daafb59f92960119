"""Error messages of `ke.prune`; a refused call attaches nothing."""

import sys

import numpy as np
import pytest
import tensorflow as tf
from covering import sampled
from fit_helpers import compiled, mirrored
from zoo import ZOO, keras_of

import keras_efficient as ke
from keras_efficient.compression import Movement, _tf_mot as tf_mot
from keras_efficient.parametrize._parametrized_layer import transforms

BATCH = (np.ones((2, 6), "int32"), np.zeros(2, "int32"))


def schedule(name="ConstantSparsity", *args):
    return getattr(tf_mot.tf_mot("sparsity.keras.pruning_schedule"), name)(*args)


SOFT = Movement(soft=True)
CASES = {
    "sparsity 1": ({"final_sparsity": 1.0}, r"at least 0 and below 1.*Received: 1.0"),
    "sparsity below 0": ({"final_sparsity": -0.1}, "at least 0 and below 1.*Received: -0.1"),
    "no sparsity": ({}, "at least 0 and below 1.*Received: None"),
    "a bool": ({"final_sparsity": True}, "at least 0 and below 1.*Received: True"),
    "percent": ({"final_sparsity": 80}, "at least 0 and below 1.*Received: 80"),
    "no layers": ({"final_sparsity": 0.5, "layers": "nowhere"}, "at least one weight.*'nowhere'"),
    "an end before": (
        {"final_sparsity": 0.5, "begin_step": 5, "end_step": 2},
        "Sparsity grows.*Received: begin_step=5, end_step=2",
    ),
    "a begin below 0": (
        {"final_sparsity": 0.5, "begin_step": -1},
        "Sparsity grows.*Received: begin_step=-1",
    ),
    "frequency": ({"final_sparsity": 0.5, "frequency": 0}, "at least 1 update. Received: 0"),
    "scope": ({"final_sparsity": 0.5, "scope": "model"}, "'layer' or 'global'. Received: 'model'"),
    "a pattern, global": (
        {"pattern": "2:4", "scope": "global"},
        "compares single weights. Received: pattern='2:4'",
    ),
    "several, global": (
        {"final_sparsity": lambda paths: {paths[0]: 0.5, paths[1]: 0.4}, "scope": "global"},
        "one target for all weights together. Received: several",
    ),
    "criterion": ({"final_sparsity": 0.5, "criterion": "luck"}, "`criterion` must.*'luck'"),
    "schedule": ({"final_sparsity": 0.5, "schedule": "linear"}, "`schedule` must.*'linear'"),
    "a pattern's sparsity": (
        {"final_sparsity": 0.7, "pattern": "2:4"},
        "that of the pattern '2:4'. Received: final_sparsity=0.7",
    ),
    "a soft sparsity": (
        {"final_sparsity": 0.7, "criterion": SOFT, "end_step": 9},
        "that of its threshold and penalty. Received: final_sparsity=0.7",
    ),
    "movement at once": (
        {"final_sparsity": 0.5, "criterion": "movement"},
        "learns its scores in training.*Received: end_step=0",
    ),
    "movement without an end": (
        {"criterion": "movement", "schedule": lambda: schedule("ConstantSparsity", 0.5, 2)},
        "learns its scores in training.*Received: end_step=None",
    ),
    "movement, constant": (
        {"final_sparsity": 0.5, "criterion": "movement", "schedule": "constant", "end_step": 9},
        "no scores before training. Received: schedule='constant' with begin_step=0",
    ),
    "a schedule's steps": (
        {"schedule": lambda: schedule("ConstantSparsity", 0.5, 2), "end_step": 9},
        "its own steps and frequency. Received: ConstantSparsity with begin_step=0, end_step=9",
    ),
    "a schedule's sparsity": (
        {"final_sparsity": 0.6, "schedule": lambda: schedule("ConstantSparsity", 0.5, 2)},
        "ends at its own sparsity. Received: ConstantSparsity, which ends at 0.5, with.*0.6",
    ),
    "an unknown weight": (
        {"final_sparsity": {"nowhere/kernel": 0.5}},
        "by its path. Received: 'nowhere/kernel', no weight in",
    ),
    "an empty dict": ({"final_sparsity": {}}, "by its path. Received: {}, no weight in"),
    "a missing weight": (
        {"final_sparsity": lambda paths: {paths[0]: 0.5}, "layers": "kernel"},
        "must have every chosen weight. Received: one without",
    ),
    "adaptive with a pattern": (
        {"pattern": "2:4", "adaptive": BATCH},
        "a target of its own. Received: it with pattern='2:4', which leaves no choice",
    ),
    "adaptive, global": (
        {"final_sparsity": 0.5, "scope": "global", "adaptive": BATCH},
        "Received: it with scope='global'",
    ),
    "adaptive with targets": (
        {"final_sparsity": lambda paths: {paths[0]: 0.5}, "adaptive": BATCH},
        "Received: it with several targets",
    ),
    "adaptive, soft": (
        {"criterion": SOFT, "end_step": 9, "adaptive": BATCH},
        "Received: it with a soft Movement",
    ),
    "adaptive with a schedule": (
        {"schedule": lambda: schedule("ConstantSparsity", 0.5, 2), "adaptive": BATCH},
        "Received: it with a ConstantSparsity",
    ),
}


@sampled()
@pytest.mark.parametrize("specimen", [ZOO[0], ZOO[4]], ids=repr)
def test_bad_arguments_are_refused(specimen):
    model = specimen.make()
    paths = [w.path for w in ke.parametrize.select(model, caller="")]
    for name, (kwargs, rule) in CASES.items():
        given = {
            key: (value(paths) if key == "final_sparsity" else value())
            if callable(value)
            else value
            for key, value in kwargs.items()
        }
        with pytest.raises(ValueError, match=rule):
            ke.prune(model, **given)
        assert not transforms(model), name
    with pytest.raises(TypeError, match=r"a batch \(features, labels\).*Received: True"):
        ke.prune(model, 0.5, adaptive=True)
    with pytest.raises(TypeError, match="must be None, a regular expression"):
        ke.prune(model, 0.5, layers=3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'sparsity'"):
        ke.prune(model, sparsity=0.5)


@sampled()
@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_unsuitable_models_are_refused(library):
    keras = keras_of(library)
    with pytest.raises(ValueError, match=r"needs a built model.*Received"):
        ke.prune(keras.Sequential([keras.layers.Dense(3)]), 0.5)
    with pytest.raises(TypeError):
        ke.prune(object(), 0.5)
    model = {"keras": ZOO[0], "tf_keras": ZOO[4]}[library].make()
    ke.prune(model, 0.5, layers="query")
    with pytest.raises(ValueError, match=r"one transform of each kind. Received: 'mask'"):
        ke.prune(model, 0.6)
    assert len(transforms(model)) == 1
    other = {"keras": ZOO[0], "tf_keras": ZOO[4]}[library].make()
    with (
        mirrored(2).scope(),
        pytest.raises(ValueError, match=r"ke.prune must run under the strategy.*Mirrored"),
    ):
        ke.prune(other, 0.5)
    assert not transforms(other)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_target_below_the_sparsity_of_now_is_refused(scope):
    model = ZOO[0].make()
    ke.prune(model, 0.75, scope=scope)
    ke.merge(model)
    with pytest.raises(ValueError, match=r"makes weights sparser. Received: a target of 50.0% ze"):
        ke.prune(model, 0.5, scope=scope)
    ke.prune(model, 0.75, scope=scope)


@sampled()
@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_a_target_of_0_changes_nothing_as_in_tf_mot(library):
    model = {"keras": ZOO[0], "tf_keras": ZOO[4]}[library].make()
    before = model.get_weights()
    report = ke.prune(model, 0, end_step=10)
    assert set(report.targets.values()) == {0.0} and not transforms(model)
    assert "0.0% zeros" in str(report)
    # A weight with zeros may be left out of several, too.
    first, second, *_ = report.targets
    ke.prune(model, {first: 0.5, second: 0.0})
    assert [t.weight.path for t in transforms(model)] == [first]
    ke.merge(model)
    assert list(ke.prune(model, {first: 0.0, second: 0.5}).targets.values()) == [0.0, 0.5]
    assert [t.weight.path for t in transforms(model)] == [second]
    assert len(model.get_weights()) == len(before) + 3


def test_without_tf_mot_there_is_an_error_that_says_how_to_get_it(monkeypatch):
    tf_mot.tf_mot.cache_clear()
    for name in [n for n in sys.modules if n.startswith("tensorflow_model_optimization")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorflow_model_optimization", None)
    model = ZOO[0].make()
    with pytest.raises(ImportError, match=r"Install it with pip install 'keras_efficient\[mot\]'"):
        ke.prune(model, 0.5)
    assert not transforms(model)
    monkeypatch.undo()
    tf_mot.tf_mot.cache_clear()


def test_importing_tf_mot_leaves_the_choice_of_keras_alone(monkeypatch):
    """Trap 30."""
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "0")
    tf_mot.tf_mot.cache_clear()
    tf_mot.tf_mot("sparsity.keras.pruning_schedule")
    import os

    assert os.environ["TF_USE_LEGACY_KERAS"] == "0"
    assert tf.keras.__name__


def test_a_sensitivity_of_what_is_pruned_is_refused():
    model = compiled("keras", ZOO[0].make())
    ke.prune(model, 0.5)
    with pytest.raises(ValueError, match=r"of dense weights. Received: .*, which is pruned"):
        ke.compression.sensitivity(model, BATCH, 0.5)
