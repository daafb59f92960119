"""Schedules compute the equations in their docstrings, in both libraries, and can be saved."""

import copy
import json
import math

import numpy as np
import pytest
import tensorflow as tf
from covering import covering, sampled
from fit_helpers import compiled, fit, mirrored
from zoo import ZOO, keras_of

import keras_efficient as ke

LIBRARIES = ("keras", "tf_keras")
libraries = pytest.mark.parametrize("library", LIBRARIES)
s = ke.schedules


# --- the formulas, in float64 --------------------------------------------------------------------


def half_cosine(p):
    return (1 + math.cos(math.pi * p)) / 2


def linear(t, peak, total, end=0.0):
    return end + (peak - end) * (1 - min(t, total) / total)


def cosine(t, peak, total, end=0.0):
    return end + (peak - end) * half_cosine(min(t, total) / total)


def restarts(t, peak, first, t_mul, m_mul, end):
    """Cosine with restarts, computed cycle by cycle."""
    start, exact, length, height = 0, float(first), float(first), peak
    while t >= round(exact):
        start, length = round(exact), length * t_mul
        exact, height = exact + length, height * m_mul
    height = max(height, end)
    return end + (height - end) * half_cosine((t - start) / (round(exact) - start))


def wsd(t, peak, w, total, decay, end, shape):
    if t < w:
        return peak * t / w
    if t < total - decay:
        return peak
    p = (min(t, total) - (total - decay)) / decay
    left = {"linear": 1 - p, "cosine": half_cosine(p), "sqrt": 1 - math.sqrt(p)}[shape]
    return end + (peak - end) * left


def one_cycle(t, peak, total, rise, start, end):
    if t < rise:
        return peak + (start - peak) * half_cosine(t / rise)
    return end + (peak - end) * half_cosine((min(t, total) - rise) / (total - rise))


def warm(t, w, start, formula):
    return start + (formula(0) - start) * t / w if t < w else formula(t - w)


