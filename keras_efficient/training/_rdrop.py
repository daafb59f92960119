"""R-Drop: a penalty on the divergence of predictions under two dropout masks."""

from contextlib import contextmanager
from dataclasses import dataclass

import tensorflow as tf

from keras_efficient.flavor._patched import patched


def symmetric_divergence(one, other, from_logits: bool, mask=None):
    """Return the mean of (KL(p‖q) + KL(q‖p)) / 2 for two predictions `[..., classes]`.

    A single output per example, `[..., 1]`, is a logit or probability of two classes. With a `mask`
    `[...]`, the mean is over the positions where it is true.
    """
    logs = [_log_probabilities(tf.cast(p, tf.float32), from_logits) for p in (one, other)]
    p, q = map(tf.exp, logs)
    divergence = 0.5 * tf.reduce_sum((p - q) * (logs[0] - logs[1]), -1)
    if mask is None:
        return tf.reduce_mean(divergence)
    mask = tf.cast(mask, tf.float32)
    return tf.math.divide_no_nan(tf.reduce_sum(divergence * mask), tf.reduce_sum(mask))


def _log_probabilities(prediction, from_logits):
    if from_logits and prediction.shape[-1] == 1:
        prediction = tf.concat([prediction, tf.zeros_like(prediction)], -1)
    if from_logits:
        return tf.nn.log_softmax(prediction)
    if prediction.shape[-1] == 1:
        prediction = tf.concat([prediction, 1.0 - prediction], -1)
    return tf.math.log(tf.clip_by_value(prediction, 1e-7, 1.0))


@dataclass(frozen=True)
class RDrop:
    """Penalty α times the divergence of the two halves of a doubled microbatch.

    Attributes:
        alpha: float, α.
        from_logits: whether the model's outputs are logits. Default: None, read from the compiled
            loss.
    """

    alpha: float
    from_logits: bool | None = None

    def doubled(self, data):
        """Return a microbatch followed by its copy."""
        return tf.nest.map_structure(lambda t: None if t is None else tf.concat([t, t], 0), data)

    def __call__(self, flavor, model, y_pred):
        """Return the penalty on the outputs of a doubled microbatch, a mean over its examples."""
        # The outputs of Hugging Face models name their logits.
        from_logits = self.from_logits or hasattr(y_pred, "logits")
        if self.from_logits is None and not from_logits:
            from_logits = flavor.from_logits(model)
        y_pred = getattr(y_pred, "logits", y_pred)
        terms = []
        for output in tf.nest.flatten(y_pred):
            one, other = tf.split(output, 2)
            # Leave out padding, as the loss does.
            mask = getattr(output, "_keras_mask", None)
            mask = None if mask is None else tf.split(mask, 2)[0]
            terms.append(symmetric_divergence(one, other, from_logits, mask))
        return self.alpha * tf.add_n(terms)

    @contextmanager
    def watching(self, flavor, model):
        """Yield a function that returns the penalty on the model's last outputs in the context."""
        plain, outputs = model.call, []

        def call(*args, **kwargs):
            outputs.append(plain(*args, **kwargs))
            return outputs[-1]

        with patched(model, call=call):
            yield lambda: self(flavor, model, outputs[-1])
