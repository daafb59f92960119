"""R-Drop: a penalty on the divergence of predictions under two dropout masks."""

from contextlib import contextmanager
from dataclasses import dataclass

import tensorflow as tf

from keras_efficient.training._loss_terms import LossTerm, predictions


def symmetric_divergence(one, other, from_logits: bool):
    """Return (KL(p‖q) + KL(q‖p)) / 2 of two predictions `[..., classes]` at each position `[...]`.

    A single output per example, `[..., 1]`, is a logit or probability of two classes.
    """
    logs = [_log_probabilities(tf.cast(p, tf.float32), from_logits) for p in (one, other)]
    p, q = map(tf.exp, logs)
    return 0.5 * tf.reduce_sum((p - q) * (logs[0] - logs[1]), -1)


def _log_probabilities(prediction, from_logits):
    if from_logits and prediction.shape[-1] == 1:
        prediction = tf.concat([prediction, tf.zeros_like(prediction)], -1)
    if from_logits:
        return tf.nn.log_softmax(prediction)
    if prediction.shape[-1] == 1:
        prediction = tf.concat([prediction, 1.0 - prediction], -1)
    return tf.math.log(tf.clip_by_value(prediction, 1e-7, 1.0))


@dataclass(frozen=True)
class RDrop(LossTerm):
    """Penalty α times the divergence of the two halves of a doubled microbatch.

    Attributes:
        alpha: float, α.
        from_logits: whether the model's outputs are logits. Default: None, read from the compiled
            loss.
    """

    alpha: float
    from_logits: bool | None = None
    copies = 2

    def prepare(self, part):
        """Return a microbatch followed by its copy."""
        return tf.nest.map_structure(lambda t: None if t is None else tf.concat([t, t], 0), part)

    @contextmanager
    def watching(self, flavor, model, part):
        yield lambda y_pred, weights: self.penalty(flavor, model, y_pred, weights)

    def penalty(self, flavor, model, y_pred, weights):
        """Return the penalty on the outputs of a doubled microbatch."""
        # The outputs of Hugging Face models name their logits.
        from_logits = self.from_logits or hasattr(y_pred, "logits")
        if self.from_logits is None and flavor.predicts_numbers(model):
            raise ValueError(
                "R-Drop compares probabilities. Received: a model with the loss of a regression, "
                "such as the mean squared error. Use another method, or pass from_logits=True if "
                "its outputs are logits."
            )
        if self.from_logits is None and not from_logits:
            from_logits = flavor.from_logits(model)
        terms = []
        for output, weight in zip(predictions(y_pred), weights, strict=True):
            one, other = tf.split(output, 2)
            divergence = symmetric_divergence(one, other, from_logits)
            terms.append(weight.mean(tf.concat([divergence, divergence], 0)))
        return self.alpha * tf.add_n(terms)
