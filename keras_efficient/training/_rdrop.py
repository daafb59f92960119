"""R-Drop: two dropout masks for every example, whose predictions must agree."""

from contextlib import contextmanager
from dataclasses import dataclass

import tensorflow as tf

from keras_efficient.flavor._patched import patched


def symmetric_divergence(one, other, from_logits, mask=None):
    """(KL(p‖q) + KL(q‖p)) / 2 of two predictions `[..., classes]`, averaged over the rest.

    A single output per example ([..., 1]) is taken for a logit or probability of two classes.
    Where there is a `mask` `[...]`, the mean is over what it leaves.
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
    """α times the divergence of the two halves of a doubled microbatch.

    Attributes:
        alpha: float, α.
        from_logits: whether the model's outputs are logits; None asks the compiled loss.
    """

    alpha: float
    from_logits: bool | None = None

    def doubled(self, data):
        """Every example of a microbatch twice."""
        return tf.nest.map_structure(lambda t: None if t is None else tf.concat([t, t], 0), data)

    def __call__(self, flavor, model, y_pred):
        """The term for the outputs of a doubled microbatch, the mean over its examples."""
        # Hugging Face's outputs say what they are.
        from_logits = self.from_logits or hasattr(y_pred, "logits")
        if self.from_logits is None and not from_logits:
            from_logits = flavor.from_logits(model)
        y_pred = getattr(y_pred, "logits", y_pred)
        terms = []
        for output in tf.nest.flatten(y_pred):
            one, other = tf.split(output, 2)
            # As the loss does: padding has nothing to agree about.
            mask = getattr(output, "_keras_mask", None)
            mask = None if mask is None else tf.split(mask, 2)[0]
            terms.append(symmetric_divergence(one, other, from_logits, mask))
        return self.alpha * tf.add_n(terms)

    @contextmanager
    def watching(self, flavor, model):
        """A context that yields a function: the term of the model's last outputs inside."""
        plain, outputs = model.call, []

        def call(*args, **kwargs):
            outputs.append(plain(*args, **kwargs))
            return outputs[-1]

        with patched(model, call=call):
            yield lambda: self(flavor, model, outputs[-1])
