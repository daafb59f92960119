"""Write a model as a LiteRT (TensorFlow Lite) file with TensorFlow's converter."""

import os
import re
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import tensorflow as tf

from keras_efficient import flavor as flavors
from keras_efficient._errors import InputError, VerificationError, shortened
from keras_efficient.architecture._run_block import for_inference
from keras_efficient.exporters._flat_form import flat_form
from keras_efficient.exporters._layer_inputs import unquantized_inputs
from keras_efficient.exporters._model_file import (
    MissingOperationError,
    calibration_batches,
    check_precision,
    trace_model,
)
from keras_efficient.exporters._signature import Features, describe_specs
from keras_efficient.flavor import Model
from keras_efficient.parametrize._plain_model import folded_weights

MODES = ("float32", "dynamic-int8", "int8")
#: Modes in which known Transformer blocks are computed on rows of real tokens. "int8" would also
#: round what is gathered between products, which doubles the difference of MiniLM.
_ROWS = ("float32", "dynamic-int8")
#: Operations that full int8 leaves in float32. Adding an attention mask of -1e9 in int8 would lose
#: all scores, and sums, norms and softmax of BERT take little time but lose much accuracy in int8.
#: Products and look-ups are quantized.
_FLOAT_OPS = (
    *("ADD", "SUB", "MUL", "DIV", "NEG", "MEAN", "SUM", "RSQRT", "SQUARED_DIFFERENCE"),
    *("SOFTMAX", "SELECT_V2", "MINIMUM", "MAXIMUM", "TANH", "GELU", "LOGISTIC", "CONCATENATION"),
    *("BATCH_MATMUL", "TRANSPOSE", "RESHAPE", "SLICE", "STRIDED_SLICE"),
)


def write_litert(
    model: Model,
    file: str | os.PathLike,
    features: Features,
    *,
    mode: str = "float32",
    representative: Iterable[dict] | None = None,
    any_length: bool = True,
) -> dict:
    """Write `model` as a LiteRT file with one signature, "serving_default".

    Input and output names and variable dimensions are those of the SavedModel that `ke.export`
    writes. Transforms of weights are folded in. The file is not verified; `export_litert` does
    that.

    "dynamic-int8" writes int8 weights with a scale per output. A product quantizes its inputs by
    their range in that call, so the ranges measured by `ke.calibrate` or `ke.quantize_aware` are
    not written. "int8" gives products int8 inputs and outputs with fixed ranges, which the
    converter measures on `representative`. Where the model knows the range of a layer's input,
    the input is clipped to it, so that the range in the file is not wider. Fake quantization
    operations are not used, because the converter needs them at outputs, too, for which no range
    was measured. Operations other than products and look-ups stay in float32, and so do the
    model's inputs and outputs.

    Args:
        model: a built model that computes in float32.
        file: str or path, in an existing folder.
        features: `Features` of a sample.
        mode: "float32", "dynamic-int8" or "int8". The converter leaves weights of fewer than 1024
            elements in float32. Default: "float32".
        representative: for "int8", an iterable of dicts of arrays by feature name. Default: None,
            the sample.
        any_length: bool, whether integer features may have any length instead of the sample's.
            Default: True.

    Returns:
        {"inputs" and "outputs": {name: {"dtype", "shape"}}}; None is any size.

    Raises:
        InputError: the mode, the model's precision or `representative` is invalid, or the model
            does not run as a graph.
        VerificationError: the converter failed, or the model has operations that LiteRT lacks.

    Examples:
        >>> import numpy as np
        >>> features = ke.exporters.Features(model, np.ones((2, 3)))
        >>> ke.exporters.write_litert(model, "model.tflite", features)["inputs"]
        {'inputs': {'dtype': 'float32', 'shape': [None, 3]}}

    Reference:
        LiteRT, "Post-training quantization":
        https://ai.google.dev/edge/litert/models/post_training_quantization
    """
    if mode not in MODES:
        raise InputError(f"`mode` must be one of {', '.join(MODES)}. Received: {mode!r}.")
    check_precision(model, "A LiteRT file")
    if representative is not None and mode != "int8":
        raise InputError(
            "`representative` is for mode='int8', whose ranges are measured on it. Received: mode="
            f"{mode!r}. Leave it out."
        )
    batches = calibration_batches(representative, features)
    written, signature, _ = convert_model(model, features, mode, batches, any_length)
    Path(file).write_bytes(written)
    return signature


def convert_model(model: Model, features: Features, mode: str, batches: list, any_length: bool):
    """Convert a model whose arguments are checked; they are those of `write_litert`.

    Returns:
        `(bytes, signature, facts)`: the file, its signature, and what a report says about the form
        of the model's Transformer blocks.
    """
    flavor = flavors.of(model)
    with ExitStack() as stack:
        stack.enter_context(folded_weights(model))
        form = stack.enter_context(flat_form(model, features))
        if mode != "float32":
            stack.enter_context(unquantized_inputs(model, clips=mode == "int8"))
        if mode in _ROWS and form.blocks:
            try:
                with form.on(), for_inference():
                    function = trace_model(model, flavor, features, any_length)
                written = _convert(function, mode, batches)
            except VerificationError as error:
                form.leave_out(f"LiteRT cannot compute it on rows: {shortened(str(error), 300)}")
        elif form.blocks:
            form.leave_out("LiteRT's int8 would round the rows that attention gathers")
        if not form.blocks:
            function = trace_model(model, flavor, features, any_length)
            written = _convert(function, mode, batches)
    signature = {
        "inputs": describe_specs(function.structured_input_signature[1]),
        "outputs": describe_specs(function.structured_outputs),
    }
    return written, signature, form.facts()


def _convert(function, mode, batches):
    module: Any = tf.Module()
    module.read = list(function.graph.variables)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], module)
    if mode != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    try:
        if mode != "int8":
            return converter.convert()
        converter.representative_dataset = lambda: iter(batches)
        # Only the debugger of the converter can leave some operations in float32.
        options = tf.lite.experimental.QuantizationDebugOptions(denylisted_ops=list(_FLOAT_OPS))
        return tf.lite.experimental.QuantizationDebugger(
            converter=converter, debug_dataset=lambda: iter(batches), debug_options=options
        ).get_nondebug_quantized_model()
    except Exception as error:
        raise _described(error) from error


def _described(error):
    text = str(error).strip()
    lacking = re.search(r"(?:TF Select|Custom) ops: ([\w, ]+)", text)
    if lacking:
        return MissingOperationError(
            "A LiteRT file may only hold operations of LiteRT itself, since servers and phones "
            f"seldom have those of TensorFlow (Flex). The model needs {lacking[1]}. Do that step "
            "before the model or in another way, or export a SavedModel."
        )
    # The converter prints the entire graph after the errors.
    lines = [line for line in text.splitlines() if "error:" in line] or text.splitlines()
    tail = "\n".join(line[:300] for line in lines[-12:])
    return VerificationError(
        f"TensorFlow's LiteRT converter could not write the model. It said:\n{tail}"
    )
