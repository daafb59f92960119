"""`Schedule`, a learning-rate schedule that both libraries can use."""

import sys
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.flavor import Model, Tensor
from keras_efficient.schedules._keras_schedule import keras_schedule_class

#: The function `linear_rate` computes the schedule `linear`.
_SUFFIX = "_rate"


class Schedule:
    """A learning rate as a function of the number of optimizer updates made so far.

        rate(t) = function(t, **arguments)

    Create one with a function of `ke.schedules`, such as `ke.schedules.linear`, or from a function
    of your own. Only the former can be saved with a model.

    Args:
        function: `(step, **arguments) -> rate`, made of TensorFlow operations. `step` is a float32
            scalar tensor, counted in optimizer updates from 0, and the rate is one as well. The
            functions of this package are named `linear_rate`, `cosine_rate` and so on after the
            public `linear`, `cosine` and so on, and take the same arguments.
        arguments: dict of JSON values or schedules.

    Attributes:
        function: the function.
        arguments: dict of its arguments.

    Examples:
        >>> schedule = ke.schedules.warmup_linear(1e-3, warmup_steps=10, total_steps=100)
        >>> round(float(schedule(5)), 6)
        0.0005

    Reference:
        `optax.Schedule`; `keras.optimizers.schedules.LearningRateSchedule`.
    """

    def __init__(self, function: Callable[..., Tensor], arguments: dict[str, Any]):
        self.function, self.arguments = function, dict(arguments)

    def __call__(self, step: int | Tensor) -> Tensor:
        """Return the rate of update `step`, counted from 0, as a float32 scalar tensor."""
        return self.function(tf.cast(step, tf.float32), **self.arguments)

    def __repr__(self):
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{self.name}({arguments})"

    @property
    def name(self) -> str:
        """Name of the function in `ke.schedules` that creates this schedule."""
        return self.function.__name__.removesuffix(_SUFFIX)

    def wrap(self, library: str | Model) -> Any:
        """Return this schedule as a `LearningRateSchedule` of a library.

        The optimizers of this package do this themselves. Keras' own take the wrapped schedule:
        `keras.optimizers.SGD(schedule.wrap("keras"))`. Under a distribution strategy, call this
        inside the strategy's scope.

        Args:
            library: "keras" or "tf_keras", or an object of either library.

        Returns:
            The schedule, with an attribute `scale`: a float32 `tf.Variable`, 1.0 at first, that
            multiplies the rate. Assign to it to lower the rate during `fit`, without retracing.
        """
        return keras_schedule_class(flavors.get(library).keras, Schedule)(self)

    def to_config(self) -> dict[str, Any]:
        """Return this schedule as JSON values: `{"schedule": name, "arguments": {...}}`."""
        arguments = {
            name: value.to_config() if isinstance(value, Schedule) else value
            for name, value in self.arguments.items()
        }
        return {"schedule": self.name, "arguments": arguments}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Schedule":
        """Create the schedule that `to_config` described.

        Args:
            config: what `to_config` returned.

        Raises:
            ValueError: the name is not that of a function of `keras_efficient.schedules`, or an
                argument is out of its range.
        """
        # Looked up by name, as pickle does, so that this file imports none of the schedules.
        schedules: Any = sys.modules[__package__ or ""]
        name = config["schedule"]
        if name not in schedules.__all__ or name == cls.__name__:
            raise ValueError(
                "A saved schedule must name a function of keras_efficient.schedules. Received: "
                f"{name!r}. If the file is your own, another version of this package saved it: "
                "load the model with compile=False and compile it again."
            )
        arguments = {
            name: cls.from_config(value) if isinstance(value, dict) else value
            for name, value in config["arguments"].items()
        }
        return getattr(schedules, name)(**arguments)
