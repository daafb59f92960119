"""A learning-rate schedule that belongs to neither Keras."""

from keras_efficient import flavor as flavors

#: A function `linear_rate` computes what the schedule `linear` is.
_SUFFIX = "_rate"


class Schedule:
    """A learning rate as a function of the update count.

    Args:
        function: `(step, **arguments) -> rate`, in TensorFlow operations; `step` is a float32
            scalar tensor, counted in optimizer updates from 0. The functions of this room are
            called `linear_rate`, `cosine_rate` ... after the public `linear`, `cosine` ... that
            make schedules of them, and take the same arguments.
        arguments: dict of plain values, or schedules.

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
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{self.name}({arguments})"

    @property
    def name(self):
        """The name of the function that made this schedule: `ke.schedules.<name>`."""
        return self.function.__name__.removesuffix(_SUFFIX)

    def wrap(self, library):
        """This schedule as a `LearningRateSchedule` of `library` ("keras", "tf_keras").

        The optimizers of this package do it themselves. Keras' own take a wrapped schedule:
        `keras.optimizers.SGD(schedule.wrap("keras"))`.

        What it returns has an attribute `scale`, a float32 `tf.Variable` of 1.0 by which the rate
        is multiplied. Assign to it to lower the rate of a running `fit`: nothing is traced anew.
        (Under a distribution strategy, wrap inside its scope.)
        """
        from keras_efficient.schedules._keras_schedule import wrapper

        return wrapper(flavors.get(library).keras)(self)

    def to_config(self):
        """This schedule as plain values, for JSON."""
        arguments = {
            name: value.to_config() if isinstance(value, Schedule) else value
            for name, value in self.arguments.items()
        }
        return {"schedule": self.name, "arguments": arguments}

    @classmethod
    def from_config(cls, config):
        """The schedule of which `config` is the `to_config`.

        Raises:
            ValueError: it names something that is no function of `keras_efficient.schedules`, or
                has arguments out of range.
        """
        from keras_efficient import schedules

        name = config["schedule"]
        if name not in schedules.__all__ or name == cls.__name__:
            raise ValueError(
                "A saved schedule must name a function of keras_efficient.schedules. Received: "
                f"{name!r}. If the file is your own, it was saved by another version of the "
                "package: load the model with compile=False and compile it anew."
            )
        arguments = {
            name: cls.from_config(value) if isinstance(value, dict) else value
            for name, value in config["arguments"].items()
        }
        return getattr(schedules, name)(**arguments)
