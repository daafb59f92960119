"""Write a LiteRT file into the folder of a version and verify it."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from keras_efficient.compression._activation_quantization import rounds_inputs
from keras_efficient.exporters._model_file import (
    ModelFile,
    calibration_batches,
    check_precision,
    reference_outputs,
    write_verified,
)
from keras_efficient.exporters._signature import Features
from keras_efficient.exporters.litert.converter import convert_model
from keras_efficient.exporters.litert.interpreter import run_litert
from keras_efficient.flavor import Model

FILE = "model.tflite"
_MODES = {None: "float32", "int8-weights": "dynamic-int8", "int8": "int8"}
#: Default tolerances, relative to the largest output or 1. A trained MiniLM differs by 1e-6, 0.14
#: and 0.47.
_TOLERANCE = {"float32": 1e-4, "dynamic-int8": 0.25, "int8": 0.75}
#: Default tolerance in float32 for models that quantize activations (measured: 0.03), where a
#: rounding error can become a whole quantization step.
_QUANTIZED_TOLERANCE = 0.1


def check_litert(model: Model, flavor: Any, features: Features) -> None:
    """Check before training that a model computes in float32 and runs on the sample.

    Raises:
        InputError: it does not.
    """
    check_precision(model, "A LiteRT file")
    reference_outputs(model, flavor, features, features.arrays)


def export_litert(
    model: Model,
    flavor: Any,
    features: Features,
    folder: str | os.PathLike,
    *,
    quantize: str | None = None,
    representative: Iterable[dict] | None = None,
    tolerance: float | None = None,
) -> ModelFile:
    """Write `model.tflite` into `folder`, run it in a separate process, and compare its outputs.

    It is run on the sample, and on the first example cut to about half its length. If that fails
    because of the length, the file is written again for the sample's length, with a warning.

    Args:
        model: a built model that computes in float32.
        flavor: the `Flavor` of the model.
        features: `Features` of the sample.
        folder: str or path of an existing folder.
        quantize: None, "int8-weights" (LiteRT's dynamic range quantization) or "int8". Default:
            None.
        representative: see `write_litert`. Default: None.
        tolerance: float. Default: None, which is 1e-4 in float32, 0.1 for models that quantize
            their activations, 0.25 for "int8-weights" and 0.75 for "int8", which also quantizes the
            outputs of products.

    Returns:
        A `ModelFile`.

    Raises:
        InputError: see `write_litert`; or `ai-edge-litert` is not installed.
        VerificationError: the converter or the file fails, or the outputs differ.

    Examples:
        >>> import numpy as np
        >>> features = ke.exporters.Features(model, np.ones((2, 3)))
        >>> made = ke.exporters.export_litert(model, ke.flavor.of(model), features, ".")
        >>> made.file.name, made.max_abs_difference < 1e-5
        ('model.tflite', True)

    Reference:
        LiteRT, "Convert TensorFlow models":
        https://ai.google.dev/edge/litert/models/convert_tf
    """
    mode, file = _MODES[quantize], Path(folder) / FILE
    check_precision(model, "A LiteRT file")
    batches = calibration_batches(representative, features)
    if tolerance is None:
        quantized = mode == "float32" and rounds_inputs(model)
        tolerance = _QUANTIZED_TOLERANCE if quantized else _TOLERANCE[mode]

    recipe: dict = {}

    def write(any_length):
        written, signature, facts = convert_model(model, features, mode, batches, any_length)
        file.write_bytes(written)
        recipe["transformer"] = facts
        return signature

    return write_verified(model, flavor, features, file, write, run_litert, tolerance, recipe)
