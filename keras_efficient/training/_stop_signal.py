"""A word from one process to all, in the all-reduce that every update makes anyway."""

import tensorflow as tf

from keras_efficient.training import _replicas as replicas


class StopSignal:
    """Said by any process, heard by all after the same update.

    Workers that train together must stop at the same step: one that stopped alone would leave the
    others waiting for its gradients.
    """

    def __init__(self, model):
        self._strategy = model.distribute_strategy
        with self._strategy.scope(), tf.init_scope():
            self._said, self._heard = replicas.variable(0.0), replicas.variable(0.0)

    def say(self):
        """Let everyone hear it with the next update."""
        for part in self._parts(self._said):
            part.assign(1.0)

    @property
    def heard(self) -> bool:
        """Whether anyone has said it before the last update."""
        return bool(self._parts(self._heard)[0].numpy())

    def _parts(self, variable):
        return self._strategy.experimental_local_results(variable)

    # --- in the graph, in every replica --------------------------------------------------------

    def word(self, dtype):
        """What this replica adds to the sum."""
        # (Read: the collective takes no variable.)
        return tf.cast(replicas.here(self._said).read_value(), dtype)

    def hear(self, sum_of_words):
        """Take the sum over all replicas."""
        replicas.here(self._heard).assign(tf.cast(sum_of_words > 0, tf.float32))
