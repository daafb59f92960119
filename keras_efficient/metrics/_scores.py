"""Class scores among a model's outputs, and the classes that they predict."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_efficient._errors import InputError


def scores_of(outputs: Mapping[str, Any], rank: int = 2) -> np.ndarray:
    """Return the class scores among a model's outputs: "logits", or else the only float output.

    Args:
        outputs: dict of arrays by name.
        rank: number of axes of the scores; 3 for scores of each token. Default: 2.

    Returns:
        Float array [batch, classes], or [batch, tokens, classes].

    Raises:
        InputError: there is no output "logits" and not exactly one other float output, or it has
            another rank.

    Examples:
        >>> import numpy as np
        >>> both = {"logits": np.zeros((1, 2)), "probabilities": np.full((1, 2), 0.5)}
        >>> ke.metrics.scores_of(both).tolist()
        [[0.0, 0.0]]

    Reference:
        `transformers.modeling_tf_outputs.TFSequenceClassifierOutput`, whose scores are "logits".
    """
    arrays = {name: np.asarray(value) for name, value in outputs.items() if value is not None}
    # bfloat16 has the kind "V".
    found = {name: value for name, value in arrays.items() if value.dtype.kind in "fV"}
    # The text signature adds probabilities to the model's own output.
    others = [name for name in found if name != "probabilities"] or list(found)
    name = "logits" if "logits" in found else others[0] if len(others) == 1 else None
    if name is None or found[name].ndim != rank:
        axes = "examples, classes" if rank == 2 else "examples, tokens, classes"
        raise InputError(
            f"Accuracy needs one float output [{axes}], or one called logits. Received: "
            f"outputs of shapes { {name: value.shape for name, value in arrays.items()} }. Leave "
            "the evaluation out, or name that output logits."
        )
    return found[name]


def predicted_classes(scores: np.ndarray, like: np.ndarray | None = None) -> np.ndarray:
    """Return the predicted class of each example.

    A single column holds the score of class 1: a probability if all values lie in [0, 1], otherwise
    a logit.

    Args:
        scores: float array [examples, classes] or [examples, 1].
        like: float array, scores that tell probabilities from logits in place of `scores`, of which
            a few may leave [0, 1] by a rounding error. Default: None, `scores`.

    Returns:
        int64 array [examples].

    Examples:
        >>> import numpy as np
        >>> ke.metrics.predicted_classes(np.array([[-3.0], [2.0]])).tolist()
        [0, 1]

    Reference:
        `numpy.argmax`.
    """
    if scores.shape[1] > 1:
        return scores.argmax(-1)
    like = scores if like is None else like
    probabilities = bool(((like >= 0) & (like <= 1)).all())
    return (scores[:, 0] > (0.5 if probabilities else 0.0)).astype("int64")


def class_numbers(scores: np.ndarray, labels: np.ndarray) -> list[str]:
    """Return names for the classes of scores and labels without any: "0", "1" and so on."""
    return list(map(str, range(max(scores.shape[1], 2, int(labels.max()) + 1))))
