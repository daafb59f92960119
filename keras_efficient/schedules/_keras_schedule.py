"""The `LearningRateSchedule` class of each library that wraps a `Schedule`."""

import functools
from typing import Any

import tensorflow as tf


@functools.cache
def keras_schedule_class(keras: Any, schedule_class: type) -> type:
    """Create and register a library's `LearningRateSchedule` class for schedules of this package.

    Args:
        keras: the module `keras` or `tf_keras`.
        schedule_class: `Schedule`.

    Returns:
        The class, which takes a `Schedule`, or the name and arguments of its configuration, and is
        saved and loaded with a model.
    """

    @keras.utils.register_keras_serializable(package="keras_efficient", name="Schedule")
    class KerasEfficientSchedule(keras.optimizers.schedules.LearningRateSchedule):
        def __init__(self, schedule, arguments=None, scale: Any = 1.0):
            super().__init__()
            if not isinstance(schedule, schedule_class):
                from_config: Any = schedule_class
                schedule = from_config.from_config({"schedule": schedule, "arguments": arguments})
            self.schedule = schedule
            # Without this, a schedule wrapped while tracing would own a variable of that graph.
            with tf.init_scope():
                self.scale = tf.Variable(
                    scale,
                    trainable=False,
                    dtype=tf.float32,
                    aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
                    name="learning_rate_scale",
                )

        def __call__(self, step):
            return self.schedule(step) * self.scale

        def get_config(self):
            return {**self.schedule.to_config(), "scale": float(self.scale.numpy())}

    # tf_keras' HDF5 files look up classes by their own name, not by the registered one.
    keras.utils.get_custom_objects()[KerasEfficientSchedule.__name__] = KerasEfficientSchedule
    return KerasEfficientSchedule