#: name: (schedule, the formula of an update, updates at which something happens)
CASES = {
    "constant": (s.constant(0.3), lambda t: 0.3, []),
    "linear": (s.linear(0.3, total_steps=60), lambda t: linear(t, 0.3, 60), [60]),
    "linear to": (
        s.linear(0.3, total_steps=60, end=0.01),
        lambda t: linear(t, 0.3, 60, 0.01),
        [60],
    ),
    "linear, one step": (s.linear(0.3, total_steps=1), lambda t: linear(t, 0.3, 1), [1]),
    "polynomial": (
        s.polynomial(0.3, total_steps=60, power=2.5, end=0.01),
        lambda t: 0.01 + 0.29 * (1 - min(t, 60) / 60) ** 2.5,
        [60],
    ),
    "polynomial, default": (
        s.polynomial(0.3, total_steps=60),
        lambda t: 0.3 * (1 - min(t, 60) / 60) ** 2,
        [60],
    ),
    "exponential": (
        s.exponential(0.3, decay_steps=7, decay_rate=0.8),
        lambda t: 0.3 * 0.8 ** (t / 7),
        [7],
    ),
    "exponential, staircase": (
        s.exponential(0.3, decay_steps=7, decay_rate=0.8, staircase=True),
        lambda t: 0.3 * 0.8 ** (t // 7),
        [7, 700],
    ),
    "cosine": (
        s.cosine(0.3, total_steps=60, end=0.01),
        lambda t: cosine(t, 0.3, 60, 0.01),
        [60],
    ),
    "restarts, equal": (
        s.cosine_restarts(0.3, restart_every=7),
        lambda t: restarts(t, 0.3, 7, 1, 1, 0.0),
        [7, 700],
    ),
    "restarts, longer and lower": (
        s.cosine_restarts(0.3, restart_every=3, t_mul=2, m_mul=0.7, end=0.02),
        lambda t: restarts(t, 0.3, 3, 2, 0.7, 0.02),
        [3, 9, 21, 45, 93, 189, 3 * (2**20 - 1)],
    ),
    "restarts, 1.5": (
        s.cosine_restarts(0.3, restart_every=10, t_mul=1.5),
        lambda t: restarts(t, 0.3, 10, 1.5, 1, 0.0),
        [10, 25, 48, 81],
    ),
    "inverse_sqrt": (
        s.inverse_sqrt(0.3, decay_steps=20),
        lambda t: 0.3 * math.sqrt(20 / (t + 20)),
        [],
    ),
    "inverse_sqrt, Transformer": (
        s.warmup(s.inverse_sqrt(0.3, decay_steps=20), 20),
        lambda t: 0.3 * min(t / 20, math.sqrt(20 / max(t, 1))),
        [20],
    ),
    "inverse_sqrt, T5": (
        s.warmup(s.inverse_sqrt(20**-0.5, decay_steps=20), 20, start=20**-0.5),
        lambda t: 1 / math.sqrt(max(t, 20)),
        [20],
    ),
    "noam": (
        s.noam(64, warmup_steps=20, factor=2.0),
        lambda t: 2 * 64**-0.5 * min((t + 1) ** -0.5, (t + 1) * 20**-1.5),
        [19],
    ),
    **{
        f"wsd, {shape}": (
            s.wsd(0.3, warmup_steps=10, total_steps=60, decay_steps=15, end=0.01, decay=shape),
            lambda t, shape=shape: wsd(t, 0.3, 10, 60, 15, 0.01, shape),
            [10, 45, 60],
        )
        for shape in ("linear", "cosine", "sqrt")
    },
    "wsd, nothing stable": (
        s.wsd(0.3, warmup_steps=0, total_steps=60, decay_steps=60),
        lambda t: linear(t, 0.3, 60),
        [60],
    ),
    "one_cycle": (
        s.one_cycle(0.3, total_steps=60),
        lambda t: one_cycle(t, 0.3, 60, 18, 0.3 / 25, 0.3 / 25 / 1e4),
        [18, 60],
    ),
    "one_cycle, set": (
        s.one_cycle(0.3, total_steps=2, pct_start=0.9, div_factor=10, final_div_factor=2),
        lambda t: one_cycle(t, 0.3, 2, 1, 0.03, 0.015),
        [1, 2],
    ),
    "warmup_linear": (
        s.warmup_linear(1e-3, warmup_steps=10, total_steps=60, end=1e-4),
        lambda t: warm(t, 10, 0.0, lambda u: linear(u, 1e-3, 50, 1e-4)),
        [10, 60],
    ),
    "warmup_linear, of 1": (
        s.warmup_linear(1e-3, warmup_steps=1, total_steps=60),
        lambda t: warm(t, 1, 0.0, lambda u: linear(u, 1e-3, 59)),
        [1, 60],
    ),
    "warmup_linear, none": (
        s.warmup_linear(1e-3, warmup_steps=0, total_steps=60),
        lambda t: linear(t, 1e-3, 60),
        [60],
    ),
    "warmup_cosine": (
        s.warmup_cosine(1e-3, warmup_steps=10, total_steps=60, end=1e-4),
        lambda t: warm(t, 10, 0.0, lambda u: cosine(u, 1e-3, 50, 1e-4)),
        [10, 60],
    ),
}
# A warm-up goes before each of them.
for _name, (_schedule, _formula, _joints) in list(CASES.items()):
    CASES[f"warmed: {_name}"] = (
        s.warmup(_schedule, 5, start=0.05),
        lambda t, formula=_formula: warm(t, 5, 0.05, formula),
        [5, *(joint + 5 for joint in _joints)],
    )
#: These are tested in `make test` after a warm-up too.
WARMED = ("constant", "restarts, longer and lower", "inverse_sqrt", "wsd, sqrt", "one_cycle")
cases = pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            name,
            marks=pytest.mark.full
            if name.startswith("warmed: ") and name.removeprefix("warmed: ") not in WARMED
            else (),
        )
        for name in CASES
    ],
)


def steps_of(joints):
    """Return the first steps, those around each joint, and some far beyond the end."""
    near = {joint + d for joint in joints for d in (-1, 0, 1)}
    return sorted({*range(70), 1000, 100_000, *near})


@cases
def test_rates_are_the_formula_at_every_step(case):
    schedule, formula, joints = CASES[case]
    steps = steps_of(joints)
    expected = [formula(step) for step in steps]
    # As in an optimizer: compiled by XLA, with an integer step.
    rate = tf.function(schedule.wrap("keras"), jit_compile=True)
    compiled_rates = [float(rate(tf.constant(step, tf.int64))) for step in steps]
    np.testing.assert_allclose(compiled_rates, expected, rtol=1e-5, atol=1e-8)
    some = [0, 1, *joints, 99, 1000]
    eager = [float(schedule(step)) for step in some]
    np.testing.assert_allclose(eager, [formula(t) for t in some], rtol=1e-5, atol=1e-8)
    for library in LIBRARIES:
        wrapped = schedule.wrap(library)
        assert [float(wrapped(step)) for step in some] == eager


