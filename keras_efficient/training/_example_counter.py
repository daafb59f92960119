"""Counter of the examples, tokens and positions in training batches, kept in the graph."""

import numpy as np
import tensorflow as tf

from keras_efficient.flavor import Model
from keras_efficient.training import _replicas as replicas, _train_step_hook as train_step_hook
from keras_efficient.training._batch_split import MASKS
from keras_efficient.training._microbatch_loop import batch_size


class ExampleCounter:
    """Running totals `[examples, real tokens, positions]`; called with each batch."""

    def __init__(self, model: Model):
        with model.distribute_strategy.scope():
            self.totals = replicas.variable([0, 0, 0], tf.int64)
        self.variables = [self.totals]

    def __call__(self, data):
        features = data[0] if isinstance(data, tuple | list) else data
        tokens = positions = 0
        if isinstance(features, dict):
            masks = [features[name] for name in MASKS if features.get(name) is not None]
            if masks:
                tokens = tf.math.count_nonzero(masks[0])
                positions = tf.size(masks[0], tf.int64)
        counts = [batch_size(features), tokens, positions]
        replicas.local(self.totals).assign_add(
            tf.stack([tf.cast(count, tf.int64) for count in counts])
        )

    def read(self) -> np.ndarray:
        """Return the totals so far, int64 `[3]`."""
        return self.totals.read_value().numpy()


def attach(model: Model) -> ExampleCounter:
    """Start counting with the next training step of `model`."""
    counter = ExampleCounter(model)
    train_step_hook.attach(model).observers.append(counter)
    return counter


def detach(model: Model, counter: ExampleCounter):
    """Stop counting."""
    train_step_hook.attach(model).observers.remove(counter)
    train_step_hook.detach_if_idle(model)
