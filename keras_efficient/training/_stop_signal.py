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
            self._sent, self._received = replicas.variable(0.0), replicas.variable(0.0)

    def send(self):
        """Let everyone hear it with the next update."""
        for part in self._parts(self._sent):
            part.assign(1.0)

    @property
    def received(self) -> bool:
        """Whether anyone has said it before the last update."""
        return bool(self._parts(self._received)[0].numpy())

    def _parts(self, variable):
        return self._strategy.experimental_local_results(variable)

    # --- in the graph, in every replica --------------------------------------------------------

    def local_value(self, dtype):
        """What this replica adds to the sum."""
        # (Read: the collective takes no variable.)
        return tf.cast(replicas.local(self._sent).read_value(), dtype)

    def receive(self, total):
        """Take the sum over all replicas."""
        replicas.local(self._received).assign(tf.cast(total > 0, tf.float32))
