"""R-Drop: a penalty on the divergence of predictions under two dropout masks."""

from contextlib import contextmanager
from dataclasses import dataclass

import tensorflow as tf

from keras_efficient.training._logits import logits_of
from keras_efficient.training._loss_terms import LossTerm, predictions


def symmetric_divergence(one, other, from_logits: bool, independent: bool = False):
    """Return (KL(p‖q) + KL(q‖p)) / 2 of two predictions `[..., classes]` at each position `[...]`.

    A single output per example, `[..., 1]`, is a logit or probability of two classes. With
    `independent` each output is, and the result is the mean over the outputs.
    """
    logits = (logits_of(tf.cast(p, tf.float32), from_logits, independent) for p in (one, other))
    logs = [tf.nn.log_softmax(x) for x in logits]
    p, q = map(tf.exp, logs)
    divergence = 0.5 * tf.reduce_sum((p - q) * (logs[0] - logs[1]), -1)
    return tf.reduce_mean(divergence, -1) if independent else divergence


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
        independent = flavor.has_independent_labels(model)
        if self.from_logits is None and not from_logits:
            from_logits = flavor.from_logits(model)
        terms = []
        for output, weight in zip(predictions(y_pred), weights, strict=True):
            one, other = tf.split(output, 2)
            divergence = symmetric_divergence(one, other, from_logits, independent)
            terms.append(weight.mean(tf.concat([divergence, divergence], 0)))
        return self.alpha * tf.add_n(terms)
