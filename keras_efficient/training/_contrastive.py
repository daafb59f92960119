"""Contrastive learning: a loss that compares all embeddings of a batch."""

from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient.flavor import Model, Tensor
from keras_efficient.losses._multiple_negatives import multiple_negatives
from keras_efficient.losses._similarity import check_temperature
from keras_efficient.losses._supervised_contrastive import supervised_contrastive
from keras_efficient.training import _train_step_hook as train_step_hook

#: Temperatures by method, those of the references.
METHODS = {"multiple_negatives": 0.05, "simcse": 0.05, "supervised": 0.1}


def contrastive(
    model: Model,
    method: str | None = "multiple_negatives",
    *,
    temperature: float | None = None,
    symmetric: bool = False,
) -> Model:
    """Train a model of embeddings with a contrastive loss over whole batches.

    The loss replaces the compiled one: compile the model without a loss. Its negatives are the
    other examples of the batch, so large batches matter:

    - "multiple_negatives": each example consists of two or more texts, an anchor, its positive and
      hard negatives; see `ke.losses.multiple_negatives`.
    - "simcse": each text is its own positive, under another dropout mask. It needs no labels.
    - "supervised": examples of the same class attract each other; see
      `ke.losses.supervised_contrastive`.

    With `ke.accumulate` and on several replicas the gradient remains that of the whole batch, to
    floating-point tolerance and with dropout. That is done by gradient caching: the embeddings of
    all microbatches are computed without gradients; then the loss of all of them, and its gradient
    with respect to the embeddings; then each microbatch runs a second time, with the same dropout
    masks, and the gradients go on to the weights. The activations of one microbatch are in memory
    at a time, for one more forward pass. The embeddings of all replicas are gathered, in both
    directions without approximation: two replicas of n examples are one of 2n.

    Examples are weighted by `sample_weight`; one with the weight 0 remains a negative of the
    others. A loss that layers add is weighted in the same way. `ke.sam`, `ke.lora`, `ke.unpad`,
    `ke.remat` and mixed precision can be combined with it.

    Args:
        model: a built Keras 3 or tf_keras model that returns one embedding per text,
            `[texts, width]`, such as that of `ke.models.load(…, task="sentence_embedding")`. It
            need not normalise them. Before or after `compile`.
        method: as above; None removes the loss. For "multiple_negatives" the features of `fit`
            have the shape `[examples, texts, …]` and the model is called with
            `[examples · texts, …]`; otherwise they are those of the model. Labels are used by
            "supervised" alone: int `[examples]`. Default: "multiple_negatives".
        temperature: float > 0. Default: None, 0.05, or 0.1 for "supervised".
        symmetric: whether "multiple_negatives" and "simcse" also find the anchor of each positive.
            Default: False.

    Returns:
        The model.

    Raises:
        ValueError: `method` is unknown or `temperature` not positive, or "supervised" is to be
            symmetric; in `fit`, before the first update, if the model is compiled with a loss or
            not built, features, labels or outputs have another shape, or a layer draws random
            numbers that cannot be repeated; or there is another term of the loss, such as
            R-Drop's, `ke.accumulate(weight=…)`, or an update of several batches.
        TypeError: if `model` is not a Keras model.

    Examples:
        >>> import keras, numpy as np
        >>> encoder = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(8)])
        >>> encoder.compile("adam")
        >>> encoder = ke.accumulate(ke.contrastive(encoder), microbatch_size=16)
        >>> pairs = np.random.default_rng(0).normal(size=(64, 2, 4)).astype("float32")
        >>> history = encoder.fit(pairs, batch_size=64, verbose=0)  # 63 negatives per anchor

    Reference:
        Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup"
        (GradCache); Gao et al. 2021, "SimCSE"; Khosla et al. 2020, "Supervised Contrastive
        Learning"; `sentence_transformers.losses.CachedMultipleNegativesRankingLoss`.
    """
    flavors.of(model)
    objective = None
    if method is not None:
        if method not in METHODS:
            raise ValueError(
                f"`method` must be one of {tuple(METHODS)}, or None to remove the loss. Received: "
                f"{method!r}."
            )
        if method == "supervised" and symmetric:
            raise ValueError(
                "The supervised loss treats all examples alike. Received: symmetric=True. Leave it "
                "out."
            )
        temperature = METHODS[method] if temperature is None else temperature
        check_temperature(temperature)
        objective = ContrastiveObjective(method, temperature, symmetric)
    train_step_hook.attach(model).objective = objective
    train_step_hook.detach_if_idle(model)
    return model


@dataclass(frozen=True)
class ContrastiveObjective:
    """The settings of `ke.contrastive`, which documents the fields, as functions of tensors."""

    method: str
    temperature: float
    symmetric: bool = False

    def rows(self, features: Any) -> tuple[Any, int]:
        """Return what the model is called with, and the number of its rows per example.

        The rows of an example are neighbours.

        Args:
            features: nest of tensors `[examples, …]`.

        Raises:
            ValueError: they do not consist of several texts, for "multiple_negatives".
        """
        if self.method == "supervised":
            return features, 1
        if self.method == "simcse":
            return _each(lambda x: _flat(tf.stack([x, x], 1)), features), 2
        leaves = [x for x in tf.nest.flatten(features) if x is not None]
        texts = {x.shape[1] if x.shape.rank > 2 else None for x in leaves}
        number = next(iter(texts))
        if len(texts) > 1 or number is None or number < 2:
            shapes = ", ".join(str(tuple(x.shape)) for x in leaves)
            raise ValueError(
                "Multiple negatives need two or more texts per example: features [examples, texts, "
                f"…], where the number of texts is known. Received: features of shape {shapes}. "
                "Stack the features of anchors and positives on axis 1, or choose "
                "method='simcse' for single texts."
            )
        return _each(_flat, features), number

    def losses(self, embeddings: Tensor, labels: Any) -> Tensor:
        """Return the loss of each example, `[examples]`.

        Args:
            embeddings: float `[examples, texts, width]`.
            labels: int `[examples]` for "supervised", otherwise ignored.

        Raises:
            ValueError: the labels are missing or of another kind.
        """
        if self.method == "supervised":
            if not tf.is_tensor(labels):
                raise ValueError(
                    "The supervised contrastive loss needs one class per example. Received: "
                    f"labels {labels!r:.80}. Give int labels, or choose method='simcse'."
                )
            return supervised_contrastive(embeddings[:, 0], labels, temperature=self.temperature)
        further = None
        if embeddings.shape[1] > 2:
            further = tf.reshape(embeddings[:, 2:], [-1, embeddings.shape[-1]])
        return multiple_negatives(
            embeddings[:, 0],
            embeddings[:, 1],
            further,
            temperature=self.temperature,
            symmetric=self.symmetric,
        )


def _each(function, features):
    return tf.nest.map_structure(lambda x: x if x is None else function(x), features)


def _flat(tensor):
    """Return `[examples, texts, …]` as `[examples · texts, …]`."""
    flat = tf.reshape(tensor, tf.concat([[-1], tf.shape(tensor)[2:]], 0))
    known = None not in tensor.shape[:2].as_list()
    return tf.ensure_shape(
        flat, [tensor.shape[0] * tensor.shape[1] if known else None, *tensor.shape[2:]]
    )
