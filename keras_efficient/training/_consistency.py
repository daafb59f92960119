"""Consistency training: the same prediction for a text and an altered copy of it (UDA)."""

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.data._augmentation import Augmentation
from keras_efficient.data._delete_tokens import DeleteTokens
from keras_efficient.data._replace_tokens import ReplaceTokens
from keras_efficient.data._split_mix import mixed, text_keys
from keras_efficient.data._token_augmenter import TokenAugmenter
from keras_efficient.data._tokenizer import as_tokenizer
from keras_efficient.flavor import Model
from keras_efficient.flavor._forward import LossWeights
from keras_efficient.training import _train_step_hook as train_step_hook
from keras_efficient.training._logits import logits_of
from keras_efficient.training._loss_terms import LossTerm, predictions

_NAME = "consistency"


def consistency_loss(
    logits: tf.Tensor, altered: tf.Tensor, temperature: float, confidence: float
) -> tf.Tensor:
    """Return KL(p‖q) of each text, `[texts]`, 0 where the model is not confident.

    Args:
        logits: float `[texts, classes]`, of the texts; no gradient flows into them.
        altered: float `[texts, classes]`, of the altered copies.
        temperature: of the softmax that makes p of `logits`.
        confidence: smallest probability of the most probable class.
    """
    logits = tf.stop_gradient(logits)
    target = tf.nn.log_softmax(logits / temperature)
    divergence = tf.reduce_sum(tf.exp(target) * (target - tf.nn.log_softmax(altered)), -1)
    confident = tf.reduce_max(tf.nn.softmax(logits), -1) >= confidence
    return tf.where(confident, divergence, tf.zeros_like(divergence))


@dataclass(frozen=True, eq=False)
class Consistency(LossTerm):
    """The divergence between the predictions for texts and for altered copies of them.

    Attributes:
        model: the model.
        names: names of its inputs, by content.
        pad_id: the token of padding.
        augmenter: `TokenAugmenter`.
        weight, temperature, confidence: as in `consistency`.
    """

    model: Any
    names: dict[str, str]
    pad_id: int
    augmenter: TokenAugmenter
    weight: float
    temperature: float
    confidence: float
    copies = 2

    def prepare(self, part):
        """Return a microbatch followed by altered copies."""
        x, *rest = part if isinstance(part, tuple) else (part,)
        ids = x[self.names["ids"]]
        mask = x.get(self.names.get("mask"))
        real: Any = tf.ones_like(ids, tf.bool) if mask is None else tf.cast(mask, tf.bool)
        segments = x.get(self.names.get("segments"), tf.zeros_like(ids))
        ids, segments = tf.cast(ids, tf.int32), tf.cast(segments, tf.int32)
        rows, _ = self.augmenter(ids, real, segments, self._keys(ids), ids)
        real = rows.real
        altered = {
            "ids": tf.where(real, rows.ids, self.pad_id),
            "mask": tf.cast(real, tf.int32),
            "segments": tf.where(real, rows.segments, 0),
        }
        new = dict(x)
        for content, name in self.names.items():
            if content in altered and name in x:
                new[name] = tf.cast(altered[content], x[name].dtype)
        joined = {name: tf.concat([tensor, new[name]], 0) for name, tensor in x.items()}
        rest = tf.nest.map_structure(lambda t: None if t is None else tf.concat([t, t], 0), rest)
        return (joined, *rest) if isinstance(part, tuple) else joined

    def _keys(self, ids):
        """Return seeds that follow from the update and the texts, whatever the microbatch."""
        columns = tf.cast(tf.range(tf.shape(ids)[1]), tf.uint64)
        tokens = mixed(mixed(columns)[None] + tf.cast(ids, tf.uint64))
        # Padding must not count: how much of it there is depends on the batch.
        tokens = tf.where(ids == self.pad_id, tf.zeros_like(tokens), tokens)
        text = tf.bitcast(tf.reduce_sum(tf.bitcast(tokens, tf.int64), 1), tf.uint64)
        update = tf.convert_to_tensor(self.model.optimizer.iterations)
        return mixed(text + text_keys(tf.cast(update, tf.int64), tf.zeros([1], tf.int32)))

    @contextmanager
    def watching(self, flavor, model, part):
        yield lambda y_pred, weights: self.penalty(flavor, model, y_pred, weights)

    def penalty(self, flavor, model, y_pred, weights):
        """Return the penalty on the outputs for a doubled microbatch."""
        from_logits = hasattr(y_pred, "logits") or flavor.from_logits(model)
        (output,) = predictions(y_pred)
        if output.shape.rank != 2 or flavor.predicts_numbers(model):
            raise ValueError(
                "Consistency training is for classifiers of texts. Received: a model with outputs "
                f"{list(output.shape)} and the losses {flavor._loss_names(model)}. Use another "
                "method."
            )
        logits = logits_of(output, from_logits, flavor.has_independent_labels(model))
        one, other = tf.split(logits, 2)
        divergence = consistency_loss(one, other, self.temperature, self.confidence)
        if divergence.shape.rank > 1:
            divergence = tf.reduce_mean(divergence, -1)
        # Over all examples: those without labels have no sample weight.
        values = tf.concat([divergence, divergence], 0)
        return self.weight * LossWeights(weights[0].divisor, values).mean(values)


