"""`quantized_export`: calibrate a copy of a trained model and export it as int8."""

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_efficient import tasks
from keras_efficient._errors import InputError, VerificationError
from keras_efficient.architecture import describe
from keras_efficient.compression import calibrate, shrink
from keras_efficient.exporters import (
    Evaluation,
    ExportReport,
    check_export,
    export,
)
from keras_efficient.exporters.inference_ops.matmul import saturates
from keras_efficient.exporters.tokenizer_ops.text_tokenizer import text_tokenizer
from keras_efficient.flavor import Model


def quantized_export(
    model: Model,
    directory: str | os.PathLike,
    *,
    calibration: Any,
    held_out: Any,
    tokenizer: Any = None,
    label_names: Sequence[str] | None = None,
    task: Any = None,
    facts: Mapping[str, Any] | None = None,
) -> ExportReport:
    """Export a trained model as an int8 SavedModel, evaluated as it will be served.

    A copy of the model is calibrated, with kernels of 7 bits where this CPU needs them, so `model`
    stays as it is. Where integers cannot be multiplied or the export cannot be verified, there is
    a warning, and weights of 8 bits are converted to floats when the SavedModel is loaded
    (`quantize="int8-weights"`).

    Args:
        model: a model that `ke.shrink` can copy.
        directory: as for `ke.export`.
        calibration: finite batches of typical texts, on which ranges of activations are measured.
        held_out: finite labelled batches, to evaluate on.
        tokenizer: as for `ke.export`; without effect if its text cannot be processed in a graph.
            Default: None.
        label_names: names of the classes. Default: None.
        task: as for `ke.export`. Default: None, "classification".
        facts: facts for the report. Default: None.

    Returns:
        The `ExportReport`, whose `evaluation` has the scores in memory and as served.

    Examples:
        >>> model, tokenizer = ke.models.load("models/all-MiniLM-L6-v2")
        >>> batches = ke.data.text("reviews.csv", tokenizer, batch_size=16)
        >>> report = ke.pipelines.quantized_export(
        ...     model, "int8", calibration=batches.take(1), held_out=batches
        ... )
        >>> report.quantize in ("int8", "int8-weights")
        True

    Reference:
        `ke.calibrate` and `ke.export`.
    """
    task = tasks.get(task)
    if tokenizer is not None:
        try:
            text_tokenizer(tokenizer, task)
        except InputError:
            tokenizer = None
    sample = next(iter(calibration))
    options: dict[str, Any] = {
        "sample": sample,
        "tokenizer": tokenizer,
        "labels": None if label_names is None else list(label_names),
        "task": task,
        # What is served differs from the model in memory: what is served is reported.
        "evaluate": Evaluation(held_out, max_drop=1.0),
        "facts": facts,
        "latency": False,
    }
    try:
        check_export(model, directory, sample=sample, quantize="int8")
        rounded = plain_copy(model, sample)
        calibrate(rounded, calibration, reduce_range=saturates())
        return export(rounded, directory, quantize="int8", **options)
    except (InputError, VerificationError) as error:
        warnings.warn(
            f"{Path(directory).name} is exported with quantize='int8-weights', which multiplies "
            f"floats and is slower, because int8 was refused: {error}",
            stacklevel=2,
        )
    return export(model, directory, quantize="int8-weights", **options)


def plain_copy(model: Model, sample: Any) -> Model:
    """Return a model of the same class with the same weights, without transforms."""
    blocks = describe(model, sample=sample[0]).blocks
    return shrink(model, layers=len(blocks)).model
