"""Write an ONNX file into the folder of a version and verify it."""

import os
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from keras_efficient.compression._activation_quantization import rounds_inputs
from keras_efficient.exporters._flat_form import flat_form
from keras_efficient.exporters._layer_inputs import unquantized_inputs
from keras_efficient.exporters._model_file import (
    ModelFile,
    calibration_batches,
    check_precision,
    reference_outputs,
    trace_model,
    write_verified,
)
from keras_efficient.exporters._signature import Features, describe_specs
from keras_efficient.exporters.onnx.converter import OPSET, check_installed, convert
from keras_efficient.exporters.onnx.quantize import quantize_dynamically, quantize_statically
from keras_efficient.exporters.onnx.session import run_onnx
from keras_efficient.flavor import Model
from keras_efficient.parametrize._plain_model import folded_weights

FILE = "model.onnx"
#: Default tolerances by `quantize`, relative to the largest output or 1.
_TOLERANCE = {None: 1e-4, "int8-weights": 0.25, "int8": 0.5}
#: Default tolerance in float32 for models that quantize activations, where a rounding error can
#: become a whole quantization step.
_QUANTIZED_TOLERANCE = 0.1


def check_onnx(model: Model, flavor: Any, features: Features) -> None:
    """Check before training what an ONNX file needs: its packages, float32, and a sample that runs.

    Raises:
        InputError: something is missing.
    """
    check_installed()
    check_precision(model, "An ONNX file")
    reference_outputs(model, flavor, features, features.arrays)


def export_onnx(
    model: Model,
    flavor: Any,
    features: Features,
    folder: str | os.PathLike,
    *,
    quantize: str | None = None,
    representative: Iterable[dict] | None = None,
    reduce_range: bool = False,
    tolerance: float | None = None,
) -> ModelFile:
    """Write `model.onnx` into `folder`, run it in a separate process, and compare its outputs.

    Input and output names and variable dimensions are those of the SavedModel that `ke.export`
    writes. Transforms of weights are folded in, and Transformer blocks that are known are computed
    on rows of real tokens. It is run on the sample, and on the first example cut to about half its
    length. If that fails because of the length, the file is written again for the sample's length,
    with a warning.

    Args:
        model: a built model that computes in float32.
        flavor: the `Flavor` of the model.
        features: `Features` of the sample.
        folder: str or path of an existing folder.
        quantize: None. "int8-weights": weights as integers with a scale per output, whose products
            quantize their inputs by their range in each call (ONNX Runtime's dynamic quantization).
            "int8": the same with fixed ranges, as QuantizeLinear and DequantizeLinear around the
            products; those of `ke.calibrate` or `ke.quantize_aware` if there are any, otherwise
            measured on `representative`. Default: None.
        representative: for "int8", dicts of arrays by feature name. Default: None, the sample.
        reduce_range: bool, whether weights have 7 bits instead of 8, for x86 CPUs without VNNI,
            whose products of 8 bits saturate. Default: False.
        tolerance: float. Default: None, which is 1e-4 in float32, 0.1 for models that quantize
            their activations, 0.25 for "int8-weights" and 0.5 for "int8".

    Returns:
        A `ModelFile`.

    Raises:
        InputError: tf2onnx, onnx or onnxruntime is not installed; the model computes in low
            precision, does not run as a graph, or `representative` is invalid.
        VerificationError: the conversion or the file fails, or the outputs differ.

    Examples:
        >>> import numpy as np
        >>> features = ke.exporters.Features(model, np.ones((2, 3)))
        >>> made = ke.exporters.export_onnx(model, ke.flavor.of(model), features, ".")
        >>> made.file.name, made.max_abs_difference < 1e-5
        ('model.onnx', True)

    Reference:
        ONNX Runtime, "Quantize ONNX models":
        https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
    """
    check_installed()
    check_precision(model, "An ONNX file")
    batches = calibration_batches(representative, features)
    file = Path(folder) / FILE
    if tolerance is None:
        rounds = quantize is None and rounds_inputs(model)
        tolerance = _QUANTIZED_TOLERANCE if rounds else _TOLERANCE[quantize]
    with flat_form(model, features) as form:

        def write(any_length):
            with ExitStack() as stack:
                stack.enter_context(folded_weights(model))
                if quantize is not None:
                    stack.enter_context(unquantized_inputs(model, clips=quantize == "int8"))
                stack.enter_context(form.on())
                function = trace_model(model, flavor, features, any_length)
                converted = convert(function)
            if quantize == "int8":
                quantize_statically(converted, file, batches, reduce_range)
            elif quantize == "int8-weights":
                quantize_dynamically(converted, file, reduce_range)
            else:
                file.write_bytes(converted.SerializeToString())
            return {
                "inputs": describe_specs(function.structured_input_signature[1]),
                "outputs": describe_specs(function.structured_outputs),
            }

        return write_verified(
            model,
            flavor,
            features,
            file,
            write,
            run_onnx,
            tolerance,
            {"opset": OPSET, "transformer": form.facts()},
        )
