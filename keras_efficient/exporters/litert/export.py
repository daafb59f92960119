"""Write a LiteRT file into a version's folder, and check it."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import tensorflow as tf

from keras_efficient._errors import VerificationError
from keras_efficient.compression._activation_quantization import rounds_inputs
from keras_efficient.exporters._signature import computed
from keras_efficient.exporters._verification import check_reference, compare
from keras_efficient.exporters.litert.converter import write_litert
from keras_efficient.exporters.litert.interpreter import run_litert

FILE = "model.tflite"
_MODES = {None: "float32", "int8-weights": "dynamic-int8", "int8": "int8"}
#: Allowed differences, relative to the largest output or 1. Trained MiniLM: 1e-6 · 0.14 · 0.47;
#: 0.03 where inputs are rounded in floats, since a rounding error can become a whole step.
_TOLERANCE = {"float32": 1e-4, "dynamic-int8": 0.25, "int8": 0.75}
_STEPS = 0.1


@dataclass(frozen=True)
class LiteRTFile:
    """A LiteRT file that has been checked.

    Attributes:
        file: path.
        bytes: int, its size.
        signature: {"inputs" and "outputs": {name: {"dtype", "shape"}}}; None is any size.
        max_abs_difference: float, to the model in memory, on the sample and a part of it.
        tolerance: float, the difference allowed, relative to the largest output or 1.
    """

    file: Path
    bytes: int
    signature: dict
    max_abs_difference: float
    tolerance: float


def export_litert(
    model, flavor, features, folder, *, quantize=None, representative=None, tolerance=None
) -> LiteRTFile:
    """Write `model.tflite` into `folder`, run it in a bare process, and compare it.

    It is run on the sample, and on its first example cut to about half the length. Where that fails
    and the length is to blame, the file is written anew for the sample's length, with a warning.

    Args:
        model: a built model that computes in float32.
        flavor: its `Flavor`.
        features: `serving.signature.Features` of the sample.
        folder: str or path, which exists.
        quantize: None (default), "int8-weights" (LiteRT's dynamic range) or "int8".
        representative: see `write_litert`.
        tolerance: float or None (default): 1e-4; 0.1 for a model that rounds its inputs, of which
            some fall to the other side; 0.25 for "int8-weights" and 0.75 for "int8", whose products
            also round their outputs.

    Returns:
        A `LiteRTFile`.

    Raises:
        InputError: as of `write_litert`; or `ai-edge-litert` is not installed.
        VerificationError: the converter failed, or the file, or it computes something else.

    Example:
        >>> import numpy as np
        >>> from keras_efficient.exporters.litert.export import export_litert
        >>> from keras_efficient.exporters._signature import Features
        >>> features = Features(model, np.ones((2, 3)))
        >>> made = export_litert(model, ke.flavor.of(model), features, ".")
        >>> made.file.name, made.max_abs_difference < 1e-5
        ('model.tflite', True)
    """
    mode, file = _MODES[quantize], Path(folder) / FILE
    if tolerance is None:
        steps = mode == "float32" and rounds_inputs(model)
        tolerance = _STEPS if steps else _TOLERANCE[mode]
    sample, part = features.arrays, _part(features)
    reference = _reference(model, flavor, features, sample)

    def write(any_length):
        return write_litert(
            model, file, features, mode=mode, representative=representative, any_length=any_length
        )

    samples = [sample, part]
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
    """The sample's lengths, where any could do."""
    fixed = features.specs(dynamic_length=False)
    return {
        name: fixed[name].shape[1] for name, spec in features.specs().items() if spec != fixed[name]
    }


def _part(features):
    """One example of the sample, of about half its length."""
    lengths = _lengths(features)
    return {
        name: array[:1, : (lengths[name] + 1) // 2] if name in lengths else array[:1]
        for name, array in features.arrays.items()
    }


def _reference(model, flavor, features, arrays):
    with tf.device("CPU:0"):
        reference = computed(flavor, model, features, arrays)
    check_reference(reference)
    return reference


def _first_line(error):
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[1] if len(lines) > 1 else lines[0]
