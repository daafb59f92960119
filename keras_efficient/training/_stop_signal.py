"""Stop signal from one process to all, sent with the all-reduce of an update."""

import tensorflow as tf

from keras_efficient.flavor import Model
from keras_efficient.training import _replicas as replicas


class StopSignal:
    """Flag that any process may raise and that all receive after the same update.

    Workers that train together must stop after the same step: if one stopped alone, the others
    would wait for its gradients.
    """

    def __init__(self, model: Model):
        self._strategy = model.distribute_strategy
        with self._strategy.scope(), tf.init_scope():
            self._sent, self._received = replicas.variable(0.0), replicas.variable(0.0)

    def send(self):
        """Raise the flag; all processes receive it with the next update."""
        for part in self._parts(self._sent):
            part.assign(1.0)

    @property
    def received(self) -> bool:
        """Whether any process had raised the flag before the last update."""
        return bool(self._parts(self._received)[0].numpy())

    def _parts(self, variable):
        return self._strategy.experimental_local_results(variable)

    # --- in the graph, on every replica --------------------------------------------------------

    def local_value(self, dtype):
        """Return this replica's term of the sum."""
        # A collective takes tensors, not variables.
        return tf.cast(replicas.local(self._sent).read_value(), dtype)

    def receive(self, total):
        """Store whether the sum over replicas is above zero."""
        replicas.local(self._received).assign(tf.cast(total > 0, tf.float32))
