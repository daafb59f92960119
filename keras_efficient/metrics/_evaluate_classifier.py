"""Evaluate a classifier in memory on labelled batches."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient._errors import InputError
from keras_efficient.flavor import Model
from keras_efficient.metrics._classification_report import (
    ClassificationReport,
    classification_report,
)


def evaluate_classifier(
    model: Model, data: Iterable[Any], label_names: Sequence[str] | None = None
) -> ClassificationReport:
    """Compute accuracy, majority baseline, macro-F1, scores per class and the confusion matrix.

    Args:
        model: a built classifier of either library whose output, or output "logits", is float
            [batch, classes].
        data: finite batches `(features, labels)` or `(features, labels, sample_weights)` as `fit`
            takes them, such as a `tf.data.Dataset`; labels are classes, int [batch]. It is iterated
            once.
        label_names: name of each class. Default: None, the indices.

    Returns:
        A `ClassificationReport`, to print.

    Raises:
        InputError: there are no batches, the data is endless, or the model is no classifier.

    Examples:
        >>> import tensorflow as tf
        >>> data = tf.data.Dataset.from_tensor_slices(([[1.0, 2.0, 3.0]] * 4, [0, 1, 1, 1]))
        >>> report = ke.metrics.evaluate_classifier(model, data.batch(2))
        >>> report.majority_baseline
        0.75

    Reference:
        `keras.Model.evaluate`, which returns the loss and the compiled metrics.
    """
    flavors.of(model)
    if isinstance(data, tf.data.Dataset) and data.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise InputError("`data` must end. Received: an endless dataset. Give `dataset.take(100)`.")
    labels, scores, weights = [], [], []
    for batch in data:
        if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
            raise InputError(
                "`data` must be batches (features, labels). Received: "
                f"{type(batch).__name__}. Give them as `fit` takes them."
            )
        labels.append(np.asarray(batch[1]).reshape(-1))
        weights.append(np.asarray(batch[2]).reshape(-1) if len(batch) == 3 else None)
        outputs = model.predict_on_batch(batch[0])
        scores.append(scores_of(outputs if isinstance(outputs, Mapping) else {"": outputs}))
    if not labels:
        raise InputError("`data` must hold examples. Received: none. Give some batches.")
    weighted = all(weight is not None for weight in weights)
    return classification_report(
        np.concatenate(labels),
        predicted_classes(np.concatenate(scores)),
        label_names,
        sample_weight=np.concatenate(weights) if weighted else None,
    )


def scores_of(outputs: Mapping[str, Any]) -> np.ndarray:
    """Return the class scores among a model's outputs: "logits", or else the only float output.

    Args:
        outputs: dict of arrays by name.

    Returns:
        Float array [batch, classes].

    Raises:
        InputError: there is no output "logits" and not exactly one other float output, or it is not
            [batch, classes].

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
    if name is None or found[name].ndim != 2:
        raise InputError(
            "Accuracy needs one float output [examples, classes], or one called logits. Received: "
            f"outputs of shapes { {name: value.shape for name, value in arrays.items()} }. Leave "
            "the evaluation out, or name that output logits."
        )
    return found[name]


def predicted_classes(scores: np.ndarray) -> np.ndarray:
    """Return the predicted class of each example.

    A single column holds the score of class 1: a probability if all values lie in [0, 1], otherwise
    a logit.

    Args:
        scores: float array [examples, classes] or [examples, 1].

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
    probabilities = bool(((scores >= 0) & (scores <= 1)).all())
    return (scores[:, 0] > (0.5 if probabilities else 0.0)).astype("int64")