@sampled()
@libraries
def test_a_config_is_json_and_gives_the_same_schedule(library):
    schedules = keras_of(library).optimizers.schedules
    for schedule, _, joints in CASES.values():
        config = json.loads(json.dumps(schedules.serialize(schedule.wrap(library))))
        loaded = schedules.deserialize(config)
        assert repr(loaded.schedule) == repr(schedule)
        for step in [0, 3, *joints]:
            assert float(loaded(step)) == float(schedule(step))


def test_a_schedule_is_shown_as_it_is_made():
    names = {name: getattr(s, name) for name in s.__all__}
    for schedule, _, _ in CASES.values():
        assert repr(eval(repr(schedule), names)) == repr(schedule)


@pytest.mark.parametrize("name", ["warmup_linear", "warmup_cosine"])
def test_rates_rise_then_fall(name):
    schedule = getattr(s, name)(1e-3, warmup_steps=10, total_steps=60)
    rates = np.array([float(schedule(step)) for step in range(70)])
    assert (np.diff(rates[:11]) > 0).all()
    assert (np.diff(rates[10:61]) < 0).all()
    assert rates.max() == rates[10] == np.float32(1e-3)
    assert (rates[60:] == 0).all()


def test_rates_stay_between_zero_and_the_peak():
    for case, (schedule, formula, _) in CASES.items():
        if case.startswith(("warm", "restarts")):
            continue
        rates = np.array([float(schedule(step)) for step in range(0, 200, 3)])
        highest = max(formula(step) for step in range(200))
        assert (rates >= 0).all(), case
        assert rates.max() <= highest * (1 + 1e-6), case
        if case in ("linear", "polynomial", "exponential", "cosine", "inverse_sqrt"):
            assert (np.diff(rates) <= 0).all(), case


def test_cycles_restart_on_their_update():
    schedule = s.cosine_restarts(1.0, restart_every=10, t_mul=2, m_mul=0.5, end=0.1)
    for start, height in ((0, 1.0), (10, 0.5), (30, 0.25), (70, 0.125)):
        assert float(schedule(start)) == pytest.approx(height)
        if start:
            assert float(schedule(start - 1)) < height


# --- wrong numbers -------------------------------------------------------------------------------

VALID = {
    "constant": {"rate": 0.1},
    "linear": {"peak": 0.1, "total_steps": 10},
    "polynomial": {"peak": 0.1, "total_steps": 10},
    "exponential": {"peak": 0.1, "decay_steps": 10, "decay_rate": 0.5},
    "cosine": {"peak": 0.1, "total_steps": 10},
    "cosine_restarts": {"peak": 0.1, "restart_every": 10},
    "inverse_sqrt": {"peak": 0.1, "decay_steps": 10},
    "noam": {"model_dim": 64, "warmup_steps": 10},
    "one_cycle": {"peak": 0.1, "total_steps": 10},
    "warmup": {"schedule": s.constant(0.1), "steps": 10},
    "warmup_cosine": {"peak": 0.1, "warmup_steps": 10, "total_steps": 100},
    "warmup_linear": {"peak": 0.1, "warmup_steps": 10, "total_steps": 100},
    "wsd": {"peak": 0.1, "warmup_steps": 10, "total_steps": 100, "decay_steps": 20},
}
WRONG = [
    ("constant", "rate", -0.1, "`rate` must be >= 0"),
    ("polynomial", "power", 0, "`power` must be > 0"),
    ("exponential", "decay_steps", None, "`decay_steps` must be a whole number > 0"),
    ("exponential", "decay_rate", 1.1, r"`decay_rate` must be in \(0, 1\]"),
    ("exponential", "decay_rate", 0.0, r"`decay_rate` must be in \(0, 1\]"),
    ("cosine_restarts", "restart_every", None, "`restart_every` must be a whole number > 0"),
    ("cosine_restarts", "t_mul", 0.5, "`t_mul` must be >= 1"),
    ("cosine_restarts", "m_mul", 0.0, r"`m_mul` must be in \(0, 1\]"),
    ("inverse_sqrt", "decay_steps", 0, "`decay_steps` must be a whole number > 0"),
    ("noam", "model_dim", 0, "`model_dim` must be a whole number > 0"),
    ("noam", "warmup_steps", None, "`warmup_steps` must be a whole number > 0"),
    ("noam", "factor", 0.0, "`factor` must be > 0"),
    ("one_cycle", "pct_start", 1.0, "`pct_start` must be > 0 and < 1"),
    ("one_cycle", "div_factor", 0.5, "`div_factor` must be >= 1"),
    ("one_cycle", "final_div_factor", 0.5, "`final_div_factor` must be >= 1"),
    ("one_cycle", "total_steps", 1, "`total_steps` must be a whole number >= 2"),
    ("warmup", "steps", -1, "`steps` must be a whole number >= 0"),
    ("warmup", "steps", 1.5, "`steps` must be a whole number >= 0"),
    ("warmup", "start", -1.0, "`start` must be >= 0"),
    ("wsd", "warmup_steps", -1, "`warmup_steps` must be >= 0"),
    ("wsd", "decay_steps", None, "`decay_steps` must be a whole number > 0"),
    ("wsd", "total_steps", 29, "`total_steps` must be at least `warmup_steps` [+] `decay_steps`"),
    ("wsd", "decay", "root", r"`decay` must be one of \('linear', 'cosine', 'sqrt'\)"),
    *(
        (name, "total_steps", wrong, "`total_steps` must be a whole number > 0: a schedule that")
        for name in ("linear", "polynomial", "cosine", "wsd")
        for wrong in (None, 0, 2.5, "10")
    ),
    *(
        (name, *rest)
        for name in ("warmup_linear", "warmup_cosine")
        for rest in (
            ("peak", 0.0, "`peak` must be > 0"),
            ("warmup_steps", -1, "`warmup_steps` must be >= 0"),
            ("total_steps", 10, "`total_steps` must be greater than `warmup_steps`"),
            ("total_steps", None, "`total_steps` must be greater than `warmup_steps`"),
            ("total_steps", 10.5, "`total_steps` must be greater than `warmup_steps`, and whole"),
            ("end", -1.0, "`end` must be >= 0"),
        )
    ),
    *(
        (name, "peak", wrong, "`peak` must be > 0")
        for name, sound in VALID.items()
        if "peak" in sound
        for wrong in (0.0, math.nan, math.inf, None, True)
    ),
    *(
        (name, "end", wrong, "`end` must be >= 0")
        for name in ("linear", "polynomial", "cosine", "cosine_restarts", "wsd")
        for wrong in (-0.1, None)
    ),
]