def consistency(
    model: Model,
    tokenizer: Any,
    *,
    augmentations: Sequence[Augmentation] | None = (
        DeleteTokens(rate=0.1),
        ReplaceTokens(rate=0.1),
    ),
    weight: float = 1.0,
    temperature: float = 0.4,
    confidence: float = 0.8,
) -> Model:
    """Train a classifier to predict the same for a text and an altered copy of it (UDA).

    Each microbatch is followed by altered copies of its texts. The loss has a further term, for
    texts with and without labels:

        w · mean over texts of [max softmax(z) ≥ β] · KL(softmax(z / T) ‖ softmax(z′))

    z are the logits for the text, through which no gradient flows, and z′ those for the copy. The
    loss of the labels is the mean over both. Texts without labels come from
    `ke.data.join_unlabelled`. It doubles the examples of each microbatch. What is altered follows
    from the update and the text alone, so that k microbatches equal one batch.

    Args:
        model: a built Keras 3 or tf_keras classifier of texts, whose features are a dict; before or
            after `compile`.
        tokenizer: its `ke.data.Tokenizer`, or what `ke.data.as_tokenizer` accepts.
        augmentations: the changes, one after the other; None to remove the term. Default: deletes
            a tenth of the tokens, and hides a tenth of the others.
        weight: float > 0, w. Default: 1.0.
        temperature: float > 0, T. Less than 1 makes the targets more certain. Default: 0.4.
        confidence: float from 0 to 1, β. Default: 0.8.

    Returns:
        The model.

    Raises:
        ValueError: a number is out of its range, or, in `fit`, the model is no classifier.
        ke.InputError: the tokenizer does not fit the augmentations.
        TypeError: `model` is not a Keras model.

    Examples:
        >>> classifier, tokenizer = ke.models.load("models/all-MiniLM-L6-v2", num_labels=2)
        >>> classifier = ke.consistency(classifier, tokenizer, temperature=0.5)

    Reference:
        Xie et al. 2020, "Unsupervised Data Augmentation for Consistency Training"; Sohn et al.
        2020, "FixMatch".
    """
    flavors.of(model)
    if augmentations is None:
        train_step_hook.set_loss_term(model, _NAME, None)
        return model
    for name, value in (("weight", weight), ("temperature", temperature)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ValueError(f"`{name}` must be a number > 0. Received: {value!r}.")
    number = isinstance(confidence, int | float) and not isinstance(confidence, bool)
    if not number or not 0 <= confidence <= 1:
        raise ValueError(f"`confidence` must be a number from 0 to 1. Received: {confidence!r}.")
    if not augmentations:
        raise ValueError(
            "There must be an augmentation. Received: none. Give for example "
            "[ke.data.DeleteTokens()], or None to remove the term."
        )
    tokenizer = as_tokenizer(tokenizer)
    term = Consistency(
        model,
        dict(tokenizer.inputs),
        tokenizer.pad_id,
        TokenAugmenter(augmentations, tokenizer),
        float(weight),
        float(temperature),
        float(confidence),
    )
    train_step_hook.set_loss_term(model, _NAME, term)
    return model
