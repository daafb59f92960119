"""Projection of a student's hidden states to the width of a teacher's, which trains with it."""

import numpy as np
import tensorflow as tf

from keras_efficient.flavor import Model, Tensor

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-7


class Projection:
    """A matrix that Adam trains, with variables that belong to no model and to no optimizer.

    So the student, its optimizer and their files are the same with a projection and without.

    Args:
        model: the student, in whose strategy the variables are created.
        inputs: width of the student.
        outputs: width of the teacher.
        learning_rate: float.

    Attributes:
        matrix: float32 `[inputs, outputs]`; projected hidden states are as large as before.
        state: dict of all variables, by name.
    """

    def __init__(self, model: Model, inputs: int, outputs: int, learning_rate: float):
        self.learning_rate = learning_rate
        initial = np.random.default_rng(0).normal(size=(inputs, outputs)) / np.sqrt(inputs)
        with model.distribute_strategy.scope(), tf.init_scope():
            self.matrix = tf.Variable(initial.astype(np.float32), name="projection")
            self._m, self._v = (
                tf.Variable(tf.zeros(initial.shape), trainable=False) for _ in range(2)
            )
            self._updates = tf.Variable(tf.zeros([]), trainable=False)
        self.state = {
            "projection": self.matrix,
            "projection_m": self._m,
            "projection_v": self._v,
            "projection_updates": self._updates,
        }

    def update(self, gradient: Tensor) -> None:
        """Make a step of Adam, on every replica.

        Args:
            gradient: float32 `[inputs, outputs]`, the same on all replicas.
        """
        # After the gradient, since a batch that does not fit into memory is repeated.
        with tf.control_dependencies([gradient]):
            self._updates.assign_add(1.0)
        t = self._updates.read_value()
        self._m.assign(_BETA_1 * self._m + (1 - _BETA_1) * gradient)
        self._v.assign(_BETA_2 * self._v + (1 - _BETA_2) * tf.square(gradient))
        m, v = self._m / (1 - _BETA_1**t), self._v / (1 - _BETA_2**t)
        self.matrix.assign_sub(self.learning_rate * m / (tf.sqrt(v) + _EPSILON))