@pytest.mark.parametrize("name", VALID)
def test_numbers_out_of_range_are_refused(name):
    cases = [case[1:] for case in WRONG if case[0] == name]
    assert cases
    for argument, wrong, rule in cases:
        with pytest.raises(ValueError, match=rule) as caught:
            getattr(s, name)(**{**VALID[name], argument: wrong})
        assert f"{argument}={wrong!r}" in str(caught.value)
        assert "Steps are optimizer updates: batches per epoch times epochs." in str(caught.value)


def test_a_decay_without_total_steps_says_what_they_are():
    message = r"`total_steps` must be .*batches per epoch times epochs"
    for name, sound in VALID.items():
        if "total_steps" in sound:
            with pytest.raises(ValueError, match=message):
                getattr(s, name)(**{k: v for k, v in sound.items() if k != "total_steps"})


def test_every_public_schedule_is_tested():
    assert {*VALID, "Schedule"} == set(s.__all__)
    assert {schedule.name for schedule, _, _ in CASES.values()} | {
        "warmup_linear",
        "warmup_cosine",
    } == set(VALID)


def test_only_our_schedules_can_be_warmed_up():
    import keras

    theirs = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    for wrong in (theirs, 0.1):
        with pytest.raises(TypeError, match=r"`schedule` must be one of `ke\.schedules`"):
            s.warmup(wrong, 10)


@libraries
@pytest.mark.parametrize("name", ["os", "Schedule", "lazily"])
def test_a_saved_schedule_names_only_our_functions(library, name):
    wrapper = type(s.constant(1.0).wrap(library))
    with pytest.raises(ValueError, match=r"must name a function of keras_efficient\.schedules"):
        wrapper(name, {})


# --- in a model ----------------------------------------------------------------------------------


def specimen_of(library):
    name = {"keras": "keras-sequential", "tf_keras": "tf_keras-functional"}[library]
    return next(specimen for specimen in ZOO if specimen.name == name)


