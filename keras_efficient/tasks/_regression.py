"""`Regression`: one number per text."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from keras_efficient._errors import InputError
from keras_efficient.data._records import Records
from keras_efficient.flavor._typing import Tensor
from keras_efficient.metrics._regression_report import RegressionReport, regression_report
from keras_efficient.tasks._task import Task


class Regression(Task):
    """Regression: each text, or pair of texts, has a number, such as a rating or a similarity.

    The head has one output and the loss is the mean squared error. The report is a
    `ke.metrics.RegressionReport`. The signature of strings answers with "value", float32 `[batch]`.
    Labels are not standardized: numbers far from 0 or of a large scale are learned slowly, so
    divide them first.

    Args:
        texts: Number of texts per example, 2 for pairs of texts. Default: 1.

    Examples:
        >>> task = ke.tasks.Regression()
        >>> records = ke.data.Records.of(["good", "bad"], [2.5, "-1"], encode=task.encode)
        >>> records.labels.tolist()
        [2.5, -1.0]

    Reference:
        `transformers.TFAutoModelForSequenceClassification` with one label.
    """

    name = "regression"
    choices: ClassVar = {
        "rmse": ("RMSE", "min"),
        "mae": ("MAE", "min"),
        "loss": ("loss", "min"),
    }
    serves = ("value",)
    compresses = True

    def encode(
        self,
        values: Sequence[Any],
        label_names: Sequence[str] | None,
        where: Callable[[int], str],
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        """Return float32 numbers, and no names."""
        numbers = [_number(value, where(i)) for i, value in enumerate(values)]
        return np.array(numbers, np.float32), ()

    def check(self, train: Records, validation: Records | None = None) -> None:
        """Require two different numbers among the records to train on."""
        if train.labels is None or len(np.unique(train.labels)) < 2:
            raise InputError(
                "Regression needs labels that differ. Received: "
                f"{'none' if train.labels is None else f'{train.labels[0]:g} for all texts'} "
                f"({train.source}). Take another label column."
            )

    def describe(self, train: Records, validation: Records) -> tuple[str, str]:
        """Return the range of the numbers, and the errors of always answering their mean."""
        mean = train.labels.mean()
        errors = validation.labels - mean
        mae, rmse = np.abs(errors).mean(), np.sqrt(np.square(errors).mean())
        return (
            f"numbers from {train.labels.min():g} to {train.labels.max():g}",
            f"always answering the mean, {mean:.4g}, has MAE {mae:.4g} and RMSE {rmse:.4g}",
        )

    def head_size(self, num_labels: int | None) -> int:
        """Return 1."""
        if num_labels not in (None, 1):
            raise InputError(
                f"`num_labels` is 1 in regression, or left out. Received: {num_labels!r}. Train a "
                "model for each number, or choose the task that has classes."
            )
        return 1

    def label_names(self, given: Sequence[str] | None, outputs: int) -> list[str]:
        """Return no names."""
        if given or outputs != 1:
            raise InputError(
                "A model for regression has one output, without names. Received: "
                f"{outputs} outputs, label_names={given!r}. Leave the names out, or choose the "
                "task that has classes."
            )
        return []

    def loss(self, keras: Any) -> Any:
        """Return the mean squared error."""
        return keras.losses.MeanSquaredError()

    def metrics(self, keras: Any, num_labels: int) -> list:
        """Return the mean absolute error and the root of the mean squared error."""
        return [
            keras.metrics.RootMeanSquaredError(name="rmse"),
            keras.metrics.MeanAbsoluteError(name="mae"),
        ]

    def batch_labels(self, labels: Any, argument: str) -> np.ndarray:
        """Return float64 numbers `[batch]`."""
        labels = np.asarray(labels)
        if labels.size != len(labels) or not labels.size or labels.dtype.kind not in "fiu":
            raise InputError(
                f"`{argument}` compares numbers, one per example. Received: labels of shape "
                f"{labels.shape} and type {labels.dtype}. Name the `task` of the model."
            )
        return labels.reshape(-1).astype("float64")

    def report(
        self,
        labels: np.ndarray,
        scores: np.ndarray,
        label_names: Sequence[str] | None = None,
        *,
        sample_weight: Any = None,
    ) -> RegressionReport:
        """Return errors and correlations beside those of the mean."""
        return regression_report(labels, self._values(scores), sample_weight=sample_weight)

    def predicted_labels(self, scores: np.ndarray) -> np.ndarray:
        """Return the numbers, float32 `[examples]`."""
        return np.asarray(self._values(scores), np.float32)

    def serve(self, logits: Tensor, label_names: Sequence[str] | None) -> dict[str, Tensor]:
        """Return "value", the only output."""
        return {"value": self._values(logits)}

    def decode(
        self, outputs: Mapping[str, list], label_names: Sequence[str] | None
    ) -> list[dict[str, Any]]:
        """Return "value", float, of each text."""
        values = list(map(float, outputs["value"]))
        if not all(map(math.isfinite, values)):
            raise ValueError("not a finite number for each text")
        return [{"value": value} for value in values]

    def _values(self, scores):
        if scores.shape[1] != 1:
            raise InputError(
                "A model for regression has one output per example. Received: outputs of shape "
                f"{tuple(scores.shape)}. Load it with task='regression'."
            )
        return scores[:, 0]


def _number(value: Any, where: str) -> float:
    """Return the number of a label found in data, written with a decimal point."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or (isinstance(value, str) and not value.strip()):
        raise InputError(
            f"Each text needs a label. Received: {value!r} ({where}). Fill it in, or remove the "
            "row; in Python, label_column=None reads no labels."
        )
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        number = float(value)
    except (ValueError, OverflowError):
        hint = "Write the decimal mark as a point. " if "," in str(value) else ""
        raise InputError(
            f"In regression a label is a number. Received: {value!r:.60} ({where}). {hint}Correct "
            "the row, or choose the task that has classes."
        ) from None
    if not abs(number) <= np.finfo(np.float32).max:
        raise InputError(
            f"A label that is a number must be finite in float32. Received: {value!r:.60} "
            f"({where}). Correct or remove it."
        )
    return number
