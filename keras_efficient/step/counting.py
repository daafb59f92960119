"""Count the examples, tokens and positions that training steps see, in their graph."""

import tensorflow as tf

from keras_efficient.step import hook
from keras_efficient.step.microbatches import batch_size

#: What KerasHub, Hugging Face and Model Garden call the mask of real tokens.
MASKS = ("padding_mask", "attention_mask", "input_mask")


class Counts:
    """Running totals: `[examples, real tokens, positions]`."""

    def __init__(self):
        self.totals = tf.Variable([0, 0, 0], dtype=tf.int64, trainable=False)

    def __call__(self, data):
        features = data[0] if isinstance(data, tuple | list) else data
        tokens = positions = 0
        if isinstance(features, dict):
            masks = [features[name] for name in MASKS if features.get(name) is not None]
            if masks:
                tokens = tf.math.count_nonzero(masks[0])
                positions = tf.size(masks[0], tf.int64)
        counts = [batch_size(features), tokens, positions]
        self.totals.assign_add(tf.stack([tf.cast(count, tf.int64) for count in counts]))

    def read(self):
        """The totals so far, as a NumPy array."""
        return self.totals.numpy()


def attach(model) -> Counts:
    """Count from the next training step of `model` on."""
    counts = Counts()
    hook.attach(model).observers.append(counts)
    return counts


def detach(model, counts):
    """Stop counting."""
    hook.attach(model).observers.remove(counts)
    hook.detach_if_idle(model)