# Keras 3 cannot continue training from its own HDF5 files.
@sampled()
@pytest.mark.parametrize(
    ("library", "suffix"), [("keras", "keras"), ("tf_keras", "keras"), ("tf_keras", "h5")]
)
def test_a_model_is_saved_with_optimizer_and_schedule(library, suffix, tmp_path):
    specimen = specimen_of(library)
    rate = s.warmup(s.cosine_restarts(0.1, restart_every=4, t_mul=2), 2)
    optimizer = ke.optimizers.AdamW(
        rate, weight_decay=0.1, exclude=ke.optimizers.NO_DECAY, library=library
    )
    model = compiled(library, specimen.make(), optimizer, run_eagerly=True)
    x, y = specimen.batch(12)
    fit(model, x, y, epochs=3)
    optimizer._learning_rate.scale.assign(0.5)
    path = str(tmp_path / f"model.{suffix}")
    model.save(path)
    loaded = keras_of(library).models.load_model(path)
    assert tuple(loaded.optimizer.get_config()["exclude"]) == ke.optimizers.NO_DECAY
    schedule = loaded.optimizer._learning_rate
    assert repr(schedule.schedule) == repr(rate)
    assert float(schedule.scale) == 0.5
    assert int(loaded.optimizer.iterations) == 3
    # Both continue the training in the same way.
    fit(model, x, y)
    fit(loaded, x, y)
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def scalar_model(library, rate, **kwargs):
    """Return a model with one weight whose gradient is -1: each update adds the rate to it."""
    keras = keras_of(library)
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
    model = keras.Sequential([keras.layers.Input((1,)), layer])
    model.compile(keras.optimizers.SGD(rate), lambda y, p: -p, **kwargs)
    return model


def grown(model, updates=1, **kwargs):
    before = model.get_weights()[0].item()
    ones = np.ones((4 * updates, 1), "float32")
    model.fit(ones, ones, batch_size=4, verbose=0, shuffle=False, **kwargs)
    return model.get_weights()[0].item() - before


@sampled()
@pytest.mark.parametrize(("library", "jit"), covering(LIBRARIES, [False, True], strength=1))
def test_rates_are_counted_in_updates(library, jit):
    schedule = s.warmup(s.exponential(0.1, decay_steps=2, decay_rate=0.5, staircase=True), 2)
    model = scalar_model(library, schedule.wrap(library), jit_compile=jit)
    grew = [grown(model) for _ in range(7)]
    np.testing.assert_allclose(grew, [0, 0.05, 0.1, 0.1, 0.05, 0.05, 0.025], rtol=1e-5)


@pytest.mark.parametrize(("library", "jit"), covering(LIBRARIES, [True, False], strength=1))
def test_scale_changes_the_rate_without_tracing(library, jit):
    traces = []

    class Counted(ke.schedules.Schedule):
        def __call__(self, step):
            traces.append(None)
            return super().__call__(step)

    constant = s.constant(0.1)
    wrapped = Counted(constant.function, constant.arguments).wrap(library)
    model = scalar_model(library, wrapped, jit_compile=jit)
    assert grown(model) == pytest.approx(0.1)
    traced = len(traces)
    wrapped.scale.assign(0.5)
    assert grown(model) == pytest.approx(0.05)

    class Halve(ke.flavor.Callback):
        def on_train_batch_end(self, batch, logs=None):
            wrapped.scale.assign(wrapped.scale * 0.5)

    # 0.05, 0.025, 0.0125
    assert grown(model, 3, callbacks=[Halve()]) == pytest.approx(0.0875)
    assert len(traces) == traced


@libraries
def test_a_wrapped_schedule_is_copied_with_its_scale(library):
    wrapped = s.warmup_cosine(0.1, warmup_steps=2, total_steps=20).wrap(library)
    wrapped.scale.assign(0.25)
    for other in (copy.deepcopy(wrapped), type(wrapped).from_config(wrapped.get_config())):
        assert float(other(5)) == float(wrapped(5)) > 0
        other.scale.assign(1.0)
        assert float(wrapped.scale) == 0.25
    optimizer = keras_of(library).optimizers.SGD(wrapped)
    again = type(optimizer).from_config(optimizer.get_config())
    assert float(again._learning_rate(5)) == float(wrapped(5))
    # It is not part of the optimizer's state, so checkpoints do not change.
    assert len(list(optimizer.variables)) == 1


@sampled()
@libraries
def test_scale_is_read_by_each_replica(library):
    strategy = mirrored()
    with strategy.scope():
        inside = s.constant(0.1).wrap(library)
        model = scalar_model(library, inside)
    assert "Mirrored" in type(inside.scale).__name__
    inside.scale.assign(0.5)
    assert grown(model) == pytest.approx(0.05)
    outside = s.constant(0.1).wrap(library)
    outside.scale.assign(0.5)
    rates = strategy.run(tf.function(lambda: outside(1)))
    assert {float(rate) for rate in strategy.experimental_local_results(rates)} == {
        np.float32(0.1) * np.float32(0.5)
    }
