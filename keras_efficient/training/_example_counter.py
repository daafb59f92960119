"""Count the examples, tokens and positions that training steps see, in their graph."""

import tensorflow as tf

from keras_efficient.training import _replicas as replicas
from keras_efficient.training import _train_step_hook as train_step_hook
from keras_efficient.training._batch_split import MASKS
from keras_efficient.training._microbatch_loop import batch_size


class ExampleCounter:
    """Running totals: `[examples, real tokens, positions]`."""

    def __init__(self, model):
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

    def read(self):
        """The totals so far, as a NumPy array."""
        return self.totals.read_value().numpy()


def attach(model) -> ExampleCounter:
    """Count from the next training step of `model` on."""
    counts = ExampleCounter(model)
    train_step_hook.attach(model).observers.append(counts)
    return counts


def detach(model, counts):
    """Stop counting."""
    train_step_hook.attach(model).observers.remove(counts)
    train_step_hook.detach_if_idle(model)
