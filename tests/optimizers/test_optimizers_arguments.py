"""The arguments of the optimizers: what is rejected, and with which message."""

import inspect

import pytest
from formulas import EQUATIONS
from zoo import keras_of

import keras_efficient as ke

libraries = pytest.mark.parametrize("library", ["keras", "tf_keras"])
kinds = pytest.mark.parametrize("kind", EQUATIONS)
others = pytest.mark.parametrize(
    ("library", "other"), [("keras", "tf_keras"), ("tf_keras", "keras")]
)


@others
def test_each_library_refuses_the_others_optimizer(library, other):
    keras = keras_of(library)
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="Could not interpret optimizer"):
        model.compile(ke.optimizers.AdamW(library=other), "mse")


@kinds
@libraries
def test_a_model_names_its_library(kind, library):
    keras = keras_of(library)
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1)])
    optimizer = getattr(ke.optimizers, kind)(library=model)
    assert isinstance(optimizer, keras.optimizers.Optimizer)
    assert type(optimizer).__name__ == kind
    model.compile(optimizer, "mse")


@kinds
def test_an_unknown_library_is_refused(kind):
    with pytest.raises(ValueError, match="`library` must be one of"):
        getattr(ke.optimizers, kind)(library="torch")


@others
def test_a_schedule_of_the_other_library_is_refused(library, other):
    """Trap 36: Keras 3 would accept it, and fail in `fit`."""
    rate = keras_of(other).optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    with pytest.raises(TypeError, match=f"own library, {library}.*an object of {other}"):
        ke.optimizers.AdamW(rate, library=library)
    rate = ke.schedules.warmup_linear(1.0, warmup_steps=1, total_steps=2).wrap(other)
    with pytest.raises(TypeError, match=f"own library, {library}.*an object of {other}"):
        ke.optimizers.LAMB(rate, library=library)


@pytest.mark.parametrize("rate", ["1e-5", None, [0.1]])
def test_a_rate_is_a_number_or_a_schedule(rate):
    with pytest.raises(
        TypeError, match=r"`learning_rate` must be a number, a `ke\.schedules`.*not a schedule"
    ):
        ke.optimizers.SGD(rate)


@libraries
def test_a_rate_may_be_an_integer(library):
    assert float(ke.optimizers.SGD(1, library=library).learning_rate) == 1.0


@kinds
def test_shared_numbers_out_of_range_are_refused(kind):
    for argument, value in [
        ("learning_rate", -0.1),
        ("learning_rate", True),
        ("weight_decay", -0.1),
        ("weight_decay", None),
        ("weight_decay", float("nan")),
        ("global_clipnorm", 0),
        ("layerwise_decay", 0),
        ("layerwise_decay", 1.5),
        ("layerwise_decay", "0.9"),
    ]:
        with pytest.raises(ValueError, match=rf"`{argument}` must be .*Received"):
            getattr(ke.optimizers, kind)(**{argument: value})


@pytest.mark.parametrize(
    ("kind", "argument", "value", "span"),
    [
        ("AdamW", "beta_1", 1.0, r"in \[0, 1\)"),
        ("AdamW", "beta_2", -0.1, r"in \[0, 1\)"),
        ("AdamW", "epsilon", 0.0, "> 0"),
        ("LAMB", "beta_1", 1.5, r"in \[0, 1\)"),
        ("LAMB", "beta_2", 1, r"in \[0, 1\)"),
        ("LAMB", "epsilon", -1e-6, "> 0"),
        ("Lion", "beta_1", 0.0, r"in \(0, 1\)"),
        ("Lion", "beta_2", 1.0, r"in \[0, 1\)"),
        ("SGD", "momentum", 1.0, r"in \[0, 1\)"),
        ("Adafactor", "clip_threshold", 0, "> 0"),
    ],
)
def test_own_numbers_out_of_range_are_refused(kind, argument, value, span):
    with pytest.raises(ValueError, match=f"`{argument}` must be a number {span}. Received"):
        getattr(ke.optimizers, kind)(**{argument: value})


@kinds
def test_a_misspelt_argument_is_a_type_error(kind):
    with pytest.raises(TypeError, match="weigth_decay"):
        getattr(ke.optimizers, kind)(weigth_decay=0.1)


@kinds
def test_the_shared_arguments_are_explained_in_the_same_words(kind):
    """Static tools read the docstrings, so each optimizer repeats this text."""
    shared = [_shared_arguments(getattr(ke.optimizers, name)) for name in (kind, "AdamW")]
    assert shared[0] == shared[1]
    for argument in ("exclude", "groups", "layerwise_decay", "global_clipnorm", "library"):
        assert f"        {argument}: " in shared[0]


def _shared_arguments(factory):
    text = factory.__doc__
    return text[text.index("        exclude: ") : text.index("    Returns:")]


@kinds
def test_the_shared_arguments_have_the_same_defaults(kind):
    parameters, expected = (
        inspect.signature(getattr(ke.optimizers, name)).parameters for name in (kind, "AdamW")
    )
    for argument in ("exclude", "groups", "layerwise_decay", "global_clipnorm", "library"):
        assert parameters[argument] == expected[argument]
