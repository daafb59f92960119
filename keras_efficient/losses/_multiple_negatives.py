"""Multiple-negatives ranking loss: tell the positive of an anchor from those of the others."""

import tensorflow as tf

from keras_efficient.flavor import Tensor
from keras_efficient.losses._similarity import check_shapes, check_temperature, normalized


def multiple_negatives(
    anchors: Tensor,
    positives: Tensor,
    negatives: Tensor | None = None,
    *,
    temperature: float = 0.05,
    symmetric: bool = False,
) -> Tensor:
    """Return InfoNCE of each anchor, with the positives of the other anchors as negatives.

    With a, p and n of unit length, of example i the loss is the cross-entropy of finding its own
    positive among all positives and all further negatives of the batch:

        Lᵢ = -log [ exp(aᵢ·pᵢ / τ) / (Σⱼ exp(aᵢ·pⱼ / τ) + Σₖ exp(aᵢ·nₖ / τ)) ]

    With two embeddings of each text, computed with two dropout masks, it is the loss of
    unsupervised SimCSE. The loss of an example depends on all others, so the gradient of a batch is
    not the mean of those of its parts; `ke.contrastive` computes it exactly in microbatches.

    Args:
        anchors: Float `[examples, width]`.
        positives: Float `[examples, width]`, the positive of each anchor. It is a negative of the
            other anchors, even if both are the same text.
        negatives: Float `[number, width]`, further negatives of all anchors, such as hard
            negatives. Default: None.
        temperature: Float > 0, τ. Default: 0.05, a scale of 20.
        symmetric: Whether to average with the loss of finding each positive's anchor among all
            anchors. Default: False.

    Returns:
        Float `[examples]`, float32 unless both inputs are float64.

    Raises:
        ValueError: A shape does not fit, or `temperature` is not positive.

    Examples:
        >>> import numpy as np
        >>> ke.losses.multiple_negatives(np.eye(2), np.eye(2), temperature=1.0).numpy().round(3)
        array([0.313, 0.313])

    Reference:
        Henderson et al. 2017, "Efficient Natural Language Response Suggestion for Smart Reply";
        van den Oord et al. 2018, "CPC" (InfoNCE); Gao et al. 2021, "SimCSE"; `symmetric`: Radford
        et al. 2021, "CLIP"; `sentence_transformers.losses.MultipleNegativesRankingLoss`, and its
        MultipleNegativesSymmetricRankingLoss.
    """
    check_temperature(temperature)
    given = {"anchors": anchors, "positives": positives, "negatives": negatives}
    named = {name: normalized(x) for name, x in given.items() if x is not None}
    check_shapes(named)
    a, p = named["anchors"], named["positives"]
    number, other = a.shape[0], p.shape[0]
    if None not in (number, other) and number != other:
        raise ValueError(
            f"Each anchor has one positive. Received: {number} anchors and {other} positives. Give "
            "further texts as `negatives`."
        )
    similarity = tf.matmul(a, p, transpose_b=True) / temperature
    candidates = similarity
    if negatives is not None:
        further = tf.matmul(a, named["negatives"], transpose_b=True) / temperature
        candidates = tf.concat([similarity, further], -1)
    own = tf.linalg.diag_part(similarity)
    loss = tf.reduce_logsumexp(candidates, -1) - own
    if not symmetric:
        return loss
    return 0.5 * (loss + tf.reduce_logsumexp(similarity, 0) - own)
