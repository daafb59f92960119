"""The compiled loss of a batch in inference mode."""

import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.flavor import Model


def batch_loss(model: Model, batch: tuple) -> tf.Tensor:
    """Return the compiled loss of a batch in inference mode, as a scalar."""
    flavor = flavors.of(model)
    x, y, sample_weight = batch
    outputs = flavor.call(model, x, training=False)
    outputs = getattr(outputs, "logits", outputs)
    with flavor.without_replica_scaling():
        loss, _ = flavor._compiled_loss(model, x, y, outputs, sample_weight)
    return loss


# --- structured OBS ------------------------------------------------------------------------------
