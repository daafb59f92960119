"""A learning-rate schedule that belongs to neither Keras, and its wrapper for each."""

import functools
import importlib

from keras_efficient import flavor as flavors


class Schedule:
    """A learning rate as a function of the update count.

    Args:
        function: `(step, **arguments) -> rate`, a public function of `keras_efficient.schedules`'
            modules in TensorFlow operations; `step` is a float32 scalar tensor, counted in
            optimizer updates from 0.
        arguments: dict of plain numbers.

    Example:
        >>> schedule = ke.schedules.warmup_linear(1e-3, warmup_steps=10, total_steps=100)
        >>> round(float(schedule(5)), 6)
        0.0005
    """

    def __init__(self, function, arguments):
        self.function, self.arguments = function, dict(arguments)

    def __call__(self, step):
        import tensorflow as tf

        return self.function(tf.cast(step, tf.float32), **self.arguments)

    def __repr__(self):
        arguments = ", ".join(f"{name}={value}" for name, value in self.arguments.items())
        return f"{self.function.__name__}({arguments})"

    def wrap(self, library):
        """This schedule as a `LearningRateSchedule` of `library` ("keras", "tf_keras").

        The optimizers of this package do it themselves. Keras' own take a wrapped schedule:
        `keras.optimizers.SGD(schedule.wrap("keras"))`.
        """
        flavor = flavors.get(library)
        return _wrapper(flavor.keras)(
            self.function.__module__, self.function.__name__, self.arguments
        )


@functools.cache
def _wrapper(keras):
    """The `LearningRateSchedule` class of a library, which saves and loads with the model."""

    @keras.utils.register_keras_serializable(package="keras_efficient")
    class Wrapped(keras.optimizers.schedules.LearningRateSchedule):
        def __init__(self, module, function, arguments):
            super().__init__()
            if not module.startswith("keras_efficient.schedules."):
                raise ValueError(
                    "A saved schedule must name a function of keras_efficient.schedules. "
                    f"Received: {module}.{function}. Do not load models from sources you do not "
                    "trust."
                )
            self.schedule = Schedule(getattr(importlib.import_module(module), function), arguments)

        def __call__(self, step):
            return self.schedule(step)

        def get_config(self):
            function = self.schedule.function
            return {
                "module": function.__module__,
                "function": function.__name__,
                "arguments": self.schedule.arguments,
            }

    return Wrapped
