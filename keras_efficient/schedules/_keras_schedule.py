"""A schedule as each library's optimizers want it."""

import functools

import tensorflow as tf

from keras_efficient.schedules._schedule import Schedule


@functools.cache
def wrapper(keras):
    """The `LearningRateSchedule` class of a library, which saves and loads with the model.

    It takes a `Schedule`, or the parts of its config.
    """

    @keras.utils.register_keras_serializable(package="keras_efficient", name="Schedule")
    class KerasEfficientSchedule(keras.optimizers.schedules.LearningRateSchedule):
        def __init__(self, schedule, arguments=None, scale=1.0):
            super().__init__()
            if not isinstance(schedule, Schedule):
                schedule = Schedule.from_config({"schedule": schedule, "arguments": arguments})
            self.schedule = schedule
            # Whoever wraps a schedule in a traced function would else get a variable of its graph.
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

    # tf_keras' HDF5 files look classes up by their own name only, not by the registered one.
    keras.utils.get_custom_objects()[KerasEfficientSchedule.__name__] = KerasEfficientSchedule
    return KerasEfficientSchedule
