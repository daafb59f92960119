"""What the optimizers have in common at the door: checks, and the words for shared arguments."""

import math
from numbers import Real

from keras_efficient import flavor as flavors
from keras_efficient.schedules._schedule import Schedule

_SHARED = """exclude: regular expressions (or one); a variable whose path contains a match does not
            decay. `ke.optimizers.NO_DECAY` names biases and normalisation layers.
        groups: a mapping of regular expressions to `ke.optimizers.ParamGroup`s, or pairs of them: other
            rates and decays for the variables whose paths contain a match. The first match wins;
            `exclude` holds in every group.
        layerwise_decay: None, or a float in (0, 1], d: of L layers, layer i = 0 … L-1 learns at
            d^(L-i) times the rate, the embeddings at d^(L+1), the head at 1 (ELECTRA, BEiT). See
            `ke.optimizers.layer_depths`.
        global_clipnorm: None, or a float > 0: the gradients of all variables are scaled down
            together to this L2 norm.
        library: "keras" (default) or "tf_keras", or a model: each library's `compile` refuses
            the other's optimizers."""


def shared(factory):
    """Fill in `{shared}` in a docstring: the arguments that every optimizer has."""
    factory.__doc__ = factory.__doc__.replace("{shared}", _SHARED)
    return factory


def is_number(value):
    """Whether `value` is a finite real number (and not a bool)."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check(name, value, low=0.0, below=math.inf, *, exclusive=False):
    """A ValueError unless `value` is a number in [low, below), or in (low, below)."""
    if is_number(value) and low <= value < below and not (exclusive and value == low):
        return
    span = f"in {'(' if exclusive else '['}{low:g}, {below:g})"
    if below == math.inf:
        span = f"{'>' if exclusive else '>='} {low:g}"
    raise ValueError(
        f"`{name}` must be a number {span}. Received: {name}={value!r}. Leave it out for the "
        "default."
    )


def rate_for(flavor, rate):
    """`rate` as the optimizers of a library take it.

    Raises:
        TypeError: it is neither a number nor a schedule of this package or of that library.
        ValueError: it is negative.
    """
    if isinstance(rate, Schedule):
        return rate.wrap(flavor)
    if isinstance(rate, Real):
        check("learning_rate", rate)
        return float(rate)
    if isinstance(rate, flavor.keras.optimizers.schedules.LearningRateSchedule):
        return rate
    try:
        home = f"an object of {flavors.of(rate).name}"
    except TypeError:
        home = "no schedule"
    raise TypeError(
        "`learning_rate` must be a number, a `ke.schedules` schedule or a schedule of the "
        f"optimizer's own library, {flavor.name}. Received: {rate!r}, {home}. Use "
        "`ke.schedules`, which serve both libraries, or give `library=` the library of the model."
    )
