"""Schedules are the formulas of their docstrings, in both libraries, and are saved with a model."""

import math

import numpy as np
import pytest
from training import compiled, fit
from zoo import ZOO, keras_of

import keras_efficient as ke

libraries = pytest.mark.parametrize("library", ["keras", "tf_keras"])
STEPS = [0, 1, 5, 9, 10, 11, 50, 99, 100, 101, 1000]


def linear(t, peak, w, total, end):
    if t < w:
        return peak * t / w
    return peak + (end - peak) * (min(t, total) - w) / (total - w)


def cosine(t, peak, w, total, end):
    if t < w:
        return peak * t / w
    left = (1 + math.cos(math.pi * (min(t, total) - w) / (total - w))) / 2
    return end + (peak - end) * left


@pytest.mark.parametrize("warmup", [0, 1, 10])
@pytest.mark.parametrize("end", [0.0, 1e-4])
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_rates_are_the_formula(name, end, warmup):
    make, formula = getattr(ke.schedules, f"warmup_{name}"), globals()[name]
    schedule = make(1e-3, warmup_steps=warmup, total_steps=100, end=end)
    wrapped = {library: schedule.wrap(library) for library in ("keras", "tf_keras")}
    for step in STEPS:
        expected = formula(step, 1e-3, warmup, 100, end)
        np.testing.assert_allclose(float(schedule(step)), expected, rtol=1e-5, atol=1e-10)
        for of_library in wrapped.values():
            assert float(of_library(step)) == float(schedule(step))


@pytest.mark.parametrize("name", ["warmup_linear", "warmup_cosine"])
def test_rates_rise_then_fall(name):
    schedule = getattr(ke.schedules, name)(1e-3, warmup_steps=10, total_steps=60)
    rates = np.array([float(schedule(step)) for step in range(70)])
    assert (np.diff(rates[:11]) > 0).all()
    assert (np.diff(rates[10:61]) < 0).all()
    assert rates.max() == rates[10] == np.float32(1e-3)
    assert (rates[60:] == 0).all()


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ({"peak": 0.0}, "`peak` must be > 0"),
        ({"warmup_steps": -1}, "`warmup_steps` must be >= 0"),
        ({"total_steps": 10}, "`total_steps` must be greater than `warmup_steps`"),
        ({"end": -1.0}, "`end` must be >= 0"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, rule):
    arguments = {"peak": 1e-3, "warmup_steps": 10, "total_steps": 100, **arguments}
    with pytest.raises(ValueError, match=rule):
        ke.schedules.warmup_linear(arguments.pop("peak"), **arguments)


def test_a_schedule_shows_its_arguments():
    schedule = ke.schedules.warmup_linear(0.5, warmup_steps=1, total_steps=2)
    assert repr(schedule) == "linear(peak=0.5, warmup_steps=1, total_steps=2, end=0.0)"


@libraries
def test_a_saved_schedule_names_only_our_functions(library):
    wrapper = type(ke.schedules.warmup_linear(1.0, warmup_steps=0, total_steps=1).wrap(library))
    with pytest.raises(ValueError, match=r"must name a function of keras_efficient\.schedules"):
        wrapper("os", "system", {})


@libraries
def test_a_model_is_saved_with_optimizer_and_schedule(library, tmp_path):
    name = {"keras": "keras-sequential", "tf_keras": "tf_keras-functional"}[library]
    specimen = next(specimen for specimen in ZOO if specimen.name == name)
    rate = ke.schedules.warmup_cosine(0.1, warmup_steps=2, total_steps=20)
    optimizer = ke.optimizers.AdamW(
        rate, weight_decay=0.1, exclude=ke.optimizers.NO_DECAY, library=library
    )
    model = compiled(library, specimen.make(), optimizer)
    x, y = specimen.batch(12)
    fit(model, x, y, epochs=3)
    path = str(tmp_path / "model.keras")
    model.save(path)
    loaded = keras_of(library).models.load_model(path)
    assert tuple(loaded.optimizer.get_config()["exclude"]) == ke.optimizers.NO_DECAY
    config = loaded.optimizer.get_config()["learning_rate"]["config"]
    assert config["function"] == "cosine"
    assert config["arguments"] == rate.arguments
    assert int(loaded.optimizer.iterations) == 3
    # And they train on alike.
    fit(model, x, y)
    fit(loaded, x, y)
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
