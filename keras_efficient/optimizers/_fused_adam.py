"""Adam's update as one operation of TensorFlow, on the slots of the library's optimizer."""

import functools
from typing import Any

import tensorflow as tf
from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext

from keras_efficient import flavor as flavors
from keras_efficient.optimizers._sparse_gradients import densify, unique_rows

#: The mixin's base class, which a type checker takes for any optimizer class.
_OptimizerBase: Any = object


class FusedAdamMixin(_OptimizerBase):
    """Compute a library's Adam by `ResourceApplyAdam`; goes before `PathRulesMixin`.

    The libraries express the update in some twenty operations, each of which reads and writes
    arrays of the variable's size. The fused operation computes the same formula in one pass, with
    the same slots. It rounds 1 - β to the variable's dtype, which changes v by about 1e-5 of itself
    in float32. Settings that it does not support are left to the library.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # One table for all traces of a function. Neither library tracks a function as state.
        self._zeros = functools.cache(_zeros)

    def _library_update(self, gradient, variable, rate, *learning_rate):
        if not self._fusible(variable):
            return super()._library_update(gradient, variable, rate, *learning_rate)
        index, _ = self._rule(variable)
        flavor, dtype = flavors.of(self), variable.dtype
        m, v = flavor.value(self._momentums[index]), flavor.value(self._velocities[index])
        time = tf.cast(self.iterations + 1, dtype)
        if self.beta_1 and self.beta_2 and _updates_rows_in_place(gradient, variable):
            _add_rows(m, gradient, (1 - self.beta_1) / self.beta_1, power=1)
            _add_rows(v, gradient, (1 - self.beta_2) / self.beta_2, power=2)
            gradient = self._zeros(variable.shape, dtype, variable.device)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=m.handle,
            v=v.handle,
            # As in the libraries, where `tf.cast` of a number rounds it to float32 first.
            beta1_power=tf.cast(self.beta_1, dtype) ** time,
            beta2_power=tf.cast(self.beta_2, dtype) ** time,
            lr=rate,
            beta1=tf.constant(self.beta_1, dtype),
            beta2=tf.constant(self.beta_2, dtype),
            epsilon=tf.constant(self.epsilon, dtype),
            grad=densify(gradient, variable),
        )

    def _fusible(self, variable):
        """Return whether the operation computes the library's update of a `tf.Variable`."""
        return not (
            self.amsgrad
            or getattr(self, "adaptive_epsilon", False)
            or variable.dtype not in (tf.float32, tf.float64)
            or isinstance(variable, tf.experimental.dtensor.DVariable)
        )

    def _clip_gradients(self, gradients):
        """Clip sparse gradients as their rows, each of which occurs once."""
        if not (self.clipnorm or self.global_clipnorm or self.clipvalue) or not _rows_allowed():
            return super()._clip_gradients(gradients)
        gradients = list(map(unique_rows, gradients))
        sparse = [isinstance(gradient, tf.IndexedSlices) for gradient in gradients]
        clipped = super()._clip_gradients(
            [g.values if rows else g for g, rows in zip(gradients, sparse, strict=True)]
        )
        return [
            tf.IndexedSlices(new, g.indices, g.dense_shape) if rows else new
            for new, g, rows in zip(clipped, gradients, sparse, strict=True)
        ]


def _rows_allowed() -> bool:
    """Return whether gradients may have a data-dependent number of rows here.

    XLA compiles none, and replicas would gather the rows instead of summing them.
    """
    graph = tf.compat.v1.get_default_graph()
    return not (
        tf.executing_eagerly() or tf.distribute.has_strategy() or GraphOrParentsInXlaContext(graph)
    )


def _updates_rows_in_place(gradient, variable) -> bool:
    """Return whether to add the rows of a gradient to the slots, instead of a dense gradient."""
    return isinstance(gradient, tf.IndexedSlices) and "CPU" in variable.device and _rows_allowed()


def _add_rows(slot, gradient, factor, power):
    """Add `factor` times a power of a gradient's rows to a slot, which Adam then decays.

    With a gradient of zeros Adam computes m ← β m. Adding (1-β)/β g to the rows of m before that
    gives β m + (1-β) g, as with the dense gradient, which is as large as the whole table and of
    which only few rows are not zero. glibc takes new memory for such an array in every step.
    """
    rows = unique_rows(gradient)
    values = tf.cast(rows.values, slot.dtype)
    slot.scatter_add(tf.IndexedSlices(factor * values**power, rows.indices))
    # A scatter switches the variable to a mode in which the dense update would copy all of it.
    tf.raw_ops.DisableCopyOnRead(resource=slot.handle)


def _zeros(shape, dtype, device) -> tf.Tensor:
    """Return zeros that the functions of a program share."""
    with tf.init_scope(), tf.device(device):
        return tf.zeros(shape, dtype)
