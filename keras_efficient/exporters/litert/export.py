"""Write a LiteRT file into the folder of a version and verify it."""

import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from keras_efficient._errors import VerificationError
from keras_efficient.compression._activation_quantization import rounds_inputs
from keras_efficient.exporters._signature import Features, call_by_name
from keras_efficient.exporters._verification import check_reference, compare
from keras_efficient.exporters.litert.converter import check_precision, write_litert
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


@dataclass(frozen=True)
class LiteRTFile:
    """A verified LiteRT file.

    Attributes:
        file: path of the file.
        bytes: int, size of the file in bytes.
        signature: {"inputs" and "outputs": {name: {"dtype", "shape"}}}; None is any size.
        max_abs_difference: float, largest difference from the model in memory, on the sample and
            on a shorter example.
        tolerance: float, the difference allowed, relative to the largest output or 1.
    """

    file: Path
    bytes: int
    signature: dict
    max_abs_difference: float
    tolerance: float


def check_litert(model: Model, flavor: Any, features: Features) -> None:
    """Check before training that a model computes in float32 and runs on the sample.

    Raises:
        InputError: it does not.
    """
    check_precision(model)
    _reference(model, flavor, features, features.arrays)


def export_litert(
    model: Model,
    flavor: Any,
    features: Features,
    folder: str | os.PathLike,
    *,
    quantize: str | None = None,
    representative: Iterable[dict] | None = None,
    tolerance: float | None = None,
) -> LiteRTFile:
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
        A `LiteRTFile`.

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
    if tolerance is None:
        quantized = mode == "float32" and rounds_inputs(model)
        tolerance = _QUANTIZED_TOLERANCE if quantized else _TOLERANCE[mode]
    sample, shorter = features.arrays, _shorter_example(features)
    reference = _reference(model, flavor, features, sample)

    def write(any_length):
        return write_litert(
            model, file, features, mode=mode, representative=representative, any_length=any_length
        )

    samples = [sample, shorter]
    try:
        signature = write(any_length=True)
        outputs = run_litert(file, *samples)
    except VerificationError as error:
        lengths = _lengths(features)
        if not lengths or "(Flex)" in str(error):
            raise
        samples = [sample]
        signature = write(any_length=False)
        outputs = run_litert(file, sample)
        warnings.warn(
            "This model's LiteRT file only runs at one length: its signature takes the sample's "
            f"({lengths}) instead of any. With any it failed: {_first_line(error)}",
            stacklevel=2,
        )
    references = [reference, *(_reference(model, flavor, features, x) for x in samples[1:])]
    differences = [compare(*pair, tolerance) for pair in zip(references, outputs, strict=True)]
    return LiteRTFile(file, file.stat().st_size, signature, max(differences), tolerance)


def _lengths(features):
    """Return the sample's lengths by feature, for features of variable length."""
    fixed = features.specs(dynamic_length=False)
    return {
        name: fixed[name].shape[1] for name, spec in features.specs().items() if spec != fixed[name]
    }


def _shorter_example(features):
    """Return the first example of the sample, cut to about half its length."""
    lengths = _lengths(features)
    return {
        name: array[:1, : (lengths[name] + 1) // 2] if name in lengths else array[:1]
        for name, array in features.arrays.items()
    }


def _reference(model, flavor, features, arrays):
    with tf.device("CPU:0"):
        reference = call_by_name(flavor, model, features, arrays)
    check_reference(reference)
    return reference


def _first_line(error):
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[1] if len(lines) > 1 else lines[0]
