"""The accuracy of a served classifier beside that of the model in memory."""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from keras_efficient._errors import InputError, VerificationError
from keras_efficient.exporters._signature import Features, computed

#: How much of the accuracy an export may lose: half a point.
MOST = 0.005


@dataclass(frozen=True)
class Evaluation:
    """Labelled examples that an export is evaluated on.

    Args:
        data: a batch `(features, labels)` as `fit` yields it, or a finite iterable of such batches:
            labels are classes [batch], or one-hot [batch, classes].
        max_drop: float in [0, 1], how much lower the served accuracy may be than the accuracy in
            memory. Default 0.005.

    Raises:
        InputError: `max_drop` out of range, no batches, or batches without labels.
    """

    data: object
    max_drop: float = MOST

    def __post_init__(self):
        drop = self.max_drop
        if isinstance(drop, bool) or not isinstance(drop, int | float) or not 0 <= drop <= 1:
            raise InputError(
                f"`max_drop` must be a share of the examples, from 0 to 1. Received: {drop!r}. "
                "Give for example 0.005, half a point."
            )

    def batches(self, model):
        """List of (`Features`, int array of classes, float array of weights)."""
        data = [self.data] if isinstance(self.data, tuple) else self.data
        if isinstance(data, tf.data.Dataset) and data.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise InputError(
                "`evaluate` must end. Received: an endless dataset. Give `dataset.take(100)`."
            )
        found = []
        for batch in data:
            if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
                raise InputError(
                    "`evaluate` must be batches (features, labels). Received: "
                    f"{type(batch).__name__}. Give them as `fit` gets them."
                )
            labels = np.asarray(batch[1])
            if labels.ndim == 2 and labels.shape[1] > 1:
                if not np.allclose(labels.sum(-1), 1):
                    raise InputError(
                        "`evaluate` takes one class per example. Received: rows of labels that do "
                        "not sum to 1. Leave it out where an example has several."
                    )
                labels = labels.argmax(-1)
            if labels.size != len(labels) or labels.size == 0:
                raise InputError(
                    "`evaluate` compares classes, one per example. Received: labels of shape "
                    f"{labels.shape}. Leave `evaluate` out for other tasks."
                )
            features = Features(model, tuple(batch)[:1], most=len(labels))
            weights = np.asarray(batch[2]) if len(batch) == 3 else np.ones(len(labels))
            if weights.shape != (len(labels),):
                raise InputError(
                    "`evaluate` takes one weight per example. Received: weights of shape "
                    f"{weights.shape} for {len(labels)} examples. Leave them out."
                )
            found.append((features, labels.reshape(-1).astype("int64"), weights))
        if not found:
            raise InputError("`evaluate` must hold examples. Received: none. Give some batches.")
        return found


def scores_of(outputs):
    """What decides of each example, [batch, classes], of a dict of output arrays.

    Raises:
        InputError: there is no single [batch, classes] output of floats.
    """
    found = {name: value for name, value in outputs.items() if value.dtype.kind == "f"}
    logits = found.get("logits", next(iter(found.values())) if len(found) == 1 else None)
    if logits is None or logits.ndim != 2:
        raise InputError(
            "`evaluate` needs a classifier, with logits [batch, classes]. Received: outputs "
            f"{ {name: value.shape for name, value in outputs.items()} }. Leave it out."
        )
    return logits


def scores_in_memory(flavor, model, batches) -> list:
    """What the model in memory gives for each batch."""
    return [scores_of(computed(flavor, model, f, f.arrays)) for f, _, _ in batches]


def _accuracy(scores, batches, threshold):
    right = total = 0.0
    for values, (_, labels, weights) in zip(scores, batches, strict=True):
        one = values.shape[1] == 1
        classes = values[:, 0] > threshold if one else values.argmax(-1)
        right += float(((classes == labels) * weights).sum())
        total += float(weights.sum())
    return right / total if total else 0.0


def check_drop(in_memory, served, batches, most) -> dict:
    """Compare accuracies.

    Args:
        in_memory, served: lists of float arrays [batch, classes].
        batches: as `Evaluation.batches` gives them.
        most: float, by how much the served accuracy may be lower.

    Returns:
        {"examples", "in_memory", "served"}.

    Raises:
        VerificationError: the served one is lower by more than `most`.
    """
    # (A single output is a probability if nothing is outside of [0, 1]; else it is a logit.)
    values = np.concatenate([scores.reshape(-1) for scores in in_memory])
    threshold = 0.5 if ((values >= 0) & (values <= 1)).all() else 0.0
    examples = sum(len(labels) for _, labels, _ in batches)
    in_memory = _accuracy(in_memory, batches, threshold)
    served = _accuracy(served, batches, threshold)
    if served < in_memory - most - 1e-9:
        raise VerificationError(
            f"The served model is right on {served:.2%} of {examples} examples, the model in "
            f"memory on {in_memory:.2%}; {100 * most:g} points less are allowed. Train with "
            "ke.quantize_aware, calibrate on more data, or allow more (ke.exporters.Evaluation)."
        )
    return {"examples": examples, "in_memory": in_memory, "served": served}
